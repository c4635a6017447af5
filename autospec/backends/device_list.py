"""llama.cpp's devices: the list that a build prints, and where the user's arguments put the weights. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from autospec.backends.help_text import normalise
from autospec.hardware.device_memory import Device, is_integrated, usable

__all__ = ["Weights", "Where", "parse_device_list", "room_bytes", "weights_of"]

_MIB = 1024**2
# common_print_available_devices in common/arg.cpp, the same from November 2024 to b11434:
# "  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23862 MiB free)".
_DEVICE = re.compile(
    r"^\s+(?P<name>[^\s:]+(?:\[[^\]]*\])?): (?P<what>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)\s*$"
)
_HEADING = re.compile(r"^Available devices:", re.MULTILINE)
_MOVES_TENSORS = frozenset(
    {"-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe", "-nkvo", "--no-kv-offload"}
)
# What --fit leaves free on every device, and so must stay free beside both servers, or it moves layers.
_FIT_MARGIN_BYTES = 1024 * _MIB


class Where(StrEnum):
    """Where a launch keeps the main model."""

    DEVICE = "device"
    MEMORY = "memory"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Weights:
    """What the arguments say of the main model's place.

    Attributes:
        where: In the devices' memory, in the system's, or in a part of each.
        only: The devices named; empty for all.
        one: Number of the only device used, where the model is not split.
        shares: True if the user says how it is split.
        remote: True if a part of it is on other machines.
    """

    where: Where = Where.DEVICE
    only: tuple[str, ...] = ()
    one: int | None = None
    shares: bool = False
    remote: bool = False


def parse_device_list(text: str) -> tuple[Device, ...] | None:
    """Read what ``llama-server --list-devices`` prints.

    Returns:
        The devices in the list's order, none for a build without any; ``None`` if the text is no such list, or if a GPU does
        not tell its memory.
    """
    heading = _HEADING.search(text)
    if heading is None:
        return None
    found = [m for line in text[heading.end() :].splitlines() if (m := _DEVICE.match(line))]
    devices = [
        Device(
            m["name"],
            m["what"],
            int(m["total"]) * _MIB,
            int(m["free"]) * _MIB,
            unified=m["name"].startswith(("MTL", "Metal")) or is_integrated(m["what"]),
        )
        for m in found
    ]
    known = tuple(d for d in devices if d.total_bytes)
    # BLAS libraries stand in the list as well, without memory of their own.
    silent = [d for d in devices if not d.total_bytes and not d.name.startswith("BLAS")]
    return None if silent and not known else known


def weights_of(args: Sequence[str], layers: int) -> Weights:
    """Where the main model goes with these arguments.

    Args:
        args: The user's, for llama-server.
        layers: The main model's; the output layer is one more.
    """
    where, moved = Where.DEVICE, False
    only: tuple[str, ...] = ()
    one, split = 0, True
    shares = remote = False
    words = [w for arg in args for w in ([arg] if not arg.startswith("--") else arg.split("=", 1))]
    for flag, value in pairwise((*words, "")):
        name = normalise(flag)
        if name in ("-ngl", "--gpu-layers", "--n-gpu-layers"):
            where = _by_layers(value, layers)
        elif name in ("-dev", "--device"):
            only = tuple(value.split(","))
        elif name in ("-sm", "--split-mode"):
            split = value != "none"
        elif name in ("-mg", "--main-gpu"):
            one = int(value) if value.isdigit() else 0
        elif name in ("-ts", "--tensor-split"):
            shares = True
        elif name == "--rpc":
            remote = True
        moved = moved or name in _MOVES_TENSORS
    if only == ("none",):
        return Weights(Where.MEMORY)
    if moved and where is Where.DEVICE:
        where = Where.BOTH
    return Weights(where, only, None if split else one, shares, remote)


def room_bytes(devices: Sequence[Device], weights: Weights) -> int | None:
    """What two servers may take together on the devices; ``None`` where it cannot be known.

    Args:
        devices: All that the build shows.
        weights: What the arguments choose of them.
    """
    names = {n.lower() for n in weights.only}
    chosen = [d for d in devices if d.name.lower() in names] if names else list(usable(devices))
    if weights.remote or not chosen:
        return None
    if weights.one is not None:
        chosen = chosen[weights.one : weights.one + 1]
    free = [max(0, d.free_bytes - _FIT_MARGIN_BYTES) for d in chosen]
    if not free:
        return None
    # Split by the user, the smallest device may be the one that overflows.
    return len(free) * min(free) if weights.shares else sum(free)


def _by_layers(value: str, layers: int) -> Where:
    if not value.isdigit():  # auto, all, -1
        return Where.DEVICE
    if int(value) == 0:
        return Where.MEMORY
    return Where.DEVICE if int(value) > layers else Where.BOTH
