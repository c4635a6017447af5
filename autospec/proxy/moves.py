"""From the launches that should be to what to start and what to drain next. Pure.

It is asked again whenever anything has changed and names only what can be done now, so that it needs no memory of its own:
a new launch is started as soon as it fits beside everything that still holds memory, and what it replaces is drained when
all of its model's launches are ready. Where it does not fit, what is not kept is drained first, and requests wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autospec.drafting import Drafting
from autospec.proxy.launch import State
from autospec.proxy.needs import Footprint, Launchable

__all__ = ["Held", "Moves", "next_moves"]


@dataclass(frozen=True, slots=True)
class Held:
    """A launch that holds memory, as far as the next moves depend on it.

    Attributes:
        number: Its name in `Moves`.
        model: Catalogue name.
        drafting: What it was started with.
        state: Anything but stopped and failed.
        leases: Requests that hold it now.
        used_at_s: When it was last used.
        footprint: Its memory.
    """

    number: int
    model: str
    drafting: Drafting
    state: State
    leases: int
    used_at_s: float
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class Moves:
    """What to do now.

    Attributes:
        start: Launches to make, by model.
        drain: Numbers of launches that must go.
    """

    start: tuple[tuple[str, Launchable], ...] = ()
    drain: tuple[int, ...] = ()


def next_moves(held: Sequence[Held], kept: Mapping[str, Sequence[Launchable]], limit_bytes: int) -> Moves:
    """What brings the launches nearer to those that should be.

    Args:
        held: All launches that hold memory.
        kept: The launches that should be, by model, the most important model first; a model that is not named has none.
        limit_bytes: Memory of all launches together. A launch that is larger than that is still started, alone.
    """
    unwanted = [h for h in held if h.state.live and not _is_kept(h, kept)]
    holding = [h.footprint for h in held]
    start: list[tuple[str, Launchable]] = []
    drain: list[int] = []
    for model, wanted in kept.items():
        missing = [entry for entry in wanted if not _runs(model, entry.drafting, held)]
        for entry in missing:
            if holding and Footprint.total_bytes([*holding, entry.footprint]) > limit_bytes:
                drain += _make_room(held, unwanted, entry, limit_bytes)
                # Whoever comes later must not take the room that is being made.
                return Moves(tuple(start), tuple(dict.fromkeys(drain)))
            start.append((model, entry))
            holding.append(entry.footprint)
        if all(_runs(model, entry.drafting, held, ready=True) for entry in wanted):
            drain += [h.number for h in unwanted if h.model == model]
    drain += [h.number for h in unwanted if h.model not in kept]
    return Moves(tuple(start), tuple(dict.fromkeys(drain)))


def _make_room(
    held: Sequence[Held], unwanted: Sequence[Held], entry: Launchable, limit_bytes: int
) -> list[int]:
    """The fewest of the unwanted that must go, the least useful first; none where those that go already are enough."""
    staying = [h for h in held if h.state.live]
    chosen = []
    for victim in sorted(unwanted, key=_usefulness):
        if Footprint.total_bytes([*_footprints(staying), entry.footprint]) <= limit_bytes:
            break
        staying.remove(victim)
        chosen.append(victim.number)
    return chosen


def _usefulness(held: Held) -> tuple[bool, float]:
    return held.leases > 0, held.used_at_s


def _is_kept(held: Held, kept: Mapping[str, Sequence[Launchable]]) -> bool:
    return any(entry.drafting == held.drafting for entry in kept.get(held.model, ()))


def _runs(model: str, drafting: Drafting, held: Iterable[Held], *, ready: bool = False) -> bool:
    return any(
        h.model == model and h.drafting == drafting and (h.state is State.READY if ready else h.state.live)
        for h in held
    )


def _footprints(held: Iterable[Held]) -> list[Footprint]:
    return [h.footprint for h in held]
