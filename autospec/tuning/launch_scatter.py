"""Measures how much launches of one server differ, when a tune replaces one launch of off by another."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator

from autospec.backends.protocol import Completion, Request, Server
from autospec.cells import Build
from autospec.errors import AutospecError
from autospec.hardware.state import StateWatch
from autospec.measure.disturbances import busy
from autospec.measure.launch_scatter import LaunchComparison, LaunchScatter
from autospec.store.database import Store

__all__ = ["LaunchComparing", "abba", "compare_launches", "known_scatter", "short_request"]

_LOG = logging.getLogger(__name__)

# Greedy and long: the answer would be far longer than the tokens asked for, so answers have the same length also on servers
# without `ignore_eos`.
_PROMPT = "Count from one to two hundred in words, one number a line."
# Tokens of one request: enough for a small clock error, and few enough for both halves of a pair to see the same machine.
_TOKENS = (16, 32)
# All requests of a comparison together, without the warm-up, have at most as many tokens as six requests of the tune.
_USUAL_REQUESTS = 6
_LEAST_PAIRS = 8
_MOST_PAIRS = 16
# Standard error at which a comparison needs no more pairs.
_FINE = 0.01
# Above this standard error a comparison is useless: launches never differed as much, and it would hide the others.
_USELESS = 0.05
# Share of the time that is left; beyond it, the proof needs the time more.
_SHARE = 0.05
# From this many degrees of freedom one comparison per tune is enough; it notices a change.
_ENOUGH = 16.0


class LaunchComparing:
    """Compares the old and the new launch of off while both run, and keeps the result.

    There is no comparison if the machine is on battery or busy, or if a server fails: the proof asks the new launch next
    and reports such a failure itself. `max_tokens` is that of the tune's own requests, `model` the main model with the user's
    arguments, and `tell` is told once, when enough is known.
    """

    def __init__(
        self,
        store: Store,
        hardware_id: str,
        build: Build,
        *,
        model: str,
        max_tokens: int,
        left_s: Callable[[], float],
        tell: Callable[[str], None] = lambda _: None,
        watch: StateWatch | None = None,
    ) -> None:
        self._store = store
        self._hardware_id = hardware_id
        self._build = build
        self._model = model
        self._max_tokens = max_tokens
        self._left_s = left_s
        self._tell = tell
        self._pids: frozenset[int] = frozenset()
        self._watch = watch or StateWatch(lambda: self._pids)
        self._compared = 0

    def __call__(self, old: Server, new: Server) -> None:
        """Compare them, if there is time and the result would still add to what is known."""
        before = known_scatter(self._store, self._hardware_id, self._build, self._model)
        if self._compared and before.freedom >= _ENOUGH:
            return
        self._pids = old.pids | new.pids
        try:
            comparison = compare_launches(
                old,
                new,
                max_tokens=self._max_tokens,
                affordable_s=_SHARE * self._left_s(),
                watch=self._watch,
            )
        except AutospecError as error:
            _LOG.info("two launches could not be compared: %s", error.message)
            return
        if comparison is None:
            return
        self._compared += 1
        self._store.add_launch_comparison(self._hardware_id, self._build, self._model, comparison)
        after = known_scatter(self._store, self._hardware_id, self._build, self._model)
        _LOG.info(
            "a new launch of off is %+.2f %% faster than the old one (standard error %.2f %%, %d pairs); %s",
            100 * comparison.difference, 100 * comparison.error, comparison.pairs, after.words,
        )  # fmt: skip
        if before.assumed and not after.assumed:
            self._tell(f"{self._build.backend}: {after.words}.")


def known_scatter(store: Store, hardware_id: str, build: Build, model: str | None = None) -> LaunchScatter:
    """How much launches of a build differ on a machine, from all comparisons that count.

    Raises:
        StoreError: The database cannot be read.
    """
    return LaunchScatter.of(store.launch_comparisons(hardware_id, build, model))


def compare_launches(
    old: Server,
    new: Server,
    *,
    max_tokens: int,
    affordable_s: float = math.inf,
    watch: StateWatch | None = None,
    most_error: float = _USELESS,
) -> LaunchComparison | None:
    """Ask two launches of one server the same short request by turns: old, new, new, old, and so on.

    Only token generation is timed, by the server's clock: the prompt is too short to time. If `_LEAST_PAIRS` leave the
    difference uncertain by more than 1 %, more follow, up to `_MOST_PAIRS` or about the time of six requests of `max_tokens`.

    Returns:
        The comparison; ``None`` if it would take longer than `affordable_s`, the machine was on battery or busy or slept (by `watch`),
        the standard error exceeds `most_error`, or the answers cannot be compared.

    Raises:
        BackendError: A request failed.
    """
    tokens = min(max(max_tokens // _USUAL_REQUESTS, _TOKENS[0]), _TOKENS[1])
    request = short_request(tokens)
    # The first request of a launch also loads what was not loaded before.
    slowest_ms = max(server.complete(request).wall_ms for server in (old, new))
    if 2 * _LEAST_PAIRS * slowest_ms / 1000.0 > affordable_s:
        _LOG.debug("no time to compare two launches: %.0f ms a request", slowest_ms)
        return None
    affordable_pairs = min(_MOST_PAIRS, _USUAL_REQUESTS * max_tokens // (2 * tokens))
    if watch is not None:
        watch.start()
    log_ratios: list[float] = []
    comparison: LaunchComparison | None = None
    while comparison is None or (comparison.error > _FINE and len(log_ratios) + 2 <= affordable_pairs):
        for answers in abba(old, new, request):
            if any(c.predicted_tokens < 1 or c.predicted_ms <= 0.0 for c in answers):
                _LOG.info("two launches were not compared: an answer has no tokens, or no time")
                return None
            log_ratios.append(math.log(answers[1].decode_tps / answers[0].decode_tps))
        if len(log_ratios) >= _LEAST_PAIRS:
            comparison = LaunchComparison.of(log_ratios, at=time.time(), old=old.launch_id, new=new.launch_id)
    if watch is not None:
        state = watch.finish()
        if state.on_battery or state.changed or busy(state):
            _LOG.info("two launches were not compared: the machine was on battery or busy, or slept")
            return None
    if comparison.error > most_error:
        _LOG.info(
            "two launches were not compared: pairs scatter too much (error %.0f %%)", 100 * comparison.error
        )
        return None
    return comparison


def short_request(tokens: int) -> Request:
    """The request that both launches get: a greedy answer of this many tokens."""
    return Request(messages=({"role": "user", "content": _PROMPT},), max_tokens=tokens, ignore_eos=True)


def abba(old: Server, new: Server, request: Request) -> Iterator[tuple[Completion, Completion]]:
    """Two pairs of answers (old, new), asked in the order old, new, new, old, which cancels a steady drift."""
    yield old.complete(request), new.complete(request)
    later, earlier = new.complete(request), old.complete(request)
    yield earlier, later
