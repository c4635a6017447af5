"""One cell's Optuna study: the record of every drafting tried, and the sampler's memory.

All of a machine's studies are in one RDB storage beside autospec's own tables, or behind Optuna's gRPC proxy. Only this module
asks and tells trials.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from autospec.cells import Cell
from autospec.drafting import OFF, Drafting
from autospec.errors import (
    BackendError,
    LaunchError,
    SpeculationInactiveError,
    StoreError,
    UnsupportedError,
    install_line,
)
from autospec.store.compatibility import DraftFiles
from autospec.store.database import connect_args, first_use, read_url
from autospec.tuning.definition import StudyDefinition
from autospec.tuning.space import Space

__all__ = [
    "OPENED",
    "RIVAL",
    "RUNNER_UP",
    "SEARCHED",
    "UNTRIED",
    "WINNER",
    "CellStudy",
    "Tried",
    "fails_with_any_setting",
    "open_storage",
]


# A proxy in the same network answers in milliseconds; one that is down must not delay the tune.
_GRPC_READY_S = 10.0
_GRPC_PORT = 13000
_START_IT = (
    "Start it there with optuna.storages.run_grpc_proxy_server, or remove `study_storage` from the config."
)


def _open_grpc(url: str, ready_s: float) -> BaseStorage:
    """The client of Optuna's gRPC proxy; raises a `StoreError` if the proxy does not answer, now or in any later call."""
    try:
        address = urlsplit(url)
        host, port = address.hostname or "localhost", address.port or _GRPC_PORT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=ready_s)
        import grpc  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise StoreError(
            f"Optuna's gRPC proxy needs a package that is not installed: {error}.",
            install_line("grpc"),
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{url} is not an address of a gRPC proxy: {error}.", "Write it as grpc://HOST:PORT."
        ) from error
    except ConnectionError as error:
        raise StoreError(f"Optuna's gRPC proxy at {host}:{port} does not answer.", _START_IT) from error
    for name, member in vars(BaseStorage).items():
        # Wraps Optuna's whole storage interface, so that every call raises a StoreError, also calls within Optuna.
        if callable(member) and not name.startswith("_"):
            setattr(storage, name, _plain(getattr(storage, name), grpc.RpcError, f"{host}:{port}"))
    return storage


def _plain(method: Callable[..., Any], failure: type[Exception], where: str) -> Callable[..., Any]:
    """The method with gRPC's errors as a `StoreError`."""

    @functools.wraps(method)
    def guarded(*args: Any, **named: Any) -> Any:
        try:
            return method(*args, **named)
        except failure as error:
            # gRPC's error of a failed call has a status, which its base class does not promise.
            code = error.code().name if hasattr(error, "code") else ""
            words = error.details() if hasattr(error, "details") else str(error)
            what = "no longer answers" if code == "UNAVAILABLE" else f"failed: {words}"
            raise StoreError(f"Optuna's gRPC proxy at {where} {what}.", _START_IT) from error

    return guarded


# Names of the notes about a search's result; a new search deletes them.
WINNER = "winner"
RUNNER_UP = "runner_up"
# The drafting that is proved beside an enabled winner.
RIVAL = "rival"
# Identities of the drafts that the searches so far could try, and names of those for which a proven cell is measured again.
SEARCHED = "searched_drafts"
OPENED = "opened_for"
# Labels of the arms that the search had no time to try.
UNTRIED = "untried"
# Number of prompts of each type in every trial: trials can be compared only on the same ones.
PROMPTS = "prompts"

# Known draftings are not launched again. After 20 known proposals in a row the sampler's part of the space is explored; then
# 20 random ones are considered.
_PROPOSALS = 20
_RANDOM_PROPOSALS = 20


@dataclass(frozen=True, slots=True)
class Tried:
    """A finished trial."""

    drafting: Drafting
    value: float | None  # speed ratio to off on the tune prompts; None if it failed
    complete: bool  # False if it was given up early or failed
    reason: str
    permanent: bool  # True if the drafting would fail in any other launch, too


def fails_with_any_setting(error: BackendError) -> bool:
    """Whether a launch failed because of its mode or its draft model, so that other settings would fail, too."""
    return isinstance(error, SpeculationInactiveError) or (isinstance(error, LaunchError) and error.permanent)


def open_storage(url: str, *, ready_s: float = _GRPC_READY_S) -> BaseStorage:
    """Optuna's storage.

    Args:
        url: A SQLAlchemy URL, or ``grpc://HOST[:PORT]`` of a proxy that `optuna.storages.run_grpc_proxy_server` runs.
        ready_s: How long to wait for such a proxy.

    Raises:
        StorageUrlError: The URL is malformed.
        StoreError: Optuna cannot use the database, or the proxy does not answer; the storage raises it too, if the proxy
            stops answering later.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith("grpc:"):
        return _open_grpc(url, ready_s)
    read_url(url)
    try:
        with first_use(url):
            return RDBStorage(url, engine_kwargs={"connect_args": connect_args(url), "pool_pre_ping": True})
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"Optuna cannot use the database: {str(error).rstrip('.')}.", _hint(error, url)
        ) from error


def _hint(error: Exception, url: str) -> str:
    """What to do about a database that Optuna refuses; its two messages about other versions are distinguished."""
    said = str(error)
    if "optuna storage upgrade" in said:
        where = sa.make_url(url).render_as_string(hide_password=True)
        return f"An older Optuna wrote it. Copy it, then run `optuna storage upgrade --storage {where}`."
    if "updating optuna" in said:
        return "A newer Optuna wrote it: `pip install -U optuna`."
    return "Check `storage` with `autospec config show`."


class CellStudy:
    """The study of one cell. Open it only while holding the cell (`CellLocks`): running trials are closed as interrupted.

    Trials of another protocol (suite, lengths, temperature) are kept and not counted.
    """

    def __init__(
        self, cell: Cell, storage: BaseStorage, definition: StudyDefinition, space: Space, protocol: str
    ) -> None:
        self.cell = cell
        self._space = space
        self._definition = definition
        self._protocol = protocol
        # With the cache that Optuna itself would put before a database, so that both write through one.
        self._storage = optuna.storages.get_storage(storage)
        self._study = optuna.create_study(
            study_name=cell.study_name, storage=self._storage, direction="maximize", load_if_exists=True
        )
        self._close_interrupted()
        if "cell" not in self._study.user_attrs:
            self._study.set_user_attr("cell", _cell_json(cell))

    @property
    def name(self) -> str:
        """The study's name in the storage."""
        return self._study.study_name

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value with the study under this protocol."""
        self._study.set_user_attr(f"{key}:{self._protocol}", value)

    def noted(self, key: str) -> Any:
        """The value that `note` kept, or ``None``."""
        return self._study.user_attrs.get(f"{key}:{self._protocol}")

    def notes(self) -> dict[str, Any]:
        """All notes under this protocol, read at once."""
        ending = f":{self._protocol}"
        attributes = self._study.user_attrs.items()
        return {name.removesuffix(ending): value for name, value in attributes if name.endswith(ending)}

    @property
    def drafts(self) -> DraftFiles:
        """The drafts of this space."""
        return self._space.drafts

    def draft_id(self, drafting: Drafting) -> str:
        """The identity of a drafting's draft; empty if it has none, or one that is not of this space."""
        return self._space.drafts.identity(drafting)

    @property
    def draft_ids(self) -> dict[str, str]:
        """Path of each draft of this space → its identity."""
        return self._space.drafts.identities

    def note_drafting(self, key: str, drafting: Drafting) -> None:
        """Keep a drafting with the study, with the identity of its draft."""
        self.note(f"{key}_draft_id", self.draft_id(drafting) or None)
        self.note(key, drafting.to_json())

    def drafting_in(self, notes: Mapping[str, Any], key: str, at: float) -> Drafting | None:
        """The drafting that `note_drafting` kept, from `notes`, with its draft's current path.

        ``None`` if there is none, another version wrote it, or its draft was replaced. `at` is the earliest time at which it was
        kept (seconds since the epoch), for notes without an identity.
        """
        drafting = Drafting.understood(notes.get(key))
        identity = str(notes.get(f"{key}_draft_id") or "")
        return None if drafting is None else self._space.drafts.today(drafting, identity, at)

    def is_permanent(self, drafting: Drafting, error: BackendError) -> bool:
        """Whether a drafting with this failure would fail in any other launch, too; not if its draft has vanished: it may come back."""
        fails = fails_with_any_setting(error) or isinstance(error, UnsupportedError)
        return fails and not (drafting.draft is not None and self._has_vanished(drafting.draft))

    def _has_vanished(self, draft: str) -> bool:
        """Whether the file of a draft of this space was there when the tune began, and is gone."""
        file = self._space.drafts.by_path.get(draft)
        return file is not None and file.changed_at > 0.0 and not Path(draft).exists()

    def note_searched(self, before: Iterable[str]) -> None:
        """Keep the drafts of this space as those that a search could try, besides the identities `before`."""
        drafts = self._space.drafts.by_path.items()
        here = {file.identity for path, file in drafts if not self._has_vanished(path)}
        self.note(SEARCHED, sorted(here.union(before)))

    def drafts_tried(self) -> set[str]:
        """Paths of the drafts of all trials ever made."""
        found = (_tried(t) for t in self._finished(0))
        return {t.drafting.draft for t in found if t is not None and t.drafting.draft is not None}

    def begin_again(self) -> None:
        """Start a new search: earlier trials stay in the study and no longer count."""
        self.note("trials_from", len(self._study.get_trials(deepcopy=False)))
        for key in (WINNER, RUNNER_UP, RIVAL, SEARCHED, OPENED, UNTRIED, PROMPTS):
            self.note(key, None)

    def tried(self) -> list[Tried]:
        """Finished trials of this protocol and of the current space, in order, without interrupted ones.

        Draftings that can work in no launch stay known when a new search starts.
        """
        first = self._first
        found = [(trial.number, t) for trial in self._finished(0) if (t := self._tried(trial))]
        return [
            t
            for number, t in found
            if (number >= first or t.permanent)
            and (t.drafting.is_off or self._space.arm_of(t.drafting) is not None)
        ]

    def propose(
        self, known: Iterable[Drafting], is_open: Callable[[Drafting], bool] = lambda _: True
    ) -> Drafting | None:
        """The sampler's next drafting that is not among `known`; ``None`` if it finds none.

        The sampler works on a copy in memory, so rejected proposals leave no trace. `is_open` is False for draftings that need no
        trial, because their prediction is trusted.
        """
        seen = {*known, OFF}
        random = RandomSampler(seed=self._definition.seed + len(self._finished()))
        copy = optuna.create_study(direction="maximize", sampler=self._sampler())
        names = self._space.parameters(OFF).keys()
        copy.add_trials([t for t in self._finished() if names <= t.params.keys() and t.value is not None])
        for number in range(_PROPOSALS + _RANDOM_PROPOSALS):
            if number == _PROPOSALS:
                copy.sampler = random
            trial = copy.ask()
            drafting = self._space.suggest(trial)
            if drafting not in seen and is_open(drafting):
                return drafting
            copy.tell(trial, state=TrialState.FAIL)
        return None

    def start(self, drafting: Drafting, predicted: Mapping[str, float] | None = None) -> Ask:
        """Begin a trial with this drafting; `predicted` is kept as an attribute of the trial."""
        return Ask(self._storage, self._add(TrialState.RUNNING, drafting, predicted))

    def record(
        self,
        drafting: Drafting,
        value: float,
        attributes: Mapping[str, Any],
        predicted: Mapping[str, float] | None = None,
    ) -> None:
        """Keep a trial that is done already, in one transaction."""
        self._add(TrialState.COMPLETE, drafting, predicted, value, attributes)

    def _add(
        self,
        state: TrialState,
        drafting: Drafting,
        predicted: Mapping[str, float] | None,
        value: float | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> int:
        """A new trial's id in the storage; enqueuing, asking and suggesting would take a dozen transactions instead of one."""
        parameters = self._space.parameters(drafting)
        chosen = FixedTrial(parameters)  # tells the parameters' ranges, too
        if parameters:
            self._space.suggest(chosen)
        kept = {
            "drafting": drafting.to_json(),
            "protocol": self._protocol,
            "draft_id": self.draft_id(drafting),
        }
        if predicted is not None:
            kept["predicted"] = dict(predicted)
        trial = create_trial(
            state=state,
            value=value,
            params=chosen.params,
            distributions=chosen.distributions,
            user_attrs={**kept, **(attributes or {})},
        )
        return self._storage.create_new_trial(self._storage.get_study_id_from_name(self.name), trial)

    @property
    def _first(self) -> int:
        """Number of the first trial that counts."""
        return int(self.noted("trials_from") or 0)

    def _tried(self, trial: FrozenTrial) -> Tried | None:
        """A trial's result, with its draft's current path; ``None`` if the trial does not apply to the current drafts."""
        tried = _tried(trial)
        if tried is None:
            return None
        began = trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0
        identity = str(trial.user_attrs.get("draft_id") or "")
        today = self._space.drafts.today(tried.drafting, identity, began)
        return None if today is None else replace(tried, drafting=today)

    def _finished(self, first: int | None = None) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [
            t
            for t in trials[self._first if first is None else first :]
            if t.state.is_finished() and t.user_attrs.get("protocol") == self._protocol
        ]

    def _sampler(self) -> BaseSampler:
        # A new sampler for each proposal: its state is the trials alone, so an interrupted study continues like any other.
        # The number of trials is part of the seed, or successive proposals would repeat the same draw.
        seed = self._definition.seed + len(self._finished())
        if self._definition.sampler == "random":
            return RandomSampler(seed=seed)
        # The leaders are the start-up trials. Optuna has called `multivariate` and `group` experimental since 2021; its
        # warning would appear in the progress table.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=0)

    def _close_interrupted(self) -> None:
        for _ in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.ask()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)


class Ask:
    """One running trial of one cell."""

    def __init__(self, storage: BaseStorage, trial_id: int) -> None:
        self._storage = storage
        self._trial_id = trial_id

    def report(self, value: float, step: int) -> None:
        """The speed ratio after `step` prompts."""
        self._storage.set_trial_intermediate_value(self._trial_id, step, value)

    def complete(self, value: float, attributes: dict[str, Any]) -> None:
        """The trial is done: `value` is the speed ratio to off."""
        self._tell(TrialState.COMPLETE, [value], attributes)

    def give_up(self, value: float, reason: str, attributes: dict[str, Any]) -> None:
        """The trial is not worth finishing; `value` is the ratio so far."""
        # Complete for the sampler, with the value so far: a poor value teaches more than none.
        self._tell(TrialState.COMPLETE, [value], {**attributes, "gave_up": reason})

    def fail(self, reason: str, *, permanent: bool) -> None:
        """The drafting could not be measured."""
        self._tell(TrialState.FAIL, None, {"reason": reason, "permanent": permanent})

    def _tell(self, state: TrialState, values: list[float] | None, attributes: dict[str, Any]) -> None:
        for key, item in attributes.items():
            self._storage.set_trial_user_attr(self._trial_id, key, item)
        self._storage.set_trial_state_values(self._trial_id, state, values)


def _tried(trial: FrozenTrial) -> Tried | None:
    attributes = trial.user_attrs
    drafting = Drafting.understood(attributes.get("drafting"))
    if drafting is None:
        return None  # not autospec's, or from a newer version
    if trial.state is TrialState.FAIL and "reason" not in attributes:
        return None  # interrupted: it may be tried again
    value = trial.value if trial.value is not None and math.isfinite(trial.value) else None
    reason = attributes.get("reason") or attributes.get("gave_up") or ""
    complete = trial.state is TrialState.COMPLETE and "gave_up" not in attributes
    return Tried(drafting, value, complete, reason, bool(attributes.get("permanent", False)))


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "key": cell.key,
        "model": cell.model.name,
        "model_path": cell.model.path,
        "prompt_type": str(cell.prompt_type),
        "backend": cell.build.backend,
        "build": cell.build.version,
        "hardware": cell.hardware.id,
        "settings": list(cell.settings),
        "aim": str(cell.aim),
    }
