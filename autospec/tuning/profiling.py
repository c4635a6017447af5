"""Before the search: record answers, time batches, read the answers with each draft. The store keeps every result at once.

What these cost depends on the model's cache and output matrix, which its file describes.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
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
from autospec.errors import (
    BackendError,
    LateAnswerError,
    LaunchError,
    ModelFileError,
    NoAnswerError,
    RequestError,
    ServerDiedError,
)
from autospec.formats import counted, listed
from autospec.hardware.state import MachineState
from autospec.predict.costs import CostCurve, first_guess
from autospec.predict.prediction import replay_drafts
from autospec.predict.predictor import Predictor
from autospec.predict.profile import AnswerProfile, Counts, Recording, Scorer
from autospec.predict.recording import DraftPass, batch_sizes, pass_of, record, time_batches, typical_of
from autospec.prompts.suite import Prompt
from autospec.tuning.budget import Pace
from autospec.tuning.calibration import DepthTiming
from autospec.tuning.cell import NOTHING_TO_DRAFT, CellRun, TuneContext, TuneStep
from autospec.tuning.paired_runner import MOST_FAILING
from autospec.tuning.pruning import beaten, nothing_pays, shortest_ms

__all__ = ["RECORDING", "Profiler", "keeps_state", "output_share", "protocol_of", "timed_apart"]


# Gemma 3 of 270M has an output matrix of 1.7 times its layers.
_MOST_OUTPUT = 3.0


def protocol_of(protocol: str, state: MachineState) -> str:
    """The protocol under which the store keeps recordings and times of a machine in this state."""
    return f"{protocol}{_ON_BATTERY}" if state.on_battery else protocol


def _header(path: str) -> Model | None:
    """The model of a GGUF file; ``None`` for other files, whose server cuts every cache or refuses to draft."""
    try:
        return read_gguf(Path(path))
    except (ModelFileError, OSError):
        return None


def keeps_state(path: str) -> bool:
    """Whether a model's cache, or part of it, is a state that cannot go back."""
    model = _header(path)
    return model is not None and model.has_recurrent_state


def timed_apart(path: str) -> bool:
    """Whether a model's batches are computed whole only by a server with its own launch arguments."""
    model = _header(path)
    return model is not None and (model.has_recurrent_state or model.sliding_window > 0)


def _growing_share(path: str, near_tokens: int, far_tokens: int) -> float:
    """The part of a model's cache that grows between two contexts."""
    model = _header(path)
    return 1.0 if model is None else model.growing_share(near_tokens, far_tokens)


def output_share(path: str) -> float:
    """The output matrix ÷ the other bytes read to decode a token; 0 if the file is not a GGUF file."""
    model = _header(path)
    if model is None:
        return 0.0
    sizes = {t.name: t.n_bytes or 0 for part in model.files for t in read_header(part).tensors}
    # Without a separate output matrix, the embedding serves as one.
    output = sizes.get("output.weight") or sizes.get("token_embd.weight", 0)
    layers = model.bytes_per_token - output
    return min(output / layers, _MOST_OUTPUT) if layers > 0 else 0.0


RECORDING = "recording"  # the store's kind of an answer that was recorded without drafting

# Share of the search's time for recording. Each prompt type's first prompt is recorded as long as there is time for the search.
_RECORDING_SHARE = 0.3
# The same for reading the answers with the drafts; the rest of the search's time is for launches.
_PASSES_SHARE = 0.6
# From this number of answers on, with at least one of every prompt type, a draft can be dropped.
_FIRST_ANSWERS = 3
# Times on battery do not apply to mains power: they are stored under another name.
_ON_BATTERY = "/battery"
_T = TypeVar("_T")
# Loads the main model if it is not loaded yet; returns None if it cannot be asked in tokens.
_Main: TypeAlias = "Callable[[], Tokens | None]"
# Times what context costs on a launch whose batches were timed.
_Deeper: TypeAlias = Callable[[Callable[[], Tokens], Mapping[int, float]], None]

_MAIN = "main"
_CANARY = "canary"


class Profiler:
    """Gathers the input of predictions, from servers or from the store.

    `drafts` are the only draft models that are read (``None`` for all of the space). `hurried` is False for a proof: it ignores what
    is left of the search's time, and what context costs its requests stays as the search has left it.
    """

    def __init__(
        self,
        cells: Sequence[CellRun],
        context: TuneContext,
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
        self._asking = context.asking
        self._store = context.store
        self._protocol = context.asking.protocol
        # Cell key and kind → the store's surveys, read once.
        self._surveys: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self._batch_ms: Mapping[int, float] = {}
        self._depth = DepthTiming(
            self._cells, context, self._stored_depth, self._keep_in_all, self._search_left_s
        )
        # Whether the last answer was recorded in time: one that is late then is the prompt's fault.
        self._in_time = False
        # Prompt id → the shortest time to generate its answer with a draft that was read, and that draft.
        self._fastest: dict[str, tuple[float, str]] = {}

    def run(self) -> Predictor | None:
        """Gather everything; ``None`` if this backend or build does not allow it, which is reported to the user."""
        self._context.launches.off()
        self._asking.watch.start()
        state = self._asking.watch.finish()
        self._context.pairing.off_length.learn(state)
        self._protocol = protocol_of(self._asking.protocol, state)
        try:
            with self._context.launches.main_in_tokens() as main:
                recordings = self._record(main)
                if self._hurried:
                    self._note_nothing_to_draft(recordings)
                found = [r for own in recordings.values() for r in own.values() if len(r.answer_ids) > 1]
                if not found:
                    return None
                if not batch_sizes(typical_of(found), self._widest + 1):
                    if self._hurried:
                        self._context.progress.tell(
                            "Predictions are not possible here, so every drafting is measured: "
                            "the prompts and answers are too short to time batches."
                        )
                    return None
                first = self._first(main) if self._draft_free else None
                # Off comes last: it may have to make room for another launch.
                batches = self._batches(main, found)
        except BackendError as error:
            self._context.progress.tell(
                f"Predictions are not possible here, so every drafting is measured: {error.message}"
            )
            return None
        self._batch_ms = batches
        passes = self._passes(recordings)
        if self._hurried:
            self._depth.note(found)
        by_cell = {key: list(own.values()) for key, own in recordings.items()}
        stream = [(cell.cell.key, prompt.id) for cell, prompt in self._places()]
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
        """Most tokens that any drafting of the space proposes in a cycle."""
        space = self._context.definition.space
        return max(space.n_max[1], space.ngram_m[1] if self._draft_free else 0)

    @property
    def _draft_free(self) -> bool:
        """Whether any arm of the space drafts from the text alone, and remembers earlier text."""
        return any(arm.mode.draft_free for arm in self._context.space.arms)

    def _places(self) -> list[tuple[CellRun, Prompt]]:
        """The prompts in the order in which a launch is asked."""
        return _by_turns([(c, self._prompts(c)) for c in self._cells])

    def _record(self, main: _Main) -> dict[str, dict[str, Recording]]:
        found: dict[str, dict[str, Recording]] = {}
        for c in self._cells:
            stored = self._stored(c, RECORDING)
            # An earlier tune may have recorded prompts that are no longer used.
            wanted = [p.id for p in self._prompts(c)]
            read = {name: _read(Recording.from_json, stored.get(name)) for name in wanted}
            found[c.cell.key] = {name: r for name, r in read.items() if r is not None}
        enough_s = self._search_left_s() * (1.0 - _RECORDING_SHARE)
        places, pace = self._places(), Pace()
        failed: Counter[str] = Counter()
        left_out: dict[str, str] = {}
        for cell, prompt in places:
            own = found[cell.cell.key]
            if prompt.id not in own:
                key = cell.cell.key
                if failed[key] > MOST_FAILING or prompt.id in self._context.pairing.failing(key, OFF):
                    continue
                if any(found.values()) and self._over:
                    if not own:
                        left_out[cell.cell.key] = cell.prompt_type
                    continue
                # A long prompt may take several times as long as the others: a shorter one after it may still fit.
                if own and self._late(enough_s + pace.request_s(cell.cell.key, OFF, prompt.size_bytes)):
                    continue
                self._recorded(found, len(places))
                recording = self._answer(cell, prompt, main, failed, may_fail=any(found.values()))
                if recording is None:
                    continue
                own[prompt.id] = recording
            pace.note(cell.cell.key, OFF, own[prompt.id].wall_ms / 1000.0, prompt.size_bytes)
        if left_out:
            self._context.progress.tell(
                f"No time is left to record answers without drafting for {listed(list(left_out.values()))}: nothing is predicted there."
            )
        self._recorded(found, len(places))
        self._pace(found)
        return found

    def _note_nothing_to_draft(self, recordings: Mapping[str, Mapping[str, Recording]]) -> None:
        """Note the cells of which every answer, and not only the first ones, ended with its first token."""
        for cell in self._cells:
            own = recordings[cell.cell.key]
            cell.nothing_to_draft = all(
                (r := own.get(p.id)) is not None and len(r.answer_ids) <= 1 for p in self._prompts(cell)
            )
            if cell.nothing_to_draft:
                self._context.progress.tell(f"{cell.prompt_type}: {NOTHING_TO_DRAFT}")

    def _answer(
        self, cell: CellRun, prompt: Prompt, main: _Main, failed: Counter[str], *, may_fail: bool
    ) -> Recording | None:
        """Record one answer; ``None`` if the server answers with an error, which `failed` counts for its cell.

        Several errors and no answer are not the prompts' fault: then the last error is raised, unless `may_fail`.
        """
        request = self._asking.request(prompt)
        try:
            recording = self._undisturbed(partial(record, _asked(main), prompt.id, request))
        except ServerDiedError:
            raise
        except RequestError as error:
            if isinstance(error, NoAnswerError):
                in_time, self._in_time = self._in_time, False
                if not (in_time and isinstance(error, LateAnswerError)):
                    raise
                # Each further request would take as long. Other errors may be those of the requests in token ids alone.
                self._context.pairing.note_late(cell.cell.key, prompt.id, error.message)
            failed[cell.cell.key] += 1
            if not may_fail and failed.total() > MOST_FAILING:
                raise
            self._context.progress.tell(f"{prompt.id} is not predicted: {error.message}")
            return None
        self._in_time = True
        if len(recording.answer_ids) > 1:
            self._asking.learn(recording.prompt_ms / len(recording.prompt_ids), recording.token_ms)
        self._keep(cell, RECORDING, prompt.id, recording.to_json())
        return recording

    def _pace(self, found: Mapping[str, Mapping[str, Recording]]) -> None:
        """Let the tune expect requests without drafting to take what the recorded ones took, cut as most of a pair's are."""
        times_ms = [r.token_ms for own in found.values() for r in own.values() if len(r.answer_ids) > 1]
        if not times_ms or min(times_ms) <= 0.0:
            return
        for cell in self._cells:
            for prompt in self._prompts(cell):
                r = found[cell.cell.key].get(prompt.id)
                if r is not None and len(r.answer_ids) > 1:
                    most = self._context.pairing.off_length.most(prompt, min(times_ms))
                    cut_ms = 0.0 if most is None else r.token_ms * max(0, len(r.answer_ids) - most)
                    seconds = (r.wall_ms - cut_ms) / 1000.0
                    self._context.pairing.pace.note(cell.cell.key, OFF, seconds, prompt.size_bytes)

    def _recorded(self, found: Mapping[str, Mapping[str, Recording]], of: int) -> None:
        """Report how many answers are recorded."""
        left_s = self._context.budget.until_end_s
        done = sum(map(len, found.values()))
        self._context.progress.step(TuneStep("record", OFF, 1, 1, done, of, left_s))

    def _first(self, main: _Main) -> Recording:
        """The request that every launch answers first, before it counts as launched."""
        cell = self._cells[0]
        if (known := _read(Recording.from_json, self._stored(cell, _CANARY).get(_CANARY))) is not None:
            return known
        recorded = record(_asked(main), _CANARY, canary(OFF))
        for each in self._cells:
            self._keep(each, _CANARY, _CANARY, recorded.to_json())
        return recorded

    def _batches(self, main: _Main, recordings: Sequence[Recording]) -> dict[int, float]:
        path, largest = self._context.launches.model_path, self._widest + 1
        # Under the plain name, earlier versions stored times of a server that splits or repeats batches.
        name = f"{_MAIN}/whole" if timed_apart(path) else _MAIN
        stored = self._stored_times(name)
        typical = typical_of(recordings)
        read_ms = typical.prompt_ms / len(typical.prompt_ids)
        # A proof does not try again what the search could not time, nor sizes that only its own prompts have room for.
        again = stored is None or (
            self._hurried and max(stored.batch_ms, default=0) < max(batch_sizes(typical, largest))
        )
        if stored is None or again:
            deeper = partial(self._time_depth, "", name, recordings, read_ms=read_ms)
            stored = DraftPass({}, 0.0, self._timed(main, path, typical, largest, deeper))
            self._keep_times(name, stored)
        if not timed_apart(path):
            self._time_depth("", name, recordings, lambda: _asked(main), stored.batch_ms, read_ms=read_ms)
        elif again:
            self._depth.known("", name)
        else:
            stored = self._deepened("", name, recordings, stored, largest, read_ms=read_ms)
        return dict(stored.batch_ms)

    def _deepened(
        self,
        draft: str,
        name: str,
        recordings: Sequence[Recording],
        times: DraftPass,
        largest: int,
        *,
        read_ms: float,
    ) -> DraftPass:
        """Stored times, again with what context costs where that is missing of a model with a sliding window.

        Earlier versions timed its batches alone. Launches differ, so one launch times both.
        """
        path = draft or self._context.launches.model_path
        wanted = self._hurried and timed_apart(path) and not keeps_state(path)
        if (
            self._depth.known(draft, name)
            or not wanted
            or self._search_left_s() <= self._context.launches.launch_s
            or self._depth.time(draft, name, recordings, times.batch_ms, read_ms) is None
        ):
            return times
        deeper = partial(self._time_depth, draft, name, recordings, read_ms=read_ms)
        try:
            batch_ms = self._timed_whole(path, typical_of(recordings), largest, deeper)
        except BackendError as error:
            self._context.progress.tell(
                f"The cost of context for {Path(path).name} cannot be timed: {error.message}"
            )
            if isinstance(error, LaunchError) and not error.permanent:
                return times  # the next tune may find the memory, or the port, free
        else:
            if batch_ms:
                times = replace(times, batch_ms=batch_ms)
                self._keep_times(name, times)
        self._depth.give_up(draft, name)
        return times

    def _time_depth(
        self,
        draft: str,
        name: str,
        recordings: Sequence[Recording],
        asked: Callable[[], Tokens],
        near_ms: Mapping[int, float],
        *,
        read_ms: float,
    ) -> None:
        """Time what context costs a model, see `DepthTiming.time`; `asked` computes batches behind a text as they stand."""
        grows = partial(_growing_share, draft or self._context.launches.model_path)
        if self._hurried and (
            time_it := self._depth.time(draft, name, recordings, near_ms, read_ms, grows=grows)
        ):
            self._undisturbed(lambda: time_it(asked()))

    def _timed(
        self, main: _Main, path: str, recording: Recording, largest: int, deeper: _Deeper
    ) -> dict[int, float]:
        """Times of the main model's batches, from whichever server allows it; empty if none does."""
        if not timed_apart(path):
            try:
                return self._undisturbed(partial(time_batches, _asked(main), recording, largest))
            except RequestError:
                pass  # the cache cannot be cut, which the file did not tell
        try:
            return self._timed_whole(path, recording, largest, deeper)
        except BackendError as error:
            self._context.progress.tell(
                f"Batches cannot be timed here; their costs are estimated from launches: {error.message}"
            )
            return {}

    def _timed_whole(
        self, path: str, recording: Recording, largest: int, deeper: _Deeper = lambda *_: None
    ) -> dict[int, float]:
        """Times of batches from a launch that neither splits nor repeats them, for models whose usual server does.

        `deeper` gets the launch where it computes batches behind a text, and their times.
        """
        with self._context.launches.alone(path, WHOLE_BATCHES) as server:
            if (tokens := server.tokens) is None:
                raise BackendError(f"{server.base_url} does not accept token ids as a prompt.")
            timed = partial(time_batches, tokens, recording, largest)
            if not keeps_state(path):
                try:
                    times = self._undisturbed(timed)
                except RequestError:
                    pass  # this build has no full-size cache for sliding-window attention
                else:
                    deeper(lambda: tokens, times)
                    return times
            return self._undisturbed(partial(timed, behind=False))

    def _passes(self, recordings: dict[str, dict[str, Recording]]) -> dict[str, DraftPass]:
        passes: dict[str, DraftPass] = {}
        arms = [a for a in self._context.space.arms if a.mode is Mode.DRAFT_MODEL and a.engine is None]
        drafts = [a.draft for a in arms if a.draft is not None]
        if self._drafts is not None:
            drafts = [d for d in drafts if d in self._drafts]
        left_s = self._search_left_s()
        unread = []
        for number, draft in enumerate(drafts, start=1):
            if self._over and not self._has_read(draft, recordings):
                unread.append(Path(draft).name)
                continue
            budget_s = self._context.budget.until_end_s
            answers = sum(map(len, recordings.values()))
            self._context.progress.step(TuneStep("read", OFF, number, len(drafts), 0, answers, budget_s))
            # The next drafts may use the time that a quick draft leaves.
            until_s = left_s * (1.0 - _PASSES_SHARE * number / len(drafts))
            try:
                passes[draft] = self._pass(draft, recordings, partial(self._late, until_s))
                if number < len(drafts):
                    self._note_fastest(draft, passes[draft], recordings)
            except BackendError as error:
                name = Path(draft).name
                self._context.progress.tell(
                    f"{name} cannot run alone, so its settings are measured instead: {error.message}"
                )
        if unread:
            self._context.progress.tell(
                f"No time is left to run {listed(unread)} alone: their settings are not predicted."
            )
        return passes

    def _has_read(self, draft: str, recordings: Mapping[str, Mapping[str, Recording]]) -> bool:
        """Whether the store has all that a draft says of the recorded answers."""
        identity = self._context.space.draft_id(draft)
        times = self._stored_times(identity)
        return (
            times is not None
            and bool(times.batch_ms)
            and all(
                f"{identity}/{name}" in self._stored(cell, "profile")
                for cell in self._cells
                for name in recordings[cell.cell.key]
            )
        )

    def _search_left_s(self) -> float:
        return self._context.budget.part_left_s(self._context.definition.search_share)

    @property
    def _over(self) -> bool:
        """Whether the search's time is spent."""
        return self._hurried and self._search_left_s() <= 0.0

    def _late(self, until_s: float) -> bool:
        return self._hurried and self._search_left_s() < until_s

    def _pass(
        self, draft: str, recordings: dict[str, dict[str, Recording]], late: Callable[[], bool]
    ) -> DraftPass:
        identity = self._context.space.draft_id(draft)
        profiles, missing = self._stored_profiles(identity, recordings)
        times = self._stored_times(identity)
        every = [r for own in recordings.values() for r in own.values()]
        # A dropped draft's batches were not timed.
        if not missing and times is not None and times.batch_ms:
            typical = typical_of(every)
            read_ms = profiles[typical.prompt_id].draft_prompt_ms / len(typical.prompt_ids)
            times = self._deepened(draft, identity, every, times, self._longest + 1, read_ms=read_ms)
            return replace(times, profiles=profiles)
        if times is not None and self._hopeless(draft, recordings, profiles, times.step_ms):
            return replace(times, profiles=profiles, hopeless=True)
        name = Path(draft).name
        answers = counted(len(missing), "answer")
        self._context.progress.tell(f"Running {name} alone on {answers}.")
        # One answer of every cell is read while the search has time: without it there is no prediction for the cell.
        lacking = {c.cell.key for c, _ in missing} - {
            c.cell.key for c in self._cells if profiles.keys() & recordings[c.cell.key].keys()
        }
        # If no answers are left to read, only the times are missing: the typical answer gives them.
        todo = [r for _, r in missing] or [typical_of(every)]
        # A sliding-window cache is kept whole; a recurrent state needs its checkpoints, or restarts at every miss.
        state = keeps_state(draft)
        more = WHOLE_BATCHES if timed_apart(draft) and not state else ()
        # The search has timed this draft; a proof needs only what it says of more answers.
        timed = times if times is not None and times.batch_ms and not self._hurried else None
        with self._context.launches.alone(draft, more) as server:
            if (tokens := server.tokens) is None:
                raise BackendError(f"{server.base_url} does not accept token ids as a prompt.")
            owners = {recording.prompt_id: cell for cell, recording in missing}

            def keep(profile: AnswerProfile) -> None:
                profiles[profile.prompt_id] = profile
                if profile.prompt_id in owners:
                    name = f"{identity}/{profile.prompt_id}"
                    self._keep(owners[profile.prompt_id], "profile", name, profile.to_json())

            with self._scorer(tokens, draft, todo) as scorer:
                made = self._undisturbed(
                    partial(
                        pass_of,
                        tokens,
                        todo,
                        longest=self._longest,
                        scorer=scorer,
                        p_min=self._context.launches.takes_p_min,
                        timed=not state and timed is None,
                        keep=keep,
                        enough=lambda read: self._over or (read >= len(lacking) and late()),
                        hopeless=partial(self._hopeless, draft, recordings, profiles),
                    )
                )
            if timed is not None:
                return replace(timed, profiles=profiles, hopeless=made.hopeless)
            if not made.hopeless and not state:
                read = next(r for r in todo if r.prompt_id in made.profiles)
                read_ms = made.profiles[read.prompt_id].draft_prompt_ms / len(read.prompt_ids)
                self._time_depth(draft, identity, todo, lambda: tokens, made.batch_ms, read_ms=read_ms)
        if state and not made.hopeless:
            batches = self._timed_whole(draft, typical_of(todo), self._longest + 1)
            made = replace(made, batch_ms=batches)
        self._keep_times(identity, made)
        return replace(made, profiles=profiles)

    def _stored_profiles(
        self, identity: str, recordings: dict[str, dict[str, Recording]]
    ) -> tuple[dict[str, AnswerProfile], list[tuple[CellRun, Recording]]]:
        """What a draft said of the answers that it has read, and the answers that it has not read."""
        profiles: dict[str, AnswerProfile] = {}
        missing: list[tuple[CellRun, Recording]] = []
        for cell, recording in _by_turns([(c, recordings[c.cell.key].values()) for c in self._cells]):
            data = self._stored(cell, "profile").get(f"{identity}/{recording.prompt_id}")
            if (profile := _read(AnswerProfile.from_json, data)) is not None:
                profiles[recording.prompt_id] = profile
            else:
                missing.append((cell, recording))
        return profiles, missing

    def _hopeless(
        self,
        draft: str,
        recordings: Mapping[str, Mapping[str, Recording]],
        profiles: Mapping[str, AnswerProfile],
        step_ms: float,
    ) -> bool:
        """Whether a draft need not read further: it has read some answers of each cell, and none of its draftings pays."""
        found = [[r for r in own.values() if r.prompt_id in profiles] for own in recordings.values() if own]
        read = [r for own in found for r in own if len(r.answer_ids) > 1]
        if len(self._batch_ms) < 2 or len(read) < _FIRST_ANSWERS or not all(found):
            return False
        answers, costs = self._replayed(draft, read, profiles, step_ms)
        if nothing_pays(answers, costs, self._context.definition.rule.threshold):
            why = "none of its settings pays"
        elif beaten(answers, costs, {name: ms for name, (ms, _) in self._fastest.items()}):
            rivals = dict.fromkeys(Path(self._fastest[r.prompt_id][1]).name for r in read)
            why = f"{' or '.join(rivals)} is faster"
        else:
            return False
        self._context.progress.tell(f"{Path(draft).name} is dropped: on its first {len(read)} answers {why}.")
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
        """Keep the times that the next drafts have to beat."""
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

    def _undisturbed(self, work: Callable[[], _T]) -> _T:
        """Do timed work; repeat it once if other programs disturbed it and have now finished."""
        # A draft that is timed beside a busy program would look several times as expensive, and be ruled out.
        self._asking.watch.start()
        result = work()
        again = self._context.pairing.calm.after(self._asking.watch.finish())
        return work() if again else result

    def _scorer(
        self, tokens: Tokens, draft: str, recordings: Sequence[Recording]
    ) -> AbstractContextManager[Scorer | None]:
        """A scorer that reads an answer in one evaluation: the launch itself, or an installed one, or none."""
        if isinstance(tokens, Scorer):
            return nullcontext(tokens)
        longest = max(len(r.prompt_ids) + len(r.answer_ids) for r in recordings)
        return self._context.launches.scoring(draft, longest + self._longest + 1)

    def _stored_times(self, name: str) -> DraftPass | None:
        for cell in self._cells:
            if (times := _read(DraftPass.from_json, self._stored(cell, "times").get(name))) is not None:
                return times
        return None

    def _keep_times(self, name: str, times: DraftPass) -> None:
        self._keep_in_all(name, replace(times, profiles={}).to_json())

    def _stored_depth(self, name: str) -> dict[str, Any] | None:
        return next((data for c in self._cells if (data := self._stored(c, "times").get(name))), None)

    def _keep_in_all(self, name: str, data: dict[str, Any]) -> None:
        for cell in self._cells:
            self._keep(cell, "times", name, data)

    def _stored(self, cell: CellRun, kind: str) -> dict[str, dict[str, Any]]:
        """What the store had of a cell when it was first asked: nothing that is kept here is read again."""
        place = (cell.cell.key, kind)
        if place not in self._surveys:
            self._surveys[place] = self._store.surveys(cell.cell.key, self._protocol, kind)
        return self._surveys[place]

    def _keep(self, cell: CellRun, kind: str, name: str, data: dict[str, object]) -> None:
        self._store.add_survey(cell.cell.key, self._protocol, kind, name, data)


def _by_turns(columns: Iterable[tuple[CellRun, Iterable[_T]]]) -> list[tuple[CellRun, _T]]:
    """The first of every cell, then the second of every cell."""
    rows = zip_longest(*([(cell, own) for own in all_own] for cell, all_own in columns))
    return [place for row in rows for place in row if place is not None]


def _read(from_json: Callable[[dict[str, Any]], _T], data: dict[str, Any] | None) -> _T | None:
    """The stored value; ``None`` if there is none or another version wrote it: then it is made again."""
    try:
        return None if data is None else from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _asked(main: _Main) -> Tokens:
    tokens = main()
    if tokens is None:
        raise BackendError("This server does not accept token ids as a prompt.")
    return tokens
