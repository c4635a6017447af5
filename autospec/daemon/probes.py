"""Reads the signals of `daemon.policy` from the machine; the probes for each platform are in `autospec.hardware`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autospec.daemon.policy import Signals
from autospec.daemon.work import Clock
from autospec.hardware import identify
from autospec.hardware.gpu import GpuWatch, cards, on_metal, shared_limit_bytes
from autospec.hardware.processes import holder
from autospec.hardware.readings import Reading, descendants, read, read_power
from autospec.hardware.state import between
from autospec.hardware.user_input import LastInput, UserInput

__all__ = ["ClientActivity", "Probes"]

# Over a shorter window the clock's ticks dominate the load.
_WINDOW_S = 0.8
# Over a longer window the load is outdated.
_WINDOW_AT_MOST_S = 120.0


@dataclass(frozen=True, slots=True)
class ClientActivity:
    """What the proxies report: how many of them serve a request, and seconds since the last one ended."""

    in_flight: int | None = None
    since_request_s: float | None = None


class Probes:
    """Reads the machine. The load is that of the time between two readings; so is input, on most Linux desktops."""

    def __init__(
        self,
        clock: Clock,
        last_input: Callable[[], LastInput] | None = None,
        gpu: Callable[[], GpuWatch] = GpuWatch,
    ) -> None:
        self._clock = clock
        self._last_input = UserInput(clock.monotonic) if last_input is None else last_input
        self._new_gpu = gpu
        self._gpu: GpuWatch | None = None
        self._gpu_load: float | None = None
        self._first: Reading | None = None
        self._last_load: float | None = None

    def read(self, traffic: ClientActivity, spent_today_s: float, *, measuring: bool = False) -> Signals:
        """The signals now; `measuring` is True while a step of our own runs and holds the machine."""
        power = read_power()
        own = descendants()
        now = read(own, power)
        if self._first is None or now.at_s - self._first.at_s >= _WINDOW_S:
            load = self._load(now)
            self._gpu_load = self._load_of_gpu(own, bool(power.on_battery), at_rest=not measuring)
        else:
            # The last load still holds, but while measuring each look needs a load of its own.
            load = None if measuring else self._last_load
        used = self._last_input()
        return Signals(
            minute_of_day=self._clock.minute_of_day(),
            spent_today_s=spent_today_s,
            in_flight=traffic.in_flight,
            since_request_s=traffic.since_request_s,
            held_by="" if measuring else holder(),
            power=power,
            user_idle_s=used.idle_s,
            unseen_input=used.unseen,
            other_load=load,
            gpu_other_load=self._gpu_load,
            on_metal=on_metal(),
            cores=now.cores,
            memory_available_bytes=_usable_bytes(
                now.memory_available_bytes, on_battery=bool(power.on_battery)
            ),
        )

    def forget_load(self) -> None:
        """Start a new load window: the processes of a step that ended must not count as other programs."""
        self._first = self._last_load = None
        self._gpu = self._gpu_load = None

    def _load_of_gpu(self, own: frozenset[int], on_battery: bool, *, at_rest: bool) -> float | None:
        """The share that others used since the last look; nothing computes for us if `at_rest`: requests are a signal of their own."""
        # On battery nothing is measured anyway, and each look keeps a laptop's second GPU awake.
        watch, self._gpu = self._gpu, None
        if on_battery:
            return None
        use = None if watch is None else watch.finish(own, at_rest=at_rest)
        self._gpu = watch or self._new_gpu()
        self._gpu.start()
        return None if use is None else use.other_load

    def _load(self, now: Reading) -> float | None:
        """The load since the previous reading, which `now` replaces; ``None`` if that says nothing."""
        first, self._first, self._last_load = self._first, now, None
        # The time of our own ended servers would look like that of other programs.
        if (
            first is not None
            and now.at_s - first.at_s <= _WINDOW_AT_MOST_S
            and not set(first.processes) - set(now.processes)
        ):
            self._last_load = between(first, now).other_load
        return self._last_load


def _usable_bytes(available_bytes: int, *, on_battery: bool) -> int:
    """The memory that models may use: the available part, within the limit of a Mac's GPU, and what is free on cards."""
    here = identify()
    if limit_bytes := shared_limit_bytes(here):
        return min(available_bytes, limit_bytes)
    # On battery a look would keep a laptop's second GPU awake.
    return available_bytes + (0 if on_battery else sum(card.free_bytes for card in cards(here)))
