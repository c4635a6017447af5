"""What a model's file says of its cache and its output matrix, as far as costs depend on them.

Before the search: record answers, time batches, pass the drafts over the answers. Kept in the store as it grows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from autospec.backends.flags import WHOLE_BATCHES
from autospec.backends.protocol import Tokens
from autospec.backends.server import canary
from autospec.catalog.gguf import read_gguf
from autospec.catalog.gguf_header import read_header
from autospec.catalog.model import Model
from autospec.drafting import OFF, Mode
from autospec.errors import BackendError, ModelFileError, RequestError
from autospec.measure.asking import Asking
from autospec.predict.costs import CostCurve, first_guess
from autospec.predict.prediction import replay_drafts
from autospec.predict.predictor import Predictor
from autospec.predict.profile import AnswerProfile, Recording, Scorer
from autospec.predict.recording import DraftPass, batch_sizes, pass_of, record, time_batches, typical_of
from autospec.predict.replay import Counts
from autospec.prompts.suite import Prompt
from autospec.store.database import Store
from autospec.tuning.cell import CellRun, TuneStep
from autospec.tuning.context import TuneContext
from autospec.tuning.pruning import beaten, nothing_pays, shortest_ms

__all__ = ["RECORDING", "Profiler", "keeps_state", "output_share", "timed_apart"]


# Gemma 3 of 270M has an output matrix of 1.7 times its layers.
_MOST_OUTPUT = 3.0


def _header(path: str) -> Model | None:
    """What a GGUF file says of its model; ``None`` for what is none, whose server cuts every cache or refuses to draft."""
    try:
        return read_gguf(Path(path))
    except (ModelFileError, OSError):
        return None


def keeps_state(path: str) -> bool:
    """Whether a model's cache, or part of it, is a state that has no way back."""
    model = _header(path)
    return model is not None and model.has_recurrent_state


def timed_apart(path: str) -> bool:
    """Whether batches of a model are computed whole only by a server that is launched so."""
    model = _header(path)
    return model is not None and (model.has_recurrent_state or model.sliding_window > 0)


def output_share(path: str) -> float:
    """The output matrix ÷ what else decoding a token reads; 0 for what is no GGUF file."""
    model = _header(path)
    if model is None:
        return 0.0
    sizes = {t.name: t.n_bytes or 0 for part in model.files for t in read_header(part).tensors}
    # Without a matrix of its own, the embedding is the output matrix as well.
    output = sizes.get("output.weight") or sizes.get("token_embd.weight", 0)
    layers = model.bytes_per_token - output
    return min(output / layers, _MOST_OUTPUT) if layers > 0 else 0.0


RECORDING = "recording"
"""What the store calls an answer that was recorded without drafting."""

# Of the search's time. Each prompt type's first prompt is recorded whatever it takes, further ones within this.
_RECORDING_SHARE = 0.3
# The same for reading them with the drafts: in what these leave of the search's time it launches something.
_PASSES_SHARE = 0.6
# After so many answers, of every prompt type one at least, a draft can be dropped.
_FIRST_ANSWERS = 3
# Times taken on battery say nothing of those on mains: they are kept, and looked up, apart.
_ON_BATTERY = "/battery"
T = TypeVar("T")
# Loads the main model where it is not loaded yet; ``None`` where it cannot be asked in tokens.
Main: TypeAlias = "Callable[[], Tokens | None]"

_MAIN = "main"
_CANARY = "canary"


@dataclass(frozen=True, slots=True)
class _AskedPrompt:
    cell: CellRun
    prompt: Prompt


class Profiler:
    """Gathers what prediction works on, from servers or from the store.

    Args:
        cells: The cells to be searched.
        context: The tools; recording takes its time from the search's.
        asking: How prompts are asked.
        store: Where everything is kept as soon as it is known, so that an interruption costs one answer.
        prompts: Which prompts of a cell.
        drafts: The only draft models that are read; ``None`` for all of the space.
        hurried: False to take the time that it takes, whatever is left of the search's.
    """

    def __init__(
        self,
        cells: Sequence[CellRun],
        context: TuneContext,
        asking: Asking,
        store: Store,
        *,
        prompts: Callable[[CellRun], Sequence[Prompt]] = lambda cell: cell.tune_prompts,
        drafts: Collection[str] | None = None,
        hurried: bool = True,
    ) -> None:
        self._hurried = hurried
        self._cells = list(cells)
        self._prompts = prompts
        self._drafts = drafts
        self._context = context
        self._asking = asking
        self._store = store
        self._protocol = asking.protocol
        self._batch_ms: Mapping[int, float] = {}
        # Prompt id → the shortest time in which a draft that was read generates its answer, and that draft.
        self._fastest: dict[str, tuple[float, str]] = {}

    def run(self) -> Predictor | None:
        """Gather; ``None``, said to whoever watches, where this backend or build does not allow it.

        Raises:
            BackendError: The main model does not launch.
        """
        self._context.launches.off()
        self._asking.watch.start()
        if self._asking.watch.finish().on_battery:
            self._protocol = f"{self._asking.protocol}{_ON_BATTERY}"
        try:
            with self._context.launches.main_in_tokens() as main:
                recordings = self._record(main)
                found = [r for own in recordings.values() for r in own.values() if len(r.answer_ids) > 1]
                if not found:
                    return None
                if not batch_sizes(typical_of(found), self._widest + 1):
                    return None  # a prompt and an answer of a few tokens
                first = self._first(main) if self._draft_free else None
                # The last thing that off is asked: it may have to make room.
                batches = self._batches(main, found)
        except BackendError as error:
            self._context.progress.tell(
                f"Nothing can be predicted here, every drafting is tried: {error.message}"
            )
            return None
        self._batch_ms = batches
        passes = self._passes(recordings)
        by_cell = {key: list(own.values()) for key, own in recordings.items()}
        stream = [(p.cell.cell.key, p.prompt.id) for p in self._places()]
        return Predictor(
            by_cell,
            stream,
            batches,
            passes,
            self._widest,
            first=first,
            cycle=self._context.launches.cycle,
            uncut=keeps_state(self._context.launches.model_path),
            shapes={c.cell.key: c.shapes for c in self._cells},
            rows=output_share(self._context.launches.model_path),
        )

    @property
    def _longest(self) -> int:
        """Most tokens that a draft model of the space proposes in a cycle."""
        return self._context.definition.space.n_max[1]

    @property
    def _widest(self) -> int:
        """Most tokens that anything of the space proposes in a cycle."""
        space = self._context.definition.space
        return max(space.n_max[1], space.ngram_m[1] if self._draft_free else 0)

    @property
    def _draft_free(self) -> bool:
        """Whether anything of the space drafts from the text alone, and remembers what it has seen."""
        return any(arm.mode.draft_free for arm in self._context.space.arms)

    def _places(self) -> list[_AskedPrompt]:
        """The prompts in the order in which a launch is asked: one of every cell, then the next of every cell."""
        columns = ([_AskedPrompt(c, prompt) for prompt in self._prompts(c)] for c in self._cells)
        return [place for row in zip_longest(*columns) for place in row if place is not None]

    def _record(self, main: Main) -> dict[str, dict[str, Recording]]:
        found: dict[str, dict[str, Recording]] = {}
        for c in self._cells:
            stored = self._store.surveys(c.cell.key, self._protocol, RECORDING)
            # An earlier run may have recorded prompts that are not among today's.
            wanted = [p.id for p in self._prompts(c)]
            read = {name: _read(Recording.from_json, stored.get(name)) for name in wanted}
            found[c.cell.key] = {name: r for name, r in read.items() if r is not None}
        enough_s = self._search_left_s() * (1.0 - _RECORDING_SHARE)
        places = self._places()
        for number, (cell, prompt) in enumerate(((p.cell, p.prompt) for p in places), start=1):
            own = found[cell.cell.key]
            if prompt.id in own:
                continue
            if own and self._late(enough_s):
                continue
            left_s = self._context.budget.until_end_s
            self._context.progress.step(TuneStep("record", OFF, 1, 1, number - 1, len(places), left_s))
            request = self._asking.request(prompt)
            own[prompt.id] = self._undisturbed(partial(record, _asked(main), prompt.id, request))
            self._keep(cell, RECORDING, prompt.id, own[prompt.id].to_json())
        return found

    def _first(self, main: Main) -> Recording:
        """What every launch answers first, before it counts as launched."""
        cell = self._cells[0]
        stored = self._store.surveys(cell.cell.key, self._protocol, _CANARY).get(_CANARY)
        if (known := _read(Recording.from_json, stored)) is not None:
            return known
        recorded = record(_asked(main), _CANARY, canary(OFF))
        for each in self._cells:
            self._keep(each, _CANARY, _CANARY, recorded.to_json())
        return recorded

    def _batches(self, main: Main, recordings: Sequence[Recording]) -> dict[int, float]:
        path, largest = self._context.launches.model_path, self._widest + 1
        # Times of a server that splits or repeats batches do not count: earlier versions took them here.
        name = f"{_MAIN}/whole" if timed_apart(path) else _MAIN
        stored = self._stored_times(name)
        typical = typical_of(recordings)
        if stored is None or max(stored.batch_ms, default=0) < max(batch_sizes(typical, largest)):
            stored = DraftPass({}, 0.0, self._timed(main, path, typical, largest))
            self._keep_times(name, stored)
        return dict(stored.batch_ms)

    def _timed(self, main: Main, path: str, recording: Recording, largest: int) -> dict[int, float]:
        """Batches of the main model, wherever they can be timed; empty where nowhere."""
        if not timed_apart(path):
            try:
                return self._undisturbed(partial(time_batches, _asked(main), recording, largest))
            except RequestError:
                pass  # a cache that cannot be cut, which the file did not say
        try:
            return self._timed_whole(path, recording, largest)
        except BackendError as error:
            self._context.progress.tell(
                f"Batches cannot be timed here, what they cost is learnt from launches: {error.message}"
            )
            return {}

    def _timed_whole(self, path: str, recording: Recording, largest: int) -> dict[int, float]:
        """Batches of a model whose server splits or repeats them, in a launch of its own that does neither."""
        with self._context.launches.alone(path, WHOLE_BATCHES) as server:
            if server.tokens is None:
                raise BackendError(f"{server.base_url} cannot be asked in tokens.")
            timed = partial(time_batches, server.tokens, recording, largest)
            if not keeps_state(path):
                try:
                    return self._undisturbed(timed)
                except RequestError:
                    pass  # this build has no full-size cache for a sliding window
            return self._undisturbed(partial(timed, behind=False))

    def _passes(self, recordings: dict[str, dict[str, Recording]]) -> dict[str, DraftPass]:
        passes: dict[str, DraftPass] = {}
        drafts = [
            a.draft for a in self._context.space.arms if a.mode is Mode.DRAFT_MODEL and a.draft is not None
        ]
        if self._drafts is not None:
            drafts = [d for d in drafts if d in self._drafts]
        left_s = self._search_left_s()
        for number, draft in enumerate(drafts, start=1):
            budget_s = self._context.budget.until_end_s
            answers = sum(map(len, recordings.values()))
            self._context.progress.step(TuneStep("read", OFF, number, len(drafts), 0, answers, budget_s))
            # What a quick draft leaves of its part, the next ones may use.
            until_s = left_s * (1.0 - _PASSES_SHARE * number / len(drafts))
            try:
                passes[draft] = self._pass(draft, recordings, partial(self._late, until_s))
                self._note_fastest(draft, passes[draft], recordings)
            except BackendError as error:
                name = Path(draft).name
                self._context.progress.tell(
                    f"{name} cannot be run alone, its draftings are tried: {error.message}"
                )
        return passes

    def _search_left_s(self) -> float:
        return self._context.budget.part_left_s(self._context.definition.search_share)

    def _late(self, until_s: float) -> bool:
        return self._hurried and self._search_left_s() < until_s

    def _pass(
        self, draft: str, recordings: dict[str, dict[str, Recording]], late: Callable[[], bool]
    ) -> DraftPass:
        identity = self._context.space.draft_id(draft)
        profiles: dict[str, AnswerProfile] = {}
        missing: list[tuple[CellRun, Recording]] = []
        stored = {c.cell.key: self._store.surveys(c.cell.key, self._protocol, "profile") for c in self._cells}
        for cell, recording in self._by_turns(recordings):
            data = stored[cell.cell.key].get(f"{identity}/{recording.prompt_id}")
            if (profile := _read(AnswerProfile.from_json, data)) is not None:
                profiles[recording.prompt_id] = profile
            else:
                missing.append((cell, recording))
        times = self._stored_times(identity)
        if not missing and times is not None:
            return replace(times, profiles=profiles)
        name = Path(draft).name
        answers = "1 answer" if len(missing) == 1 else f"{len(missing)} answers"
        self._context.progress.tell(f"Reading {answers} with {name} alone.")
        # One answer of every cell is read whatever it takes: without it nothing can be said of the cell.
        lacking = {c.cell.key for c, _ in missing} - {
            c.cell.key for c in self._cells if profiles.keys() & recordings[c.cell.key].keys()
        }
        # Without answers to read, the times are missing: any answer gives them.
        todo = [r for _, r in missing] or [r for own in recordings.values() for r in own.values()][:1]
        # A cache with a sliding window is kept whole; one with a state needs its checkpoints, or begins at every miss anew.
        state = keeps_state(draft)
        more = WHOLE_BATCHES if timed_apart(draft) and not state else ()
        with self._context.launches.alone(draft, more) as server:
            if server.tokens is None:
                raise BackendError(f"{server.base_url} cannot be asked in tokens.")
            owners = {recording.prompt_id: cell for cell, recording in missing}

            def keep(profile: AnswerProfile) -> None:
                profiles[profile.prompt_id] = profile
                if profile.prompt_id in owners:
                    name = f"{identity}/{profile.prompt_id}"
                    self._keep(owners[profile.prompt_id], "profile", name, profile.to_json())

            with self._scorer(server.tokens, draft, todo) as scorer:
                made = self._undisturbed(
                    partial(
                        pass_of,
                        server.tokens,
                        todo,
                        longest=self._longest,
                        scorer=scorer,
                        p_min=self._context.launches.takes_p_min,
                        timed=not state,
                        keep=keep,
                        enough=lambda read: read >= len(lacking) and late(),
                        hopeless=partial(self._hopeless, draft, recordings, profiles),
                    )
                )
        if state:
            batches = self._timed_whole(draft, typical_of(todo), self._longest + 1)
            made = replace(made, batch_ms=batches)
        self._keep_times(identity, made)
        return replace(made, profiles=profiles)

    def _hopeless(
        self,
        draft: str,
        recordings: Mapping[str, Mapping[str, Recording]],
        profiles: Mapping[str, AnswerProfile],
        step_ms: float,
    ) -> bool:
        """Whether a draft need read no further: it has read some answers of each cell, and nothing it drafts pays."""
        found = [[r for r in own.values() if r.prompt_id in profiles] for own in recordings.values() if own]
        read = [r for own in found for r in own if len(r.answer_ids) > 1]
        if len(self._batch_ms) < 2 or len(read) < _FIRST_ANSWERS or not all(found):
            return False
        answers, costs = self._replayed(draft, read, profiles, step_ms)
        if nothing_pays(answers, costs, self._context.definition.rule.threshold):
            why = "none of its draftings pays"
        elif beaten(answers, costs, {name: ms for name, (ms, _) in self._fastest.items()}):
            rivals = dict.fromkeys(Path(self._fastest[r.prompt_id][1]).name for r in read)
            why = f"{' or '.join(rivals)} is faster"
        else:
            return False
        self._context.progress.tell(
            f"{Path(draft).name} reads no further: on its first {len(read)} answers {why}."
        )
        return True

    def _replayed(
        self, draft: str, read: Sequence[Recording], profiles: Mapping[str, AnswerProfile], step_ms: float
    ) -> tuple[list[tuple[Recording, Counts]], CostCurve]:
        """The cycles of all draftings of one draft in some answers, and its costs as they were timed."""
        grid = [d for d in self._context.space.grid() if d.draft == draft]
        plain_ms = statistics.median(r.token_ms for r in read)
        costs = first_guess(plain_ms, self._batch_ms, {}, step_ms, self._longest)
        cycle, uncut = self._context.launches.cycle, keeps_state(self._context.launches.model_path)
        return [
            (r, replay_drafts(profiles[r.prompt_id], grid, r.max_tokens, cycle, uncut=uncut)) for r in read
        ], costs

    def _note_fastest(
        self, draft: str, read: DraftPass, recordings: Mapping[str, Mapping[str, Recording]]
    ) -> None:
        """Keep what the next drafts have to beat."""
        if len(self._batch_ms) < 2:
            return
        recorded = {r.prompt_id: r for own in recordings.values() for r in own.values()}
        answers = [r for name, r in recorded.items() if name in read.profiles and len(r.answer_ids) > 1]
        if not answers:
            return
        replayed, costs = self._replayed(draft, answers, read.profiles, read.step_ms)
        for recording, counts in replayed:
            mine = shortest_ms(recording, counts, costs), draft
            self._fastest[recording.prompt_id] = min(self._fastest.get(recording.prompt_id, mine), mine)

    def _by_turns(self, recordings: dict[str, dict[str, Recording]]) -> Iterator[tuple[CellRun, Recording]]:
        """The first answer of every cell, then the second of every cell."""
        columns = ([(cell, r) for r in recordings[cell.cell.key].values()] for cell in self._cells)
        for row in zip_longest(*columns):
            yield from (place for place in row if place is not None)

    def _undisturbed(self, work: Callable[[], T]) -> T:
        """Do what is timed; once more where other programs were at work meanwhile and have now ended.

        A draft that was timed beside a busy neighbour would look several times as dear, and be ruled out for it.
        """
        self._asking.watch.start()
        result = work()
        again = self._context.pairing.calm.after(self._asking.watch.finish())
        return work() if again else result

    def _scorer(
        self, tokens: Tokens, draft: str, recordings: Sequence[Recording]
    ) -> AbstractContextManager[Scorer | None]:
        """What reads an answer in one evaluation: the launch itself, or what is installed for it, or nothing."""
        if isinstance(tokens, Scorer):
            return nullcontext(tokens)
        longest = max(len(r.prompt_ids) + len(r.answer_ids) for r in recordings)
        return self._context.launches.scoring(draft, longest + self._longest + 1, self._context.progress.tell)

    def _stored_times(self, name: str) -> DraftPass | None:
        for cell in self._cells:
            data = self._store.surveys(cell.cell.key, self._protocol, "times").get(name)
            if (times := _read(DraftPass.from_json, data)) is not None:
                return times
        return None

    def _keep_times(self, name: str, times: DraftPass) -> None:
        for cell in self._cells:
            self._keep(cell, "times", name, replace(times, profiles={}).to_json())

    def _keep(self, cell: CellRun, kind: str, name: str, data: dict[str, object]) -> None:
        self._store.add_survey(cell.cell.key, self._protocol, kind, name, data)


def _read(from_json: Callable[[dict[str, Any]], T], data: dict[str, Any] | None) -> T | None:
    """What was kept, or ``None`` where nothing was or another version kept it otherwise: then it is made again."""
    try:
        return None if data is None else from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _asked(main: Main) -> Tokens:
    tokens = main()
    if tokens is None:
        raise BackendError("This server cannot be asked in token ids.")
    return tokens
