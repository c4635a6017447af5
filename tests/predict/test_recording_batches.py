"""How often each batch is timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from autospec.predict.profile import Recording
from autospec.predict.recording import time_batches

RECORDING = Recording("p", tuple(range(1, 30)), tuple(range(30, 60)), 30, False, 10.0, 290.0, 300.0)


class Batches:
    """A model whose batches take 10 ms and 1 ms for each token, and some more at some calls."""

    def __init__(self, more_ms: Sequence[float] = ()) -> None:
        self.asked: Counter[int] = Counter()
        self._more_ms = iter(more_ms)

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """The time of one batch."""
        del ids
        self.asked[len(extra)] += 1
        return 10.0 + len(extra) + next(self._more_ms, 0.0)


@pytest.mark.parametrize(
    ("more_ms", "disturbed"), [((), None), ((0.3, -0.2), None), ((5.0,), 1), ((0.0, 0.0, 0.0, 5.0), 4)]
)
def test_times_that_agree_are_not_taken_again(more_ms, disturbed):
    """Three times where they agree to within 5 %; a batch that was disturbed five times: its median does not move."""
    server = Batches(more_ms)
    times = time_batches(server, RECORDING, 5)  # type: ignore[arg-type]
    assert server.asked == {size: 5 if size == disturbed else 3 for size in (1, 2, 3, 4, 5)}
    assert times == pytest.approx({size: 10.0 + size for size in (1, 2, 3, 4, 5)})


class Slow(Batches):
    """A large model on a processor: 50 ms for each token. Of more than 32 tokens another kernel computes each in 10 ms."""

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """The time of one batch."""
        super().batch_ms(ids, extra)
        return len(extra) * (10.0 if len(extra) > 32 else 50.0)


def test_long_batches_are_timed_twice():
    """A short disturbance does not change their times, and sixty tokens take seconds on such a model."""
    server = Slow()
    time_batches(server, RECORDING, 5)  # type: ignore[arg-type]
    assert server.asked == {1: 3, 2: 3, 3: 3, 4: 2, 5: 2}


def test_a_fall_of_the_large_batches_says_nothing_of_the_small_ones():
    """Only between the sizes up to 17 each is timed."""
    server = Slow()
    times = time_batches(server, RECORDING, 49)  # type: ignore[arg-type]
    assert times[49] < times[25]
    assert not {10, 11, 13, 14, 15} & times.keys()


class Repacked(Batches):
    """Four tokens at a time are computed together, and those that are left one by one."""

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """15 ms for four tokens, and 10 ms for each that is left."""
        super().batch_ms(ids, extra)
        fours, left = divmod(len(extra), 4)
        return 15.0 * fours + 10.0 * left


def test_every_size_is_timed_where_a_larger_batch_takes_less_time():
    """Between two timed sizes the curve would be wrong otherwise: nine, ten and eleven tokens take longer than twelve."""
    server = Repacked()
    times = time_batches(server, RECORDING, 17)  # type: ignore[arg-type]
    assert sorted(times) == list(range(1, 18))
    assert [times[size] for size in (3, 4, 7, 8, 11, 12)] == pytest.approx(
        [30.0, 15.0, 45.0, 30.0, 60.0, 45.0]
    )


def test_the_step_of_a_gpu_is_timed_on_both_sides():
    """Kernels change between 8 and 9 tokens."""
    server = Batches()
    assert {8, 9, 16, 17} <= time_batches(server, RECORDING, 17).keys()  # type: ignore[arg-type]
