"""How fast this machine reads weights and computes small batches: measured on the processor, known for chips with a GPU.

On a GPU, a pass of a model takes the longer of reading its weights and computing its tokens, on a processor the sum of both; and a
fixed time for each layer besides. What a GPU reaches of its maker's figures is taken from public measurements:

- *Reading.* 7B models on an M2 Ultra in Q8_0 and Q4_0 (llama.cpp pull request 2917) give 87 % of the peak and 180 µs for each
  layer, a 1.1B model on an M1 Ultra in 2026 145 µs (geerlingguy/ai-benchmarks issue 48), an 8B model on an RTX 3090 87 % and
  32 µs (llama.cpp pull request 15802). A layer with experts takes 190 µs on an M2 Ultra (the founding record).
- *Computing.* Batches of a few tokens are far from the peak. Metal reaches 10 % of FP32: M2 Ultra, F16 (llama.cpp pull request
  10581); M4 Pro, Q4_0 (issue 25250); M4 Max, F16 (pull request 27441). CUDA reaches 26 % on an RTX 3090 (pull request 15802) and
  24 % on an RTX 4090 (pull request 15131).

No figure of this module was measured by autospec on a GPU or a Mac. On a processor, both are measured, which takes two seconds.
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from autospec.cells import Hardware
from autospec.files import replace_file

__all__ = ["Speeds", "chips", "keep", "kept", "known", "measure"]

_CHIPS: Final = Path(__file__).with_name("chips.toml")
# Below the state folder: the last measurement, for the daemon, which does not measure for an estimate.
KEPT_FILE: Final = "estimate-speeds.json"


@dataclass(frozen=True, slots=True)
class Speeds:
    """What limits a pass.

    Attributes:
        bytes_per_s: Memory bandwidth that reading weights reaches.
        flops_per_s: Operations a second that batches of a few tokens reach; ``None`` if unknown.
        layer_s: Seconds that each layer takes besides: starting kernels, threads that wait for each other.
        expert_layer_s: The same for a layer with experts.
        overlaps: True if reading and computing go on at the same time, so that the longer of the two counts and not their sum.
        source: ``measured`` here, or ``known`` of the chip.
        words: Where the figures come from, one sentence.
    """

    bytes_per_s: float
    flops_per_s: float | None
    layer_s: float
    expert_layer_s: float
    overlaps: bool
    source: Literal["measured", "known"]
    words: str

    def to_json(self) -> dict[str, Any]:
        """The form in ``autospec estimate --json`` and in the file of the last measurement."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Chip:
    """One row of ``chips.toml``."""

    name: str
    source: str
    gigabytes_per_s: float
    teraflops: float | None = None
    cores: int | None = None

    @property
    def words(self) -> frozenset[str]:
        """What must be in a GPU's name."""
        return _words(self.name)


@dataclass(frozen=True, slots=True)
class _Reached:
    """What a maker's GPUs reach: shares of bandwidth and FP32, seconds for a layer and for one with experts."""

    bandwidth: float
    compute: float
    layer_s: float
    expert_layer_s: float


# By the first word of the chip's name. AMD: the bandwidth as on NVIDIA's cards, and nothing is known of its batches.
_REACHED: Final = {
    "apple": _Reached(0.87, 0.10, 140e-6, 190e-6),
    "nvidia": _Reached(0.87, 0.25, 40e-6, 60e-6),
    "amd": _Reached(0.80, 0.0, 50e-6, 80e-6),
}


@cache
def chips() -> tuple[Chip, ...]:
    """The table of known chips."""
    return tuple(Chip(**row) for row in tomllib.loads(_CHIPS.read_text("utf-8"))["chip"])


def known(gpu: str) -> Speeds | None:
    """The figures of a GPU by its name, such as ``Apple M2 Ultra 60-core GPU``; ``None`` if the table lacks it."""
    words = _words(gpu)
    fitting = [chip for chip in chips() if chip.words <= words]
    if not fitting:
        return None
    chip = max(fitting, key=lambda c: len(c.words))
    if _variant(chip, words):
        return None
    reached = _REACHED[chip.name.split()[0].lower()]
    cores = re.search(r"(\d+)-core", gpu)
    part = int(cores[1]) / chip.cores if cores and chip.cores else 1.0
    flops = None if chip.teraflops is None else chip.teraflops * 1e12 * part * reached.compute
    return Speeds(
        bytes_per_s=chip.gigabytes_per_s * 1e9 * reached.bandwidth,
        flops_per_s=flops,
        layer_s=reached.layer_s,
        expert_layer_s=reached.expert_layer_s,
        overlaps=True,
        source="known",
        words=(
            f"The chip's known figures, not measured here: {chip.name} reads {chip.gigabytes_per_s:g} GB/s at best, of which"
            f" programs reach about {reached.bandwidth:.0%}."
        ),
    )


# Words by which a maker tells a faster or slower card from the one in the table.
_VARIANTS: Final = frozenset(
    {"ti", "super", "laptop", "mobile", "q", "ada", "pro", "max", "ultra", "d", "xt", "xtx", "gre", "nvl"}
)


def _variant(chip: Chip, words: frozenset[str]) -> frozenset[str]:
    """Words of the GPU's name that make it another card than the table's: an RTX 4090 Laptop is no RTX 4090."""
    return (words & _VARIANTS) - chip.words


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"\d+-core|[a-z0-9]+", name.lower()))


# What llama.cpp reaches on a processor of what NumPy does, and the time of a layer: from a tune of the lab's 90-layer F32 model and
# its Q4_1 draft on two cores (`python -m studies.bench.estimate`). Threads compute what they have read, and hardly at the same time.
_CPU_BANDWIDTH: Final = 0.75
_CPU_COMPUTE: Final = 0.19
_CPU_LAYER_S: Final = 50e-6
_CPU_EXPERT_LAYER_S: Final = 75e-6
# Larger than most caches, and small enough for any machine.
_READ_BYTES: Final = 512 * 1024**2
# So small a product is computed by one thread.
_BLOCK: Final = 64
_PRODUCTS: Final = 200


def measure(
    hardware: Hardware,
    limit_s: float = 2.0,
    *,
    clock: Callable[[], float] = time.perf_counter,
    busy: Callable[[], float] = time.thread_time,
    read_bytes: int = _READ_BYTES,
) -> Speeds:
    """Measure reading and computing on this machine's processor, all cores at the same time.

    A thread's own processor time counts, so that other programs disturb little: they only share the memory.

    Args:
        hardware: This machine.
        limit_s: Longest time, of which reading takes two thirds; at least one measurement of each is made.
        clock: Seconds.
        busy: Seconds that the calling thread has computed.
        read_bytes: Bytes that all threads together read in one go; at most an eighth of the memory.
    """
    begun = clock()
    cores = max(hardware.cores, 1)
    if hardware.memory_bytes:
        read_bytes = min(read_bytes, hardware.memory_bytes // 8)
    # Written, since pages that were never touched are no memory.
    parts = [np.full(max(read_bytes // cores // 8, 1), 1, dtype=np.int64) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        bandwidth = _best(
            lambda: sum(pool.map(lambda part: _read(part, busy), parts)), begun + limit_s * 2 / 3, clock
        )
    flops = cores * _best(lambda: _multiply(busy), begun + limit_s, clock)
    return Speeds(
        bytes_per_s=bandwidth * _CPU_BANDWIDTH,
        flops_per_s=flops * _CPU_COMPUTE,
        layer_s=_CPU_LAYER_S,
        expert_layer_s=_CPU_EXPERT_LAYER_S,
        overlaps=False,
        source="measured",
        words=(
            f"Measured here on {cores} core{'' if cores == 1 else 's'}: memory is read at {bandwidth / 1e9:.1f} GB/s, and matrices"
            f" are multiplied at {flops / 1e9:.0f} GFLOPS; llama.cpp is assumed to reach {_CPU_BANDWIDTH:.0%} and {_CPU_COMPUTE:.0%} of that."
        ),
    )


def _best(once: Callable[[], float], until: float, clock: Callable[[], float]) -> float:
    """The highest of several results: what disturbs only slows down."""
    best = once()
    while clock() < until:
        best = max(best, once())
    return best


def _read(part: np.ndarray[Any, np.dtype[np.int64]], busy: Callable[[], float]) -> float:
    """Bytes a second that this thread reads."""
    begun = busy()
    np.maximum.reduce(part)
    return part.nbytes / max(busy() - begun, 1e-9)


def _multiply(busy: Callable[[], float]) -> float:
    """Operations a second of matrix products in float32 on one core."""
    one = np.full((_BLOCK, _BLOCK), 0.5, dtype=np.float32)
    out = np.empty_like(one)
    begun = busy()
    for _ in range(_PRODUCTS):
        np.matmul(one, one, out=out)
    return 2.0 * _BLOCK**3 * _PRODUCTS / max(busy() - begun, 1e-9)


def keep(speeds: Speeds, hardware: Hardware, state_dir: Path) -> None:
    """Keep a measurement for the daemon; a full or read-only disk is no reason to fail."""
    with suppress(OSError):
        state_dir.mkdir(parents=True, exist_ok=True)
        replace_file(
            state_dir / KEPT_FILE, json.dumps({"hardware": hardware.id, **speeds.to_json()}), durable=False
        )


def kept(hardware: Hardware, state_dir: Path) -> Speeds | None:
    """The last measurement on this machine; ``None`` without one."""
    try:
        data = json.loads((state_dir / KEPT_FILE).read_text("utf-8"))
        if data.pop("hardware") != hardware.id:
            return None
        return Speeds(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
