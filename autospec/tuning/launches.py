"""Runs the servers of one main model: off and a drafting side by side if memory allows, else by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from autospec.backends.llama_cpp.scorer import LlamaCppScorer
from autospec.backends.placement import Placement, Weights, Where, room_bytes
from autospec.backends.protocol import Backend, Cycle, LaunchSettings, Server, Tokens
from autospec.backends.registry import DraftsAlone, InProcess, Placed, Scores
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError, BackendMissingError, LaunchError, UnsupportedError, UsageError
from autospec.hardware.gpu import Device, usable
from autospec.predict.profile import Scorer

__all__ = ["Launches", "Memory", "resident_launches"]

# Share of the available memory; the rest is for the user's other programs and for a server's other allocations.
_MEMORY_SHARE = 0.8
# GPU memory of a server besides weights and caches: the driver's state and compute buffers.
_SERVER_BYTES = 768 * 1024**2
_ON_DEVICES = Weights()


def resident_launches(
    *,
    available_bytes: int,
    off_bytes: int,
    drafted_bytes: int,
    devices: Sequence[Device] | None = (),
    weights: Weights = _ON_DEVICES,
) -> int:
    """How many launches may run at once: 2 if off fits beside a launch with the largest draft, else 1.

    Weights are counted twice: memory-mapped files are shared between processes on a CPU, but not on every accelerator,
    and measurements on a swapping machine are worthless. `devices` is empty on a machine that computes on its processor, and
    ``None`` if there is an accelerator of unknown memory.
    """
    both_bytes = off_bytes + drafted_bytes
    in_memory = both_bytes <= _MEMORY_SHARE * available_bytes
    if weights.where is Where.MEMORY or (devices is not None and not devices):
        return 2 if in_memory else 1
    room = None if devices is None else room_bytes(devices, weights)
    if devices is None or room is None or both_bytes + 2 * _SERVER_BYTES > room:
        return 1
    # If the model is split, the size of its parts is unknown, so GPU and system memory must each have room for all of it.
    shared = weights.where is Where.BOTH or any(d.unified for d in usable(devices))
    return 2 if in_memory or not shared else 1


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that launches may use; see `resident_launches`."""

    available_bytes: int
    devices: Sequence[Device] | None = ()
    weights: Weights = _ON_DEVICES

    def launches(self, off_bytes: int, drafted_bytes: int) -> int:
        """How many launches that serve users fit at once: 0, 1, or 2 if they leave the GPU alone.

        Such a launch does not report where it put the model, so a neighbour that displaces it from the GPU would not be seen.
        """
        one = resident_launches(
            available_bytes=self.available_bytes,
            off_bytes=0,
            drafted_bytes=max(off_bytes, drafted_bytes),
            devices=self.devices or (),  # of a GPU of unknown memory the launch itself shows whether it fits
            weights=self.weights,
        )
        if one == 1:
            return 0
        if self.weights.where is not Where.MEMORY and (self.devices is None or self.devices):
            return 1
        return resident_launches(
            available_bytes=self.available_bytes, off_bytes=off_bytes, drafted_bytes=drafted_bytes
        )


def placement_of(server: Server) -> Placement | None:
    """Where a server put the main model; ``None`` if it does not report it."""
    return server.placement if isinstance(server, Placed) else None


class Neighbours:
    """Compares where launches put the main model.

    If two launches run side by side, a difference may come from the neighbour, and a pair of them would compare two
    placements. If launches take turns, the draft itself takes the memory: that is a real cost, which users have too.
    """

    def __init__(self) -> None:
        self._off: Placement | None = None
        self._told: set[Drafting] = set()

    def displaced(self, off: Server, drafted: Server) -> str:
        """Why two launches side by side must not be compared; empty if they may be."""
        plain, other = placement_of(off), placement_of(drafted)
        if plain is None or other is None or plain.same_as(other):
            return ""
        return (
            f"The main model is placed differently when two servers run side by side: without drafting {plain}, "
            f"with {drafted.drafting.label} {other}."
        )

    def alone(self, server: Server) -> str:
        """Note a launch that runs alone; returns a sentence if its draft displaces the main model and that was not said before."""
        placed = placement_of(server)
        if server.drafting.is_off:
            self._off = placed or self._off
            return ""
        if placed is None or self._off is None or placed.same_as(self._off) or server.drafting in self._told:
            return ""
        self._told.add(server.drafting)
        return (
            f"{server.drafting.label}: the draft displaces a part of the main model even if no other server runs: {placed}, "
            f"without drafting {self._off}. This is a cost of drafting, and the measurement includes it."
        )


class Launches:
    """Owns the servers of a study. Use it as a context manager: leaving it stops them all.

    Args:
        backend: Launches them.
        model_path: The main model.
        settings: The user's launch settings, the same for every launch.
        resident: How many run at once, see `resident_launches`; it falls to 1 if two do not fit after all.
        on_renewed: Gets the launch of off that is about to stop and the one that replaces it, both idle: the only moment at
            which two launches of one server can be compared. Not called where only one fits into memory.
        clock: Seconds, to time launches.
        tell: Told why launches take turns from now on, and what a draft displaces.
        usual_s: Expected seconds of a launch before the first one.
    """

    def __init__(
        self,
        backend: Backend,
        model_path: str,
        settings: LaunchSettings,
        *,
        resident: int,
        on_renewed: Callable[[Server, Server], None] = lambda _old, _new: None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda _: None,
        usual_s: float = 0.0,
    ) -> None:
        self._backend = backend
        self._model_path = model_path
        self._settings = settings
        self._on_renewed = on_renewed
        self._clock = clock
        self._tell = tell
        self._usual_s = usual_s
        self._neighbours = Neighbours()
        self._abilities = backend.capabilities()
        self._off: Server | None = None
        self._leaving: Server | None = None  # the off that runs until the next one is ready
        self._drafted: Server | None = None
        self._alone: Server | None = None
        self._scorer: LlamaCppScorer | None = None
        self.resident = resident
        self.count = 0  # launches so far
        self.seconds = 0.0  # their time, and that of launches of one model alone
        self._took_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def model_path(self) -> str:
        """The main model."""
        return self._model_path

    @property
    def cycle(self) -> Cycle:
        """The order of drafting and verifying in these servers."""
        return self._abilities.cycle

    @property
    def takes_p_min(self) -> bool:
        """Whether these servers end a draft at a least probability."""
        return self._abilities.takes_p_min

    @property
    def launch_s(self) -> float:
        """Mean seconds of a launch so far; before the first, what is usual."""
        return self._took_s / self.count if self.count else self._usual_s

    @property
    def pids(self) -> frozenset[int]:
        """Processes of all servers that run now, and of a scorer."""
        servers = (self._off, self._leaving, self._drafted, self._alone, self._scorer)
        return frozenset().union(*(s.pids for s in servers if s is not None))

    def off(self) -> Server:
        """The launch with drafting off; it runs until it is renewed, or until it makes room where memory is short."""
        if self._off is None:
            if self.resident == 1:
                self._stop_drafted()
            self._off = self._where_it_fits(lambda: self._launch(OFF), self._drafted, self._stop_drafted)
            if self._displaced():
                self._off = self._launch(OFF)
            self._note(self._off)
        return self._off

    def drafted(self, drafting: Drafting) -> Server:
        """The running launch with this drafting, or a new one that replaces any other with drafting."""
        running = self._drafted.with_drafting(drafting) if self._drafted is not None else None
        if running is not None:
            self._drafted = running
            return running
        self._stop_drafted()
        if self.resident == 1:
            self._stop_off()
        self._drafted = self._where_it_fits(lambda: self._launch(drafting), self._off, self._stop_off)
        if self._displaced():
            self._drafted = self._launch(drafting)
        self._note(self._drafted)
        return self._drafted

    def by_turns(self, why: str) -> None:
        """Stop both launches and run only one at a time from now on; `why` is a sentence for the user."""
        if self.resident == 1:
            return
        self._take_turns(why)
        self._stop_drafted()
        self._stop_off()

    def _take_turns(self, why: str) -> None:
        self._tell(f"{why} The servers with and without drafting run by turns from now on.")
        self.resident = 1

    def _displaced(self) -> bool:
        """Whether one of two neighbours took memory from the other's main model; then both have been stopped."""
        if self._off is None or self._drafted is None:
            return False
        why = self._neighbours.displaced(self._off, self._drafted)
        if why:
            self.by_turns(why)
        return bool(why)

    def _note(self, server: Server) -> None:
        """Note where a launch puts the main model while it runs alone."""
        if (self._off is None or self._drafted is None) and (cost := self._neighbours.alone(server)):
            self._tell(cost)

    def expire(self) -> None:
        """Stop the launch with drafting, so that the next call for it launches a new one.

        N-gram pools and draft caches remember earlier requests, and only the first exposure to a prompt counts. A server that
        takes its drafting with the request is launched in a way that it remembers nothing, and keeps running.
        """
        if not self._abilities.drafting_per_request:
            self._stop_drafted()

    def renew(self, *, off: bool = True) -> None:
        """Have the next measurements run on new launches; `off` is False to renew only the one with drafting.

        A launch is faster or slower than others for all of its requests; only other launches show by how much. The new off
        starts while the old one still runs, if memory allows two.
        """
        self._stop_drafted()
        if not off or self._off is None:
            return
        if self.resident == 1:
            self._stop_off()
            return
        self._leaving, self._off = self._off, None
        try:
            self._off = self._launch(OFF)
        except LaunchError as error:
            # Two launches may not fit in spite of the estimate, or the old one holds a port or a lock.
            self._stop_leaving()
            self._off = self._launch(OFF)
            self._take_turns(_one_at_a_time(error))
            return
        if why := self._neighbours.displaced(self._leaving, self._off):
            self._stop_leaving()
            self.by_turns(why)
            return
        # An attached server was not launched again: it is the same one.
        if self._off.base_url != self._leaving.base_url:
            with suppress(BackendError):  # the proof continues without the comparison
                self._on_renewed(self._leaving, self._off)
        self._stop_leaving()

    @contextmanager
    def main_in_tokens(self) -> Iterator[Callable[[], Tokens | None]]:
        """Ask the main model in token ids; ``None`` if that cannot be done.

        If the server takes no token ids, the model is loaded once more in its own process, from the first call until the
        context is left.
        """
        backend = self._backend
        if (tokens := self.off().tokens) is not None or not isinstance(backend, InProcess):
            yield lambda: tokens
            return
        with ExitStack() as stack:
            loaded: list[Server] = []

            def ask() -> Tokens | None:
                if not loaded:
                    if self.resident == 1:
                        self._stop_off()
                    loaded.append(
                        stack.enter_context(
                            self._beside(
                                lambda: backend.in_process(self._model_path, OFF, self._settings),
                                self._settings.args,
                            )
                        )
                    )
                return loaded[0].tokens

            yield ask

    @contextmanager
    def alone(self, model_path: str, more: Sequence[tuple[str, ...]] = ()) -> Iterator[Server]:
        """A launch of one model without drafting, e.g. of a draft model, beside off.

        The main model takes the place of off if two do not fit. A draft model gets the user's arguments as far as they are meant for
        it. `more` are arguments besides; each is left out if the build does not know it.
        """
        backend, settings = self._backend, self._settings
        if model_path != self._model_path:
            if isinstance(backend, DraftsAlone):
                settings = backend.settings_of_draft(settings)
        elif self.resident == 1:
            self._stop_off()
        if isinstance(backend, InProcess):
            more = ()
        for arguments in more:
            longer = replace(settings, args=(*settings.args, *arguments))
            with suppress(UnsupportedError, UsageError):
                backend.command(model_path, OFF, longer)
                settings = longer

        def launch() -> Server:
            run = backend.in_process if isinstance(backend, InProcess) else backend.launch
            return run(model_path, OFF, settings)

        with self._beside(launch, settings.args) as server:
            yield server

    @contextmanager
    def scoring(self, model_path: str, n_ctx: int) -> Iterator[Scorer | None]:
        """A scorer that reads a whole answer (at most `n_ctx` tokens with its prompt) at once with a draft; ``None`` without one."""
        with ExitStack() as stack:
            scorer = None
            if isinstance(self._backend, Scores):
                try:
                    scorer = self._scorer = stack.enter_context(self._backend.scorer(model_path, n_ctx))
                except BackendMissingError:
                    pass  # an optional extra, which only makes this faster
                except LaunchError as error:
                    name = Path(model_path).name
                    self._tell(
                        f"Draft {name} reads the answers token by token, which is slower, because llama-cpp-python cannot load it: {error.message}"
                    )
            try:
                yield scorer
            finally:
                self._scorer = None

    @contextmanager
    def _beside(self, launch: Callable[[], Server], args: Sequence[str]) -> Iterator[Server]:
        """A process that is neither off nor drafted, while the context lasts; it is launched with the user's `args`."""
        self._stop_drafted()
        begun = self._clock()
        try:
            server = self._where_it_fits(launch, self._off, self._stop_off)
            beside_off = placement_of(server) if self._off is not None else None
            if beside_off is not None and beside_off.lacks_layers(args):
                server.stop()
                self._stop_off()
                server = launch()
                # Its times beside off would be too slow, if it is off that has displaced a part of it from the GPU.
                placed = placement_of(server)
                if placed is None or not placed.same_as(beside_off):
                    self.by_turns(
                        "A model that is timed alone does not fit on the GPU beside the server without drafting."
                    )
        finally:
            self.seconds += self._clock() - begun
        self._alone = server
        try:
            yield server
        finally:
            self._alone = None
            server.stop()

    def drop(self, server: Server) -> None:
        """Stop a server that misbehaved; the next call for it launches a new one."""
        server.stop()
        if server is self._off:
            self._off = None
        if server is self._drafted:
            self._drafted = None

    def close(self) -> None:
        """Stop every server."""
        self._stop_drafted()
        self._stop_off()
        self._stop_leaving()

    def _where_it_fits(
        self, launch: Callable[[], Server], neighbour: Server | None, stop: Callable[[], None]
    ) -> Server:
        """Launch beside a neighbour; if two do not fit after all, it is stopped, and launches take turns from now on."""
        try:
            return launch()
        except LaunchError as error:
            if error.permanent or neighbour is None:
                raise
            why = _one_at_a_time(error)
        stop()
        server = launch()
        if self.resident == 2:
            self._take_turns(why)
        return server

    def _launch(self, drafting: Drafting) -> Server:
        begun = self._clock()
        try:
            server = self._backend.launch(self._model_path, drafting, self._settings)
        finally:
            took_s = self._clock() - begun
            self.count += 1
            self.seconds += took_s
            self._took_s += took_s
        return server

    def _stop_drafted(self) -> None:
        if self._drafted is not None:
            self._drafted.stop()
            self._drafted = None

    def _stop_off(self) -> None:
        if self._off is not None:
            self._off.stop()
            self._off = None

    def _stop_leaving(self) -> None:
        if self._leaving is not None:
            self._leaving.stop()
            self._leaving = None


def _one_at_a_time(error: LaunchError) -> str:
    return f"A second server did not start beside the first one: {error.message}"
