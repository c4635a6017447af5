"""Predict one main model's draftings from recordings and passes of drafts, and correct the costs by launches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from autospec.backends.protocol import Cycle
from autospec.drafting import Drafting, Mode
from autospec.measure.measurements import AS_MEASURED, Measurement, Pair, Shapes
from autospec.predict.costs import LAUNCH_NOISE, CostCurve, Observation, first_guess, refit
from autospec.predict.ngram import SIMULATED, Pool, pool_of, replay_tokens
from autospec.predict.prediction import PredictedAnswer, Prediction, expected, predict, replay_drafts, shrink
from autospec.predict.profile import Counts, Recording, proposals, stacked
from autospec.predict.recording import DraftPass

__all__ = ["Check", "Predictor", "predictable"]

Floats = npt.NDArray[np.float64]

# The least noise of one pair's log-ratio on a machine in use; deviations from prediction are compared with it.
_PAIR_NOISE = 0.05
# Deviations of this many standard errors are too rare by chance to matter.
_DISTRUST = 3.0
# If a launch had other times than predicted but the replayed cycles, the costs were wrong and not the replay. The standard
# deviations of their first guess grow by this factor.
_LESS_SURE = 3.0
# Drafted and accepted tokens of a launch may differ from the replayed ones by this part: batches round differently.
_COUNTS_ALIKE = 0.1
# An answer without drafting that takes this many times as long as before was disturbed: its pair would overrate the drafting. An answer
# with drafting that takes so much longer than the launch's others suggest was disturbed, too: it would underrate it.
_STALLED = 1.3
# A draft beside its main model takes at most this many times as long for a prompt as alone.
_MOST_PROMPT_FACTOR = 5.0
# The draft-free modes share their costs, since none has a draft model.
_NO_DRAFT = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A prediction compared with the measurement of the same prompts.

    Attributes:
        drafting: The launched drafting.
        predicted: Speed ratio to the baseline, predicted before this launch.
        measured: The measured speed ratio.
        agrees: False if the costs, or the replay, were wrong.
        costs_alone: True if the launch had the replayed cycles: only the costs were wrong, and the launch corrects them.
        refused: Why the launch did not correct the costs, a sentence; else empty.
    """

    drafting: Drafting
    predicted: float
    measured: float
    agrees: bool
    costs_alone: bool = False
    refused: str = ""


def predictable(drafting: Drafting) -> bool:
    """True if the drafting can be predicted once its draft, if it has one, was read over answers."""
    model, *beside = drafting.parts
    if drafting.engine is not None:
        return False
    if model.mode is Mode.DRAFT_MODEL:
        return all(d.mode in SIMULATED for d in beside)
    return model.mode in SIMULATED and not beside


class Predictor:
    """Predicts every drafting of a space for the prompts that were recorded.

    Args:
        recordings: Cell key → its recorded answers. One launch answered all of them, in the order of `stream`.
        stream: All recorded answers as (cell key, prompt id) in the order of a launch's requests: some draft-free modes
            remember earlier requests.
        batch_ms: Tokens in a batch → milliseconds of the main model.
        passes: Draft's path → its pass.
        longest: Most tokens that any drafting proposes in a cycle.
        first: The request that every launch answers first, if there is one: pools remember it.
        cycle: The backend's cycle.
        shapes: Cell key → the requests that its answers stand for; left out, the measured requests.
        uncut: True if the main model's cache cannot be cut, so the server computes a partly accepted draft again.
        rows: See `first_guess`; 0 if batches are timed as they are verified.
    """

    def __init__(
        self,
        recordings: Mapping[str, Sequence[Recording]],
        stream: Sequence[tuple[str, str]],
        batch_ms: Mapping[int, float],
        passes: Mapping[str, DraftPass],
        longest: int,
        *,
        first: Recording | None = None,
        cycle: Cycle = Cycle.LLAMA_CPP,
        shapes: Mapping[str, Shapes] | None = None,
        uncut: bool = False,
        rows: float = 0.0,
    ) -> None:
        # An answer of one token has no token generation to predict.
        self._by_prompt = {
            (key, r.prompt_id): r for key, found in recordings.items() for r in found if len(r.answer_ids) > 1
        }
        # The times of each answer without drafting, one for each time that it was asked.
        self._off_times = {place: [_off_times(r)] for place, r in self._by_prompt.items()}
        self._stream = [place for place in stream if place in self._by_prompt]
        self._passes = passes
        self._first = first
        self._cycle = cycle
        self._shapes = shapes or {}
        self._uncut = uncut
        plain_ms = statistics.median(r.token_ms for r in self._by_prompt.values())
        guess = partial(first_guess, plain_ms, batch_ms, rows=rows, saves_state=uncut)
        guesses = {path: guess(self._verified_by_draft(p), p.step_ms, longest) for path, p in passes.items()}
        guesses[_NO_DRAFT] = guess({}, 0.0, longest)
        self._guesses: dict[str, CostCurve] = guesses
        self._curves: dict[str, CostCurve] = dict(guesses)
        self._observations: dict[str, list[Observation]] = {path: [] for path in guesses}
        # The draft's measured and guessed additions to prompt processing.
        self._added_prompt_ms: dict[str, list[tuple[float, float]]] = {path: [] for path in guesses}
        self._distrusted: set[str] = set()
        self._ngram_counts: dict[Drafting, dict[tuple[str, str], Counts]] = {}
        # Of single draftings: a launched one is asked for again and again, and replayed cycles never change.
        self._draft_counts: dict[tuple[tuple[str, str], Drafting], Counts] = {}

    def covers(self, drafting: Drafting) -> bool:
        """True if the drafting can be predicted: its draft was read over the answers, or it needs none."""
        if not predictable(drafting):
            return False
        return drafting.mode is not Mode.DRAFT_MODEL or (drafting.draft or "") in self._passes

    def trusts(self, drafting: Drafting) -> bool:
        """True if predictions for this draft have agreed with the measurements so far."""
        return self.covers(drafting) and _costs_of(drafting) not in self._distrusted

    def hopeless(self, drafting: Drafting) -> bool:
        """True if its draft was dropped after the first answers that it read."""
        return (
            drafting.mode is Mode.DRAFT_MODEL
            and self.covers(drafting)
            and self._passes[drafting.draft or ""].hopeless
        )

    def costs(self, drafting: Drafting) -> CostCurve:
        """The current cost curve of a drafting."""
        return self._curves[_costs_of(drafting)]

    def predict(self, cell_key: str, draftings: Sequence[Drafting]) -> dict[Drafting, Prediction]:
        """Predict draftings for one cell, without those that are not covered; empty for a cell without recordings."""
        recordings = self._of(cell_key)
        found: dict[Drafting, Prediction] = {}
        if not recordings:
            return found
        for path, group in self._groups(draftings):
            answers = [
                self._answer(cell_key, path, r, self._counts(cell_key, r, group))
                for r in recordings
                if self._read(path, r)
            ]
            if not answers:
                continue
            for p in predict(group, answers, self._curves[path]):
                found[p.drafting] = p
        return found

    def compare(self, draftings: Sequence[Drafting]) -> dict[str, dict[Drafting, Prediction]]:
        """Predict draftings for every cell, to choose among them; see `prediction.shrink`.

        Returns:
            Cell key → the result of `predict`, pulled towards the other cells' pattern.
        """
        keys = dict.fromkeys(key for key, _ in self._by_prompt)
        found = {key: self.predict(key, draftings) for key in keys}
        for _, group in self._groups(draftings):
            found = shrink(found, group)
        return found

    def counts(self, cell_key: str, prompt_id: str, drafting: Drafting) -> Counts | None:
        """The replayed cycles of one drafting in one recorded answer; ``None`` if unknown."""
        recording = self._by_prompt.get((cell_key, prompt_id))
        if recording is None or not self.covers(drafting) or not self._read(_costs_of(drafting), recording):
            return None
        return self._counts(cell_key, recording, [drafting])

    def observe(self, drafting: Drafting, pairs: Sequence[Pair]) -> Check | None:
        """Compare a launch with its prediction, then correct the costs by it.

        Args:
            drafting: The launched drafting.
            pairs: Its pairs, of any cells; those of prompts that were not recorded are ignored. Those with other cycles than the
                replayed ones correct no costs, and are compared if there are no others.

        Returns:
            The comparison, or ``None`` if there was nothing to compare.
        """
        path = _costs_of(drafting)
        known = [
            (pair, counts)
            for pair in pairs
            if (counts := self.counts(pair.off.cell_key, pair.off.prompt_id, drafting)) is not None
            and self._as_recorded(pair)
        ]
        if not known:
            return None
        # Another text hides the error of the costs. If all have another one, as at a temperature, it is still what users get.
        alike = [(pair, counts) for pair, counts in known if pair.same_text or _replayed([(pair, counts)])]
        check = self._check(drafting, path, alike or known)
        if check.costs_alone:
            guess = self._guesses[path]
            self._guesses[path] = replace(guess, covariance=guess.covariance * _LESS_SURE**2)
        elif not check.agrees:
            self._distrusted.add(path)
        curve = self._guesses[path]
        for pair, counts in known:
            recording = self._by_prompt[pair.off.cell_key, pair.off.prompt_id]
            if pair.off.predicted_tokens < 2 or pair.off.predicted_ms <= 0 or _stalled(pair, recording):
                continue  # without a time of token generation, or disturbed
            scale = pair.off.predicted_ms / (pair.off.predicted_tokens - 1) / curve.plain_ms
            verified, steps = counts.after_first_token
            # An answer that came as a whole with its first cycle has no time of token generation. One with other cycles than the
            # replayed ones has their time.
            if verified.any() and pair.drafted.predicted_ms > 0 and _has_cycles(pair, counts):
                self._observations[path].append(
                    Observation(
                        verified[0].astype(np.float64),
                        float(steps[0]),
                        scale,
                        pair.drafted.predicted_ms,
                        pair.drafted.launch_id,
                    )
                )
            guessed = self._guessed_prompt_ms(path, recording)
            # Where the first token comes with a cycle, its time is known for the replayed one only.
            if guessed > 0 and (counts.opening is None or _has_cycles(pair, counts)):
                added = pair.drafted.prompt_ms - pair.off.prompt_ms - self._opening_ms(path, scale, counts)
                self._added_prompt_ms[path].append((added, guessed))
            self._ask_again(pair)
        self._curves[path] = refit(curve, self._observations[path])
        return replace(check, refused=self._curves[path].refused)

    def deviations(self, drafting: Drafting, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, float]:
        """Mean of ln(measured ÷ predicted) over one launch's pairs of each cell, with the current costs; 0 without known pairs.

        If a single answer had the replayed cycles and took much longer than the launch's others, it was disturbed: it counts as
        they do.
        """
        found: dict[str, list[tuple[float, bool]]] = {key: [] for key in pairs}
        for key, own in pairs.items():
            for pair in own:
                if (counts := self.counts(key, pair.off.prompt_id, drafting)) is not None:
                    recording = self._by_prompt[key, pair.off.prompt_id]
                    foreseen, _ = self._expected(key, drafting, recording, counts)
                    found[key].append((_log_ratio(pair, recording) - foreseen, _replayed([(pair, counts)])))
        every = [value for own in found.values() for value, _ in own]
        usual = statistics.median(every) if len(every) > 2 else -math.inf
        least = usual - math.log(_STALLED)
        slow = [value for value in every if value < least]
        return {
            key: statistics.fmean(
                usual if [value] == slow and replayed else value for value, replayed in told
            )
            if told
            else 0.0
            for key, told in found.items()
        }

    def log_ratios(self, cell_key: str, drafting: Drafting) -> dict[str, float]:
        """Prompt id → expected ln(speed ÷ baseline) of every recorded answer; empty if unknown."""
        found = {}
        for recording in self._of(cell_key):
            counts = self.counts(cell_key, recording.prompt_id, drafting)
            if counts is not None:
                found[recording.prompt_id] = self._expected(cell_key, drafting, recording, counts)[0]
        return found

    def acceptance_by_position(self, cell_key: str, drafting: Drafting) -> list[float]:
        """Acceptance rate of the draft's token at place 1, 2, … over the cycles with a draft; empty without drafts."""
        counts = [
            c for r in self._of(cell_key) if (c := self.counts(cell_key, r.prompt_id, drafting)) is not None
        ]
        if not counts:
            return []
        total = stacked(counts)
        cycles = int(total.drafts.sum())
        return [float(a) / cycles for a in total.by_position.sum(axis=0)] if cycles else []

    def _as_recorded(self, pair: Pair) -> bool:
        """True if both answers are as long as the recorded one: another text has other cycles."""
        recorded = len(self._by_prompt[pair.off.cell_key, pair.off.prompt_id].answer_ids)
        told = (pair.off.predicted_tokens, pair.drafted.predicted_tokens)
        # Some builds count the token that ends an answer, and some do not.
        return recorded > 1 and all(abs(n - recorded) <= 1 for n in told)

    def _answer(self, cell_key: str, path: str, recording: Recording, counts: Counts) -> PredictedAnswer:
        shape = self._shapes.get(cell_key, AS_MEASURED).of(
            recording.prompt_id,
            prompt_tokens=len(recording.prompt_ids),
            answer_tokens=len(recording.answer_ids),
            ended=recording.ended,
        )
        return PredictedAnswer(recording, counts, self._draft_prompt_ms(path, recording), shape, path)

    def _expected(
        self, cell_key: str, drafting: Drafting, recording: Recording, counts: Counts
    ) -> tuple[float, Floats]:
        """Expected ln(speed ÷ baseline) of one answer, and its slope by the costs' relative errors."""
        path = _costs_of(drafting)
        log_ratios, slopes = expected(self._answer(cell_key, path, recording, counts), self._curves[path])
        return float(log_ratios[0]), slopes[0]

    def _check(self, drafting: Drafting, path: str, known: Sequence[tuple[Pair, Counts]]) -> Check:
        deviations, predicted, slopes = [], [], []
        curve = self._curves[path]
        for pair, counts in known:
            recording = self._by_prompt[pair.off.cell_key, pair.off.prompt_id]
            foreseen, slope_here = self._expected(pair.off.cell_key, drafting, recording, counts)
            predicted.append(foreseen)
            slopes.append(slope_here)
            deviations.append(_log_ratio(pair, recording) - foreseen)
        slope = np.mean(slopes, axis=0)
        sides = [
            [m.launch_id for m in side] for side in zip(*((p.off, p.drafted) for p, _ in known), strict=True)
        ]
        scatter = max(_PAIR_NOISE**2, statistics.variance(deviations) if len(known) > 2 else 0.0)
        noise = scatter / len(known) + sum(LAUNCH_NOISE**2 / len(set(side)) for side in sides)
        spread = float(slope @ curve.covariance @ slope) + noise
        # The median of three and more: one disturbed answer must not refute the costs.
        middle = statistics.median(deviations) if len(deviations) > 2 else statistics.fmean(deviations)
        agrees = abs(middle / math.sqrt(spread)) <= _DISTRUST
        return Check(
            drafting=drafting,
            predicted=math.exp(statistics.fmean(predicted)),
            measured=math.exp(statistics.fmean(pair.log_ratio for pair, _ in known)),
            agrees=agrees,
            costs_alone=not agrees and _replayed(known),
        )

    def _groups(self, draftings: Sequence[Drafting]) -> list[tuple[str, list[Drafting]]]:
        """The covered draftings with the name of their costs, grouped by costs and by how they are replayed."""
        groups: dict[tuple[str, bool], list[Drafting]] = {}
        for drafting in draftings:
            if self.covers(drafting):
                groups.setdefault((_costs_of(drafting), bool(drafting.beside)), []).append(drafting)
        return [(path, group) for (path, _), group in groups.items()]

    def _of(self, cell_key: str) -> list[Recording]:
        return [r for (key, _), r in self._by_prompt.items() if key == cell_key]

    def _ask_again(self, pair: Pair) -> None:
        """Update the recorded times: every pair times the answer without drafting again, and a recording may be disturbed."""
        place = (pair.off.cell_key, pair.off.prompt_id)
        self._off_times[place].append(_off_times(pair.off))
        # The quicker of two: a disturbance only adds time.
        times = sorted(self._off_times[place], key=lambda t: t[2])
        prompt, predicted, wall = times[(len(times) - 1) // 2]
        self._by_prompt[place] = replace(
            self._by_prompt[place], prompt_ms=prompt, predicted_ms=predicted, wall_ms=wall
        )

    def _read(self, path: str, recording: Recording) -> bool:
        """True if the draft was read over this answer: there may have been time for some answers only."""
        return not path or recording.prompt_id in self._passes[path].profiles

    def _counts(self, cell_key: str, recording: Recording, draftings: Sequence[Drafting]) -> Counts:
        first, place = draftings[0], (cell_key, recording.prompt_id)
        if first.mode is not Mode.DRAFT_MODEL or first.beside:
            return stacked([self._stream_counts(d)[place] for d in draftings])
        if len(draftings) == 1 and (known := self._draft_counts.get((place, first))) is not None:
            return known
        profile = self._passes[first.draft or ""].profiles[recording.prompt_id]
        counts = replay_drafts(profile, draftings, recording.max_tokens, self._cycle, uncut=self._uncut)
        if len(draftings) == 1:
            self._draft_counts[place, first] = counts
        return counts

    def _stream_counts(self, drafting: Drafting) -> dict[tuple[str, str], Counts]:
        """A drafting with draft-free modes over all requests in a launch's order."""
        if drafting not in self._ngram_counts:
            pool = pool_of(drafting)
            if self._first is not None:
                # Without its draft model, which was not read over this request: the pool sees the same text.
                replay_tokens(pool, self._first, uncut=self._uncut)
            self._ngram_counts[drafting] = {
                place: self._stream_request(pool, drafting, self._by_prompt[place]) for place in self._stream
            }
        return self._ngram_counts[drafting]

    def _stream_request(self, pool: Pool, drafting: Drafting, recording: Recording) -> Counts:
        known = self._passes[drafting.draft].profiles if drafting.draft else {}
        profile = known.get(recording.prompt_id)
        model = (
            None
            if profile is None
            else proposals(profile, drafting.n_max or 1, drafting.p_min or 0.0, drafting.n_min or 0)
        )
        return replay_tokens(pool, recording, uncut=self._uncut, model=model)

    def _verified_by_draft(self, known: DraftPass) -> Mapping[int, float]:
        """The draft's batch times for verified tokens; empty if the backend's draft does not compute them."""
        return known.batch_ms if self._cycle is Cycle.LLAMA_CPP else {}

    def _opening_ms(self, path: str, scale: float, counts: Counts) -> float:
        """Milliseconds that a first cycle adds to the first token's time without drafting."""
        if counts.opening is None:
            return 0.0
        curve, k = self._curves[path], int(counts.opening[0])
        return scale * float(curve.verify_ms[k] + k * curve.step_ms - curve.plain_ms)

    def _guessed_prompt_ms(self, path: str, recording: Recording) -> float:
        if not path:
            return 0.0
        known = self._passes[path]
        # A draft alone computes the prompt's last token with the prompt. In mlx_lm's cycle that token is its first step.
        counted = known.step_ms if self._cycle is Cycle.MLX_LM else 0.0
        return max(0.0, known.profiles[recording.prompt_id].draft_prompt_ms - counted)

    def _draft_prompt_ms(self, path: str, recording: Recording) -> float:
        guessed = self._guessed_prompt_ms(path, recording)
        if not self._added_prompt_ms[path]:
            return guessed
        added, guesses = np.median(self._added_prompt_ms[path], axis=0)
        # Guesses of short prompts are near zero, and a factor to them would be arbitrary.
        factor = min(max(float(added / guesses), 0.0), _MOST_PROMPT_FACTOR) if guesses >= 1.0 else 1.0
        return guessed * factor


def _log_ratio(pair: Pair, recording: Recording) -> float:
    """ln(speed ÷ baseline) of the pair's request, from the recorded baseline's times if this one was disturbed."""
    if not _stalled(pair, recording):
        return pair.log_ratio
    # A stall of the short measured request is longer or shorter in the pair's request, so the times are replaced.
    off = replace(
        pair.off,
        prompt_tokens=len(recording.prompt_ids),
        predicted_tokens=len(recording.answer_ids),
        prompt_ms=recording.prompt_ms,
        predicted_ms=recording.predicted_ms,
        wall_ms=recording.wall_ms,
    )
    return replace(pair, off=off).log_ratio


def _stalled(pair: Pair, recording: Recording) -> bool:
    return pair.off.wall_ms > _STALLED * recording.wall_ms > 0


def _replayed(known: Sequence[tuple[Pair, Counts]]) -> bool:
    """True if a launch drafted and accepted as replayed; false if the server does not report that."""
    told = [(p.drafted.drafted, p.drafted.accepted) for p, _ in known]
    if any(drafted is None or accepted is None for drafted, accepted in told):
        return False
    measured = np.array(told, dtype=np.float64).sum(axis=0)
    replayed = np.array([(c.drafted[0], c.accepted[0]) for _, c in known], dtype=np.float64).sum(axis=0)
    return bool((np.abs(measured - replayed) <= _COUNTS_ALIKE * replayed + 2.0 * len(known)).all())


def _has_cycles(pair: Pair, counts: Counts) -> bool:
    """True if one answer had the replayed cycles; where the server does not report that, if its text is the same."""
    if pair.drafted.drafted is None or pair.drafted.accepted is None:
        return pair.same_text
    return _replayed([(pair, counts)])


def _off_times(asked: Recording | Measurement) -> tuple[float, float, float]:
    return asked.prompt_ms, asked.predicted_ms, asked.wall_ms


def _costs_of(drafting: Drafting) -> str:
    return drafting.draft or _NO_DRAFT
