"""All launches of all models: the one place where they are made, found and counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from autospec.catalog.model import Model
from autospec.drafting import Drafting
from autospec.proxy.launch import Drain, Launch, Look, Start, State, Stop
from autospec.proxy.moves import Held, Moves
from autospec.proxy.needs import Footprint, Launchable
from autospec.proxy.offers import Engine
from autospec.proxy.serving import serve

__all__ = ["Fleet"]


class Fleet:
    """The launches.

    Args:
        args: The user's server arguments.
        changed: Told that a launch's state is another.
        clock: Seconds that never step back.
        machine_is_free: Awaited before each launch; must end within a bound.
    """

    def __init__(
        self,
        args: tuple[str, ...],
        changed: Callable[[], None],
        clock: Callable[[], float],
        machine_is_free: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._machine_is_free = machine_is_free
        self._args = args
        self._changed = changed
        self._clock = clock
        self._launches: list[Launch] = []
        self._took_s: dict[tuple[str, Drafting], float] = {}

    def __iter__(self) -> Iterator[Launch]:
        return iter(tuple(self._launches))

    def of(self, model: str) -> list[Launch]:
        """One model's launches, the oldest first."""
        return [launch for launch in self._launches if launch.model == model]

    def live(self, model: str) -> tuple[Drafting, ...]:
        """Draftings of one model's launches that are ready or starting, each once."""
        return tuple(dict.fromkeys(launch.drafting for launch in self.of(model) if launch.state.live))

    def lendable(self, model: str) -> list[Launch]:
        """One model's launches that a request may have now, the least busy first."""
        return sorted((la for la in self.of(model) if la.lendable), key=lambda la: la.leases)

    def held(self) -> list[Held]:
        """Everything that holds memory, for `next_moves`."""
        return [
            Held(la.number, la.model, la.drafting, la.state, la.leases, la.used_at_s, la.footprint)
            for la in self._launches
            if not la.state.over
        ]

    def bytes(self) -> int:
        """Memory that all launches together are expected to take."""
        return Footprint.total_bytes(h.footprint for h in self.held())

    def start(self, model: Model, engine: Engine, entry: Launchable) -> Launch:
        """Make and start a launch."""
        args = self._args
        launch = Launch(
            model.name,
            entry.drafting,
            entry.footprint,
            lambda: serve(engine, model, entry, args),
            changed=self._changed,
            clock=self._clock,
            first=self._machine_is_free,
        )
        self._launches.append(launch)
        launch.send(Start())
        return launch

    def drain(self, moves: Moves) -> None:
        """Drain what must go."""
        for launch in self:
            if launch.number in moves.drain:
                launch.send(Drain())

    def look(self) -> None:
        """See of every process whether it lives."""
        for launch in self:
            launch.send(Look())

    def end(self, *, drain: bool) -> None:
        """Let go of everything: gently, or at once."""
        for launch in self:
            launch.send(Drain() if drain else Stop())

    def took_s(self, model: str, drafting: Drafting) -> float | None:
        """How long the last start of such a launch took."""
        return self._took_s.get((model, drafting))

    def collect(self) -> list[Launch]:
        """Take out what is over, and return what failed."""
        over = [launch for launch in self._launches if launch.state.over]
        self._launches = [launch for launch in self._launches if not launch.state.over]
        for launch in self._launches:
            if launch.ready_at_s is not None:
                self._took_s[(launch.model, launch.drafting)] = launch.ready_at_s - launch.made_at_s
        return [launch for launch in over if launch.state is State.FAILED]
