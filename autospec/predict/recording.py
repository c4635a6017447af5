"""Get from running servers what prediction needs: recordings, passes of draft models, batch times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from typing import Any, Self

from autospec.backends.protocol import Request, Tokens
from autospec.errors import RequestError
from autospec.measure.measurements import DepthRise, rise_of
from autospec.predict.profile import AnswerProfile, Recording, Scorer, profile_answer, profile_scored

__all__ = [
    "DraftPass",
    "batch_sizes",
    "pass_of",
    "record",
    "time_batches",
    "time_depth",
    "typical_of",
]

# Sizes of the timed batches, up to the space's largest; the cost curve is linear in between. Kernels change between 8 and 9
# tokens on GPUs (llama.cpp's ggml-cuda `MMVQ_MAX_BATCH_SIZE`, ggml-metal's mul_mv_ext), and at multiples of four elsewhere.
_BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 25, 33, 49, 65)
# Where a larger batch takes less time than a smaller one, every size up to this is timed: ggml-cpu computes repacked weights four
# tokens at a time, and those that are left one by one.
_ALL_UP_TO = 17
# Sizes that are timed behind a longer context too: what it adds is a line over them.
_DEEP_BATCHES = (1, 2, 5, 9, 17)
# The median of so many times counts: some requests may be disturbed. Fewer are enough where they agree, and still fewer where
# a batch takes so long that a short disturbance does not change its time.
_REPEATS = 5
_LEAST_REPEATS = 3
_LEAST_REPEATS_OF_LONG = 2
_LONG_MS = 200.0
# Times of one batch agree if the longest exceeds the shortest by no more than this.
_ALIKE = 0.05
# Answer tokens before a timed batch, so that batches follow a text and not only a prompt.
_LEAD = 4
# Misses of an answer whose whole continuation is kept.
_SAMPLED_MISSES = 8
# Tokens that the draft generates to time its steps.
_TIMED_STEPS = 17


@dataclass(frozen=True, slots=True)
class DraftPass:
    """One draft model over all recorded answers, with its own times.

    Attributes:
        profiles: Prompt id → profile.
        step_ms: Time of one generated token.
        batch_ms: Tokens in a batch → milliseconds.
        hopeless: True if none of its draftings can pay on the first answers, so it read no more of them.
    """

    profiles: Mapping[str, AnswerProfile]
    step_ms: float
    batch_ms: Mapping[int, float]
    hopeless: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the store."""
        return {
            "profiles": [p.to_json() for p in self.profiles.values()],
            "step_ms": self.step_ms,
            "batch_ms": {str(k): v for k, v in self.batch_ms.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        profiles = [AnswerProfile.from_json(p) for p in data["profiles"]]
        return cls(
            profiles={p.prompt_id: p for p in profiles},
            step_ms=float(data["step_ms"]),
            batch_ms={int(k): float(v) for k, v in data["batch_ms"].items()},
        )


def record(tokens: Tokens, prompt_id: str, request: Request) -> Recording:
    """Let the main model answer one prompt, and keep the token ids.

    Args:
        tokens: The main model, without drafting.
        prompt_id: The suite's id.
        request: The same as in every measurement of this prompt.

    Raises:
        RequestError: The server cannot be asked in token ids, or refused.
        ServerDiedError: It ended.
    """
    prompt_ids = tokens.encode(request)
    answer = tokens.generate(prompt_ids, request)
    return Recording(
        prompt_id=prompt_id,
        prompt_ids=prompt_ids,
        answer_ids=answer.ids,
        max_tokens=request.max_tokens,
        ended=answer.ended,
        prompt_ms=answer.prompt_ms,
        predicted_ms=answer.predicted_ms,
        wall_ms=answer.wall_ms,
    )


def batch_sizes(recording: Recording, largest: int) -> list[int]:
    """The sizes that `time_batches` times with this recording; a short text leaves out the large ones."""
    text = _text(recording)
    sizes = [b for b in _BATCHES if b < largest] + [largest]
    return [size for size in sizes if len(_different_starts(text, size)) > 1]


def time_batches(
    tokens: Tokens, recording: Recording, largest: int, *, behind: bool = True
) -> dict[int, float]:
    """Milliseconds to compute batches of 1 … `largest` tokens after a recorded prompt, medians of several times.

    Verifying k drafted tokens is a batch of k + 1.

    Args:
        tokens: A main model or a draft, without drafting.
        recording: Its tokens make the batches.
        largest: Tokens in the largest batch.
        behind: False times them without a text before, for a cache that cannot be cut back to the prompt: such a model has
            no or few layers whose cost grows with the text before.

    Raises:
        RequestError: The server computes other tokens than the batch, or refuses.
    """
    text = _text(recording)
    lead = (*recording.prompt_ids, *text[:_LEAD]) if behind else ()
    sizes = batch_sizes(recording, largest)
    times = _timed(tokens, lead, text, sizes) if sizes else {}
    up_to = min(_ALL_UP_TO, largest)
    between = [size for size in range(1, up_to) if size not in times]
    if between and _falls({size: ms for size, ms in times.items() if size <= up_to}):
        times |= _timed(tokens, lead, text, between)
    return times


def time_depth(
    tokens: Tokens, recordings: Sequence[Recording], near_ms: Mapping[int, float], more_tokens: int
) -> DepthRise:
    """What context adds to a batch: the times of `time_batches` against those behind a longer context.

    Args:
        tokens: The same model as for `near_ms`.
        recordings: Their prompts and answers, again and again if they are short, lengthen the context.
        near_ms: The result of `time_batches` for the typical one, with at least two sizes.
        more_tokens: By how many tokens the context is longer.

    Raises:
        RequestError: The server computes other tokens than the batch, or refuses, for example because its context is too short.
    """
    typical = typical_of(recordings)
    text = _text(typical)
    more = islice(cycle([i for r in recordings for i in (*r.prompt_ids[1:], *r.answer_ids)]), more_tokens)
    sizes = [size for size in _DEEP_BATCHES if size in near_ms]
    lead = (*typical.prompt_ids, *text[:_LEAD], *more)
    return rise_of(near_ms, _timed(tokens, lead, text, sizes), more_tokens)


def _timed(
    tokens: Tokens, lead: Sequence[int], text: Sequence[int], sizes: Sequence[int]
) -> dict[int, float]:
    """Tokens in a batch → milliseconds behind `lead`, medians."""
    # Each batch begins with another token than the previous batch, so that only the lead comes from the cache.
    starts = cycle(_different_starts(text, sizes[-1]))
    before = -1
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    # All sizes once, then again: a machine that becomes slower meanwhile does not bend the curve.
    for _ in range(_REPEATS):
        for size in [size for size in sizes if not _settled(taken[size])]:
            k = next(starts)
            if text[k] == before:  # the cycle of places wrapped around
                k = next(starts)
            before = text[k]
            taken[size].append(tokens.batch_ms(lead, text[k : k + size]))
    return {size: statistics.median(times) for size, times in taken.items()}


def _settled(times: Sequence[float]) -> bool:
    """Whether these times of one batch are enough."""
    if not times:
        return False
    least = _LEAST_REPEATS_OF_LONG if min(times) >= _LONG_MS else _LEAST_REPEATS
    return len(times) >= least and max(times) <= (1.0 + _ALIKE) * min(times)


def _falls(times: Mapping[int, float]) -> bool:
    """Whether some batch takes less time than a smaller one, by more than the noise of both."""
    ordered = [times[size] for size in sorted(times)]
    return any(after < (1.0 - 2.0 * _ALIKE) * before for before, after in pairwise(ordered))


def pass_of(
    tokens: Tokens,
    recordings: Sequence[Recording],
    *,
    longest: int,
    scorer: Scorer | None = None,
    p_min: bool = True,
    timed: bool = True,
    keep: Callable[[AnswerProfile], None] = lambda _: None,
    enough: Callable[[int], bool] = lambda _: False,
    hopeless: Callable[[float], bool] = lambda _: False,
) -> DraftPass:
    """Read one draft model, alone, over recorded answers.

    Args:
        tokens: The draft. It gives the times, and the proposals if there is no scorer.
        recordings: At least one.
        longest: Most tokens that any drafting proposes in a cycle.
        scorer: The same draft, if it can be read in one evaluation.
        p_min: False if no p-min ends a cycle: then the tokens after a miss do not matter.
        timed: False leaves out the times of batches.
        keep: Gets each profile as soon as it is made.
        enough: Called before each answer with the number of answers read; true leaves out the rest.
        hopeless: Called before each answer with the milliseconds of a draft step; true if no drafting of it can pay: then no
            batches are timed either.

    Raises:
        RequestError: The server cannot be asked in token ids, or refused.
        ServerDiedError: It ended.
    """
    profiles: dict[str, AnswerProfile] = {}
    misses = _SAMPLED_MISSES if p_min else 0
    steps: list[float] = []
    dropped = False
    for recording in recordings:
        dropped = bool(steps) and hopeless(statistics.median(steps))
        if profiles and (dropped or enough(len(profiles))):
            break
        own = tokens.generate(recording.prompt_ids, Request(messages=(), max_tokens=_TIMED_STEPS))
        if len(own.ids) > 1:
            steps.append(own.predicted_ms / (len(own.ids) - 1))
        profile = (
            profile_answer(tokens, recording, longest=longest, sampled_misses=misses)
            if scorer is None
            else profile_scored(scorer, recording, longest=longest, sampled_misses=misses)
        )
        profiles[recording.prompt_id] = replace(profile, draft_prompt_ms=own.prompt_ms)
        keep(profiles[recording.prompt_id])
    batch_ms: Mapping[int, float] = {}
    if timed and not dropped:
        typical = typical_of(recordings)
        try:
            batch_ms = time_batches(tokens, typical, longest + 1)
        except RequestError:  # its cache cannot be cut
            batch_ms = time_batches(tokens, typical, longest + 1, behind=False)
    if not steps and 1 not in batch_ms:
        raise RequestError("The draft ends every answer at once, so its steps cannot be timed.")
    return DraftPass(profiles, statistics.median(steps) if steps else batch_ms[1], batch_ms, dropped)


def typical_of(recordings: Sequence[Recording]) -> Recording:
    """The recording with the median prompt length; batches are timed on its text."""
    return sorted(recordings, key=lambda r: len(r.prompt_ids))[len(recordings) // 2]


def _text(recording: Recording) -> tuple[int, ...]:
    return (*recording.answer_ids, *recording.prompt_ids[1:])


def _different_starts(text: Sequence[int], size: int) -> list[int]:
    """Places for a batch of `size` tokens, each beginning with another token than the previous place."""
    places: list[int] = []
    for k in range(_LEAD, len(text) - size + 1):
        if not places or text[k] != text[places[-1]]:
            places.append(k)
    return places
