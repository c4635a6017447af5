"""Where llama.cpp puts the main model's weights: by the user's arguments, its list of devices, and its log. Pure.

``--fit`` is on by default: it moves layers, or experts, off the GPU by the memory that is free at that moment, without an
error. Two launches can be compared only if the main model is in the same place in both, except for what the draft displaces.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from autospec.backends.flags import normalise
from autospec.cells import options_in
from autospec.hardware.gpu import Device, is_integrated, usable

__all__ = ["Placement", "Weights", "Where", "parse_device_list", "placement_of", "room_bytes", "weights_of"]

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
_LAYERS_ASKED = frozenset({"-ngl", "--gpu-layers", "--n-gpu-layers"})
# --fit keeps this much free on every device. It must stay free beside both servers, or --fit moves layers.
_FIT_MARGIN_BYTES = 1024 * _MIB


class Where(StrEnum):
    """The memory that holds the main model's weights."""

    DEVICE = "device"
    MEMORY = "memory"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Weights:
    """The main model's place according to the arguments.

    Attributes:
        where: In the devices' memory, in the system's, or in both.
        only: The devices named; empty for all.
        one: Number of the only device, if the model is not split.
        shares: True if the user sets how it is split.
        remote: True if a part of it is on other machines.
    """

    where: Where = Where.DEVICE
    only: tuple[str, ...] = ()
    one: int | None = None
    shares: bool = False
    remote: bool = False


def parse_device_list(
    text: str, shares_memory: Callable[[str], bool] = is_integrated
) -> tuple[Device, ...] | None:
    """Read what ``llama-server --list-devices`` prints; `shares_memory` tells by a GPU's name.

    Returns:
        The devices in the list's order, empty for a build without any; ``None`` if the text is no such list, or if a GPU
        does not report its memory.
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
            unified=m["name"].startswith(("MTL", "Metal")) or shares_memory(m["what"]),
        )
        for m in found
    ]
    # The list also holds BLAS libraries, and some forks' the processor.
    devices = [d for d in devices if not d.name.startswith(("BLAS", "CPU"))]
    known = tuple(d for d in devices if d.total_bytes)
    silent = [d for d in devices if not d.total_bytes]
    return None if silent and not known else known


def weights_of(args: Sequence[str], layers: int) -> Weights:
    """The main model's place with these arguments."""
    where, moved = Where.DEVICE, False
    only: tuple[str, ...] = ()
    one, split = 0, True
    shares = remote = False
    for flag, values in options_in(args):
        name, value = normalise(flag), "".join(values[:1])
        if name in _LAYERS_ASKED:
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
    """Bytes that two servers may take together on the devices; ``None`` if unknown."""
    names = {n.lower() for n in weights.only}
    chosen = [d for d in devices if d.name.lower() in names] if names else list(usable(devices))
    if weights.remote or not chosen:
        return None
    if weights.one is not None:
        chosen = chosen[weights.one : weights.one + 1]
    free = [max(0, d.free_bytes - _FIT_MARGIN_BYTES) for d in chosen]
    if not free:
        return None
    # If the user sets the split, the smallest device may overflow first.
    return len(free) * min(free) if weights.shares else sum(free)


def _by_layers(value: str, layers: int) -> Where:
    if not value.isdigit():  # auto, all, -1
        return Where.DEVICE
    if int(value) == 0:
        return Where.MEMORY
    return Where.DEVICE if int(value) > layers else Where.BOTH


# src/llama-model.cpp of b11434; ``llm_load_tensors`` until January 2025.
_BEGINS = re.compile(r"load_tensors: loading model tensors")
_LAYERS = re.compile(r"load_tensors: offloaded (?P<layers>\d+)/(?P<total>\d+) layers to GPU")
_BUFFER = re.compile(r"load_tensors:\s+(?P<name>\S+)\s+(?:model )?buffer size\s*=\s*(?P<size>[\d.,]+) MiB")
# Every era loads the draft after the main model, and logs that.
_DRAFT = re.compile(r"loading draft model '")
# Weights of the main model are the same bytes in every launch; buffers are padded.
_TOLERANCE_MIB = 1.0
_TOLERANCE = 0.001
# A model's spread over several GPUs follows their free memory, but never exactly.
_SPREAD = 0.05


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the main model's weights are.

    Attributes:
        layers: Layers on GPUs; ``None`` if the build has none.
        layers_total: All layers, with the output layer.
        buffers: (name, MiB of weights) of each buffer, sorted by name.
    """

    layers: int | None
    layers_total: int | None
    buffers: tuple[tuple[str, float], ...]

    @property
    def layers_left(self) -> int:
        """Layers that are not on a GPU."""
        return (self.layers_total or 0) - (self.layers or 0)

    @property
    def host_mib(self) -> float:
        """Weights in the system's memory, in MiB."""
        return sum(size for name, size in self.buffers if _is_host(name))

    @property
    def total_mib(self) -> float:
        """All weights, in MiB."""
        return sum(size for _, size in self.buffers)

    def lacks_layers(self, args: Sequence[str]) -> bool:
        """True if fewer layers are on GPUs than the launch's arguments ask for."""
        total = self.layers_total or 0
        given = [
            values[0] for flag, values in options_in(args) if values and normalise(flag) in _LAYERS_ASKED
        ]
        asked = min(int(given[-1]), total) if given and given[-1].isdigit() else total
        in_memory = weights_of(args, total).where is Where.MEMORY
        return not in_memory and (self.layers or 0) < asked

    def same_as(self, other: Placement) -> bool:
        """True if both have the same weights on GPUs, spread over them in the same way."""
        if self.layers_left != other.layers_left:
            return False
        if abs(self.host_mib - other.host_mib) > _TOLERANCE_MIB + _TOLERANCE * self.total_mib:
            return False
        mine, theirs = (dict(p.buffers) for p in (self, other))
        devices = {name for name in mine.keys() | theirs.keys() if not _is_host(name)}
        return all(
            abs(mine.get(d, 0.0) / (self.total_mib or 1.0) - theirs.get(d, 0.0) / (other.total_mib or 1.0))
            <= _SPREAD
            for d in devices
        )

    def __str__(self) -> str:
        on_gpus = self.total_mib - self.host_mib
        spread = ", ".join(
            f"{name} {size / 1024:.1f} GiB" for name, size in self.buffers if not _is_host(name)
        )
        weights = f"{on_gpus / 1024:.1f} of {self.total_mib / 1024:.1f} GiB of weights on the GPU"
        layers = f"{self.layers} of {self.layers_total} layers, " if self.layers is not None else ""
        return f"{layers}{weights}" + (f" ({spread})" if spread.count(",") else "")


def placement_of(log: Iterable[str]) -> Placement | None:
    """The main model's placement from a server's log until it was ready; ``None`` if the log does not say.

    b11434 and later log it at verbosity 4 ("trace") only.
    """
    blocks: list[list[str]] = []
    for line in log:
        if _DRAFT.search(line):
            if blocks:
                break
            continue
        if _BEGINS.search(line):
            blocks.append([])
        elif _LAYERS.search(line) and (not blocks or any(_BUFFER.search(seen) for seen in blocks[-1])):
            blocks.append([line])  # a build that does not say where a model begins
        elif blocks:
            blocks[-1].append(line)
    # With all messages shown, --fit's trial loads come before the real one.
    return _read(blocks[-1]) if blocks else None


def _read(lines: Iterable[str]) -> Placement | None:
    layers = total = None
    buffers: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        if found := _LAYERS.search(line):
            layers, total = int(found["layers"]), int(found["total"])
        elif found := _BUFFER.search(line):
            buffers[found["name"]] += float(found["size"].replace(",", "."))  # as the locale has it
    if layers is None and not buffers:
        return None
    return Placement(layers, total, tuple(sorted(buffers.items())))


def _is_host(buffer: str) -> bool:
    return buffer.startswith(("CPU", "AMX", "BLAS")) or buffer.endswith("_Host")
