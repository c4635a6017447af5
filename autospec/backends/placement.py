"""Where llama.cpp put the main model's weights, read from what it printed while it loaded them. Pure.

``--fit`` is on by default: it takes layers, or experts, off the GPU by the memory that is free at that moment, and that is no
error. Two launches that are compared must have the main model in the same place, but for what the draft itself displaces.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Placement", "placement_of"]

# src/llama-model.cpp of b11434; ``llm_load_tensors`` until January 2025.
_BEGINS = re.compile(r"load_tensors: loading model tensors")
_LAYERS = re.compile(r"load_tensors: offloaded (?P<layers>\d+)/(?P<total>\d+) layers to GPU")
_BUFFER = re.compile(r"load_tensors:\s+(?P<name>\S+)\s+(?:model )?buffer size\s*=\s*(?P<size>[\d.]+) MiB")
# Every era loads the draft after the main model, and says so.
_DRAFT = re.compile(r"loading draft model '")
# Weights of the main model are the same bytes in every launch; buffers are padded.
_TOLERANCE_MIB = 1.0
_TOLERANCE = 0.001
# How a model is spread over several GPUs follows their free memory, and never exactly.
_SPREAD = 0.05


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the main model's weights are.

    Attributes:
        layers: On GPUs; ``None`` where the build has none.
        layers_total: All of them, with the output layer.
        buffers: MiB of weights by the name of the buffer that holds them, sorted by name.
    """

    layers: int | None
    layers_total: int | None
    buffers: tuple[tuple[str, float], ...]

    @property
    def layers_left(self) -> int:
        """Layers that are not on a GPU though one is there."""
        return (self.layers_total or 0) - (self.layers or 0)

    @property
    def host_mib(self) -> float:
        """Weights in the system's memory."""
        return sum(size for name, size in self.buffers if _is_host(name))

    @property
    def total_mib(self) -> float:
        """All weights."""
        return sum(size for _, size in self.buffers)

    def same_as(self, other: Placement) -> bool:
        """True if both have the same weights on GPUs, and spread over them alike."""
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
    """Read a server's log from its start until it was ready.

    Args:
        log: Its lines; of b11434 and later at the verbosity 4 ("trace"), without which nothing of this is printed.

    Returns:
        The main model's placement; ``None`` where the log does not tell.
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
    # With all messages shown, those of the trial loads that --fit makes come before the real one.
    return _read(blocks[-1]) if blocks else None


def _read(lines: Iterable[str]) -> Placement | None:
    layers = total = None
    buffers: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        if found := _LAYERS.search(line):
            layers, total = int(found["layers"]), int(found["total"])
        elif found := _BUFFER.search(line):
            buffers[found["name"]] += float(found["size"])
    if layers is None and not buffers:
        return None
    return Placement(layers, total, tuple(sorted(buffers.items())))


def _is_host(buffer: str) -> bool:
    return buffer.startswith(("CPU", "AMX", "BLAS")) or buffer.endswith("_Host")
