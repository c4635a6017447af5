"""Which servers of one main model run at a time: off beside a drafting where memory allows, else by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from autospec.backends.llama_cpp.scorer import LlamaCppScorer
from autospec.backends.optional import InProcess, Scores
from autospec.backends.placement import Weights, Where, room_bytes
from autospec.backends.protocol import Backend, Cycle, LaunchSettings, Server, Tokens
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError, BackendMissingError, LaunchError, UnsupportedError, UsageError
from autospec.hardware.gpu import Device, usable
from autospec.predict.profile import Scorer
from autospec.tuning.load_guard import Neighbours, placement_of

__all__ = ["Launches", "resident_launches"]

# Of the memory that is free now; the rest is left to the user's other programs and to what a server allocates
# beyond weights and caches.
_MEMORY_SHARE = 0.8
# What a server takes of a device beyond weights and caches: the driver's own state and buffers to compute in.
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
    """How many launches may live at once: 2 if off fits beside a launch with the largest draft, else 1.

    Weights are counted twice: memory-mapped files are shared between processes on a CPU, but not on every
    accelerator, and a swapping machine measures nothing.

    Args:
        available_bytes: Memory of the system that can be had now.
        off_bytes: The main model with its cache.
        drafted_bytes: The same with the largest draft and its cache.
        devices: The backend's accelerators, none on a machine that computes on its processor; ``None`` where there is one
            and its memory is unknown.
        weights: Where the user's arguments put the main model.
    """
    both_bytes = off_bytes + drafted_bytes
    in_memory = both_bytes <= _MEMORY_SHARE * available_bytes
    if weights.where is Where.MEMORY or (devices is not None and not devices):
        return 2 if in_memory else 1
    room = None if devices is None else room_bytes(devices, weights)
    if devices is None or room is None or both_bytes + 2 * _SERVER_BYTES > room:
        return 1
    # A part of the model in each: how large a part is not known, so that either must have room for all of it.
    shared = weights.where is Where.BOTH or any(d.unified for d in usable(devices))
    return 2 if in_memory or not shared else 1


class Launches:
    """The one owner of a study's servers. Use as a context manager: leaving it stops them all.

    Args:
        backend: Starts them.
        model_path: The main model.
        settings: The user's launch settings, the same for every launch.
        resident: 1 or 2, see `resident_launches`.
        on_launch: Told each drafting that is about to be launched.
        on_renewed: Given the launch of off that is about to stop and the one that replaces it, both idle: the only moment at
            which two launches of one server can be compared. Not called where only one fits into memory.
        clock: Seconds, for what launching takes.

    Attributes:
        resident: How many of these servers live at once; it falls to 1 where two do not fit after all.
        count: Launches so far.
        seconds: What they took, and what launches of a draft or of a model by itself did.
        tell: Told why launches go by turns from now on, and what a draft displaces.
    """

    def __init__(
        self,
        backend: Backend,
        model_path: str,
        settings: LaunchSettings,
        *,
        resident: int,
        on_launch: Callable[[Drafting], None] = lambda _: None,
        on_renewed: Callable[[Server, Server], None] = lambda _old, _new: None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._backend = backend
        self._model_path = model_path
        self._settings = settings
        self._on_launch = on_launch
        self._on_renewed = on_renewed
        self._clock = clock
        self._tell = tell
        self._neighbours = Neighbours()
        self._abilities = backend.capabilities()
        self._off: Server | None = None
        self._leaving: Server | None = None  # the off that runs until the next one is ready
        self._drafted: Server | None = None
        self._alone: Server | None = None
        self._scorer: LlamaCppScorer | None = None
        self.resident = resident
        self.count = 0
        self.seconds = 0.0
        self._took_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cycle(self) -> Cycle:
        """How drafting and verifying take turns in these servers."""
        return self._abilities.cycle

    @property
    def takes_p_min(self) -> bool:
        """Whether a least probability ends a draft in these servers."""
        return self._abilities.takes_p_min

    @property
    def launch_s(self) -> float:
        """What one launch takes, on average so far; 0 before the first."""
        return self._took_s / self.count if self.count else 0.0

    @property
    def pids(self) -> frozenset[int]:
        """Processes of all servers that run now, and of what reads a draft's answers."""
        servers = (self._off, self._leaving, self._drafted, self._alone, self._scorer)
        return frozenset().union(*(s.pids for s in servers if s is not None))

    def off(self) -> Server:
        """The launch with drafting off; it stays until it is renewed, or until it makes room where memory is short.

        Raises:
            BackendError: As `Backend.launch`.
        """
        if self._off is None:
            if self.resident == 1:
                self._stop_drafted()
            self._off = self._launch(OFF)
            if self._displaced():
                self._off = self._launch(OFF)
            self._note(self._off)
        return self._off

    def drafted(self, drafting: Drafting) -> Server:
        """The running launch with this drafting, or a new one in place of any other with drafting.

        Raises:
            BackendError: As `Backend.launch`.
        """
        running = self._drafted.with_drafting(drafting) if self._drafted is not None else None
        if running is not None:
            self._drafted = running
            return running
        self._stop_drafted()
        if self.resident == 1:
            self._stop_off()
        self._drafted = self._where_it_fits(lambda: self._launch(drafting))
        if self._displaced():
            self._drafted = self._launch(drafting)
        self._note(self._drafted)
        return self._drafted

    def by_turns(self, why: str) -> None:
        """From now on only one launch lives at a time; both are stopped.

        Args:
            why: A sentence for people.
        """
        if self.resident == 1:
            return
        self._tell(f"{why} Off and drafting are launched by turns from now on.")
        self._stop_drafted()
        self._stop_off()
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
        """Take note of where a launch has the main model, where no neighbour could change that."""
        if (self._off is None or self._drafted is None) and (cost := self._neighbours.alone(server)):
            self._tell(cost)

    def expire(self) -> None:
        """Stop the launch with drafting, so that the next call for it launches a new one.

        N-gram pools and draft caches remember what they saw, and only a first exposure counts. A server that takes its
        drafting with the request is launched so that it remembers nothing, and runs on.
        """
        if not self._abilities.drafting_per_request:
            self._stop_drafted()

    def renew(self, *, off: bool = True) -> None:
        """See that what is measured next is measured on new launches, whatever the backend remembers or does not.

        What a launch is faster or slower by is the same for all of its requests. Only other launches show how much it is.
        The new off starts while the old one still runs, where memory allows two.

        Args:
            off: False to keep the launch of off, and to renew that with drafting only.

        Raises:
            BackendError: Off does not start, not even alone.
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
        except LaunchError:
            # Two of it may not fit, whatever the estimate said, or a port or a lock was the old one's.
            self._stop_leaving()
            self._off = self._launch(OFF)
            self.resident = 1
            return
        if why := self._neighbours.displaced(self._leaving, self._off):
            self._stop_leaving()
            self.by_turns(why)
            return
        # A server that is only attached to is the same one again.
        if self._off.base_url != self._leaving.base_url:
            with suppress(BackendError):  # a comparison that breaks off is no reason to end a proof
                self._on_renewed(self._leaving, self._off)
        self._stop_leaving()

    @contextmanager
    def main_in_tokens(self) -> Iterator[Callable[[], Tokens | None]]:
        """The main model asked in token ids; ``None`` where that cannot be done.

        Where the server cannot be asked so, the model is loaded once more in a process of its own, as soon as it is asked
        for and until the context is left.

        Raises:
            BackendError: As `Backend.launch`.
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
                            self._beside(lambda: backend.in_process(self._model_path, OFF, self._settings))
                        )
                    )
                return loaded[0].tokens

            yield ask

    @property
    def model_path(self) -> str:
        """The main model."""
        return self._model_path

    @contextmanager
    def alone(self, model_path: str, more: Sequence[tuple[str, ...]] = ()) -> Iterator[Server]:
        """A launch of a model by itself, e.g. a draft: beside off, which its drafting could be launched in.

        Args:
            model_path: The model; the main one takes the place of off where two do not fit.
            more: Arguments besides the user's, each left out where the build does not know it.

        Raises:
            BackendError: As `Backend.launch`.
        """
        backend = self._backend
        if model_path == self._model_path and self.resident == 1:
            self._stop_off()

        def launch() -> Server:
            if isinstance(backend, InProcess):
                return backend.in_process(model_path, OFF, backend.settings_of_draft(self._settings))
            settings = self._settings
            for arguments in more:
                longer = replace(settings, args=(*settings.args, *arguments))
                with suppress(UnsupportedError, UsageError):
                    backend.command(model_path, OFF, longer)
                    settings = longer
            return backend.launch(model_path, OFF, settings)

        with self._beside(launch) as server:
            yield server

    @contextmanager
    def scoring(self, model_path: str, n_ctx: int, tell: Callable[[str], None]) -> Iterator[Scorer | None]:
        """A draft that something else than its server reads, a whole answer at once; ``None`` where nothing does.

        Args:
            model_path: The draft.
            n_ctx: Most tokens of a prompt with its answer.
            tell: Told why what is installed cannot be used.
        """
        with ExitStack() as stack:
            scorer = None
            if isinstance(self._backend, Scores):
                try:
                    scorer = self._scorer = stack.enter_context(self._backend.scorer(model_path, n_ctx))
                except BackendMissingError:
                    pass  # an extra that only makes this faster
                except LaunchError as error:
                    name = Path(model_path).name
                    tell(f"{name} is asked token by token, llama-cpp-python cannot read it: {error.message}")
            try:
                yield scorer
            finally:
                self._scorer = None

    @contextmanager
    def _beside(self, launch: Callable[[], Server]) -> Iterator[Server]:
        """A process that is neither off nor drafted, for as long as the context lasts."""
        self._stop_drafted()
        begun = self._clock()
        try:
            server = self._where_it_fits(launch)
            if self._off is not None and (placed := placement_of(server)) is not None and placed.layers_left:
                # The time of a draft that off has displaced from the GPU would rule it out.
                server.stop()
                self.by_turns("Beside off, a model that is timed by itself does not fit on the GPU.")
                self._stop_off()
                server = launch()
        finally:
            self.seconds += self._clock() - begun
        self._alone = server
        try:
            yield server
        finally:
            self._alone = None
            server.stop()

    def drop(self, server: Server) -> None:
        """Stop a server that misbehaved; the next call for it launches anew."""
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

    def _where_it_fits(self, launch: Callable[[], Server]) -> Server:
        """Launch beside off; where two do not fit after all, whatever the estimate said, go on by turns."""
        try:
            return launch()
        except LaunchError as error:
            if error.permanent or self._off is None:
                raise
        self._stop_off()
        server = launch()
        self.resident = 1
        return server

    def _launch(self, drafting: Drafting) -> Server:
        self._on_launch(drafting)
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
