"""Studies behind Optuna's gRPC proxy: its client, whose every failure is a `StoreError`.

One cell's Optuna study: the record of every drafting tried, and the sampler's memory.

All of a machine's studies live in one RDB storage beside autospec's own tables. Trials are asked and told here only.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autospec.cells import Cell
from autospec.drafting import OFF, Drafting
from autospec.errors import StoreError
from autospec.store.locks import first_use
from autospec.tuning.definition import StudyDefinition
from autospec.tuning.space import Space

__all__ = [
    "GRPC_READY_S",
    "OPENED",
    "RUNNER_UP",
    "SEARCHED",
    "WINNER",
    "CellStudy",
    "Tried",
    "open_grpc_studies",
    "open_storage",
]


# A proxy in the same house answers in milliseconds; one that is down should not hold the tune up.
GRPC_READY_S = 10.0
_GRPC_PORT = 13000
_START_IT = (
    "Start it there with optuna.storages.run_grpc_proxy_server, or empty `study_storage` in the config."
)


def open_grpc_studies(url: str, ready_s: float) -> BaseStorage:
    """The proxy's client. It is experimental in Optuna, which says so on every use: once in our words is enough.

    Args:
        url: ``grpc://HOST[:PORT]``.
        ready_s: How long the proxy is waited for.

    Raises:
        StoreError: The proxy does not answer; also from every method of the client, once the proxy has gone away.
    """
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
            "pip install 'autospec[grpc]'.",
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{url} is no address of a gRPC proxy: {error}.", "Write it as grpc://HOST:PORT."
        ) from error
    except ConnectionError as error:
        raise StoreError(f"Optuna's gRPC proxy at {host}:{port} does not answer.", _START_IT) from error
    for name, member in vars(BaseStorage).items():
        # All of Optuna's storage interface, so that no call of it, here or within Optuna, gets past.
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
            # A failed call is its own error, and tells its status; the class alone promises no such thing.
            code = error.code().name if hasattr(error, "code") else ""
            words = error.details() if hasattr(error, "details") else str(error)
            what = "has gone away" if code == "UNAVAILABLE" else f"failed: {words}"
            raise StoreError(f"Optuna's gRPC proxy at {where} {what}.", _START_IT) from error

    return guarded


# Names of the notes of what a search chose; beginning again forgets them.
WINNER = "winner"
RUNNER_UP = "runner_up"
# The identities of the drafts that the searches so far could try, and the names of those for which a proven cell was opened
# again and is not settled yet.
SEARCHED = "searched_drafts"
OPENED = "opened_for"

# Draftings that the sampler proposes again are not launched again. After so many proposals in a row that are all known, the
# part of the space that it cares for is explored, and so many random ones are looked at.
_PROPOSALS = 20
_RANDOM_PROPOSALS = 20


@dataclass(frozen=True, slots=True)
class Tried:
    """A finished trial.

    Attributes:
        drafting: What was tried.
        value: Speed ratio to off on the tune prompts, or ``None`` where it failed.
        complete: False if it was given up early (pruned) or failed.
        reason: Why it failed or was given up.
        permanent: True if the same drafting cannot work in another launch either.
    """

    drafting: Drafting
    value: float | None
    complete: bool
    reason: str
    permanent: bool


def open_storage(url: str, *, ready_s: float = GRPC_READY_S) -> BaseStorage:
    """Optuna's storage.

    Args:
        url: A SQLAlchemy URL, or ``grpc://HOST[:PORT]`` of a proxy that `optuna.storages.run_grpc_proxy_server` runs.
        ready_s: How long such a proxy is waited for.

    Raises:
        StoreError: Optuna cannot use the database, or the proxy does not answer; what is returned raises it too, whenever
            the proxy has gone away.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith("grpc:"):
        return open_grpc_studies(url, ready_s)
    arguments = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else None
    try:
        with first_use(url):
            return RDBStorage(url, engine_kwargs=arguments)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"Optuna cannot use the database: {str(error).rstrip('.')}.", _hint(error, url)
        ) from error


def _hint(error: Exception, url: str) -> str:
    """What to do about a database that Optuna refuses; its two sentences on other versions are told apart."""
    said = str(error)
    if "optuna storage upgrade" in said:
        where = sa.make_url(url).render_as_string(hide_password=True)
        return f"An older Optuna wrote it. Copy it, then run `optuna storage upgrade --storage {where}`."
    if "updating optuna" in said:
        return "A newer Optuna wrote it: `pip install -U optuna`."
    return "Check `storage` with `autospec config show`."


class CellStudy:
    """The study of one cell. Open it only while holding the cell (`CellLocks`): what runs is taken for left over.

    Args:
        cell: The cell.
        storage: From `open_storage`.
        definition: Sampler, seed.
        space: What may be tried.
        protocol: Trials made under another protocol (suite, lengths, temperature) are kept and not counted.
    """

    def __init__(
        self, cell: Cell, storage: BaseStorage, definition: StudyDefinition, space: Space, protocol: str
    ) -> None:
        self.cell = cell
        self._space = space
        self._definition = definition
        self._protocol = protocol
        self._study = optuna.create_study(
            study_name=cell.study_name, storage=storage, direction="maximize", load_if_exists=True
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
        """What `note` kept, or ``None``."""
        return self._study.user_attrs.get(f"{key}:{self._protocol}")

    def draft_id(self, drafting: Drafting) -> str:
        """The identity of a drafting's draft; empty where it has none, or one that is not of this space."""
        return self._space.drafts.identity(drafting)

    def note_drafting(self, key: str, drafting: Drafting) -> None:
        """Keep a drafting with the study, with the identity of its draft."""
        self.note(f"{key}_draft_id", self.draft_id(drafting) or None)
        self.note(key, drafting.to_json())

    def noted_drafting(self, key: str, at: float) -> Drafting | None:
        """What `note_drafting` kept, with the path that its draft has today.

        Args:
            key: The note's name.
            at: When it was kept at the earliest, for notes without an identity.

        Returns:
            ``None`` where nothing was kept, another version kept it, or its draft was replaced since.
        """
        drafting = Drafting.understood(self.noted(key))
        identity = str(self.noted(f"{key}_draft_id") or "")
        return None if drafting is None else self._space.drafts.today(drafting, identity, at)

    def note_searched(self) -> None:
        """Keep that the search could try the drafts of this space."""
        here = {file.identity for file in self._space.drafts.by_path.values()}
        self.note(SEARCHED, sorted(here.union(self.noted(SEARCHED) or ())))

    def drafts_tried(self) -> set[str]:
        """Paths of all drafts that any trial was ever made with."""
        found = (_tried(t) for t in self._finished(0))
        return {t.drafting.draft for t in found if t is not None and t.drafting.draft is not None}

    def begin_again(self) -> None:
        """Search afresh: what was tried stays in the study and counts no more."""
        self.note("trials_from", len(self._study.get_trials(deepcopy=False)))
        for key in (WINNER, RUNNER_UP, SEARCHED, OPENED):
            self.note(key, None)

    def tried(self) -> list[Tried]:
        """Finished trials of this protocol and of today's space, in order; interrupted ones left out.

        What cannot work in any launch stays known when the search begins again.
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
        """The sampler's next drafting that is not among `known`; ``None`` where it finds none.

        The sampler is asked on a copy in memory, so that proposals which lead nowhere leave no trace.

        Args:
            known: What was tried.
            is_open: False for draftings that need no trial, because prediction says enough of them.
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
        """Ask the study for a trial with this drafting.

        Args:
            drafting: What is to be tried.
            predicted: What it is expected to do, as an attribute of the trial; none where nothing is predicted.
        """
        self._study.enqueue_trial(self._space.parameters(drafting), skip_if_exists=False)
        trial = self._study.ask()
        self._space.suggest(trial)
        trial.set_user_attr("drafting", drafting.to_json())
        trial.set_user_attr("protocol", self._protocol)
        trial.set_user_attr("draft_id", self.draft_id(drafting))
        if predicted is not None:
            trial.set_user_attr("predicted", dict(predicted))
        return Ask(self._study, trial)

    @property
    def _first(self) -> int:
        """Number of the first trial that counts."""
        return int(self.noted("trials_from") or 0)

    def _tried(self, trial: FrozenTrial) -> Tried | None:
        """What a trial found, by the path that its draft has today; ``None`` where that says nothing of today's drafts."""
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
        # A new sampler for each proposal: its state is the trials alone, so that an interrupted study goes on as
        # one that was not. The trial count keeps successive proposals from repeating the same draw.
        seed = self._definition.seed + len(self._finished())
        if self._definition.sampler == "random":
            return RandomSampler(seed=seed)
        # The leaders are the start-up trials. Optuna calls `multivariate` and `group` experimental, as it has since 2021:
        # its warning would stand in the table that a person watches.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=0)

    def _close_interrupted(self) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            del trial
            self._study.ask()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)


class Ask:
    """One running trial of one cell."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial) -> None:
        self._study = study
        self._trial = trial

    def report(self, value: float, step: int) -> None:
        """The speed ratio after `step` prompts."""
        self._trial.report(value, step)

    def complete(self, value: float, attributes: dict[str, Any]) -> None:
        """The trial is done: `value` is the speed ratio to off."""
        self._tell(TrialState.COMPLETE, value, attributes)

    def give_up(self, value: float, reason: str, attributes: dict[str, Any]) -> None:
        """The trial is not worth finishing; `value` is the ratio so far."""
        # Reported as complete to the sampler, with the value it had: a poor value teaches more than none.
        self._tell(TrialState.COMPLETE, value, {**attributes, "gave_up": reason})

    def fail(self, reason: str, *, permanent: bool) -> None:
        """The drafting could not be measured."""
        self._tell(TrialState.FAIL, None, {"reason": reason, "permanent": permanent})

    def _tell(self, state: TrialState, value: float | None, attributes: dict[str, Any]) -> None:
        for key, item in attributes.items():
            self._trial.set_user_attr(key, item)
        self._study.tell(self._trial, value, state=state)


def _tried(trial: FrozenTrial) -> Tried | None:
    attributes = trial.user_attrs
    drafting = Drafting.understood(attributes.get("drafting"))
    if drafting is None:
        return None  # not ours, or of a version that knows more
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
    }
