"""How alike two machines are, as far as speed is concerned. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from autospec.cells import Hardware

__all__ = ["likeness", "most_alike"]

# What decides a model's speed, in this order: the accelerator, the processor, then how much fits into memory. The
# operating system matters for the backends that exist there.
_GPU, _CHIP, _MEMORY, _CORES, _OS = 0.35, 0.30, 0.15, 0.10, 0.10


def likeness(one: Hardware, other: Hardware) -> float:
    """How far the one's figures may speak for the other: 1 for the same kind of machine, 0 for nothing in common."""
    if one.id == other.id:
        return 1.0
    return (
        _GPU * _names(one.gpu, other.gpu)
        + _CHIP * _names(one.chip, other.chip)
        + _MEMORY * _ratio(one.memory_bytes, other.memory_bytes)
        + _CORES * _ratio(one.cores, other.cores)
        + _OS * (_system(one) == _system(other))
    )


def most_alike(here: Hardware, others: Iterable[Hardware]) -> Hardware | None:
    """The machine that is most like this one; of equals the first. ``None`` where there is none."""
    return max(others, key=lambda other: likeness(here, other), default=None)


def _names(one: str, other: str) -> float:
    """Words in common ÷ words in all, so that an M2 Max is more like an M2 Ultra than like a Xeon."""
    words, others = (set(re.findall(r"[a-z0-9]+", name.lower())) for name in (one, other))
    return len(words & others) / len(words | others) if words | others else 1.0


def _ratio(one: float, other: float) -> float:
    """1 for equal sizes, 0 from a factor of eight."""
    if one <= 0 or other <= 0:
        return float(one == other)
    return max(0.0, 1.0 - abs(math.log2(one / other)) / 3.0)


def _system(hardware: Hardware) -> str:
    return hardware.os.split(" ", 1)[0]
