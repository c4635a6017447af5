"""Known figures of chips, and the measurement on the processor."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from autospec.cells import Hardware
from autospec.hardware import bandwidth
from autospec.hardware.bandwidth import Speeds, chips, keep, kept, known, measure
from autospec.hardware.identity import describe

HERE = describe(chip="Test", memory_bytes=1 << 30, cores=2, os_name="linux 6", gpu="")


@pytest.mark.parametrize(
    ("gpu", "gigabytes_per_s"),
    [
        ("Apple M2 Ultra 60-core GPU", 800),
        ("Apple M4 Pro 20-core GPU", 273),
        ("Apple M3 Max 30-core GPU", 300),
        ("Apple M3 Max 40-core GPU", 400),
        ("Apple M1 GPU", 68.25),
        ("NVIDIA GeForce RTX 4090", 1008),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 672),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA H200", 4800),
        ("AMD Radeon RX 7900 XTX", 960),
    ],
)
def test_a_gpus_name_is_found_in_the_table(gpu: str, gigabytes_per_s: float) -> None:
    """As ioreg, nvidia-smi and the kernel write it; what is reached is below the peak."""
    speeds = known(gpu)
    assert speeds is not None
    assert 0.75 * gigabytes_per_s < speeds.bytes_per_s / 1e9 < gigabytes_per_s
    assert speeds.source == "known"
    assert f"{gigabytes_per_s:g} GB/s" in speeds.words


@pytest.mark.parametrize(
    "gpu",
    [
        "Apple M9 Ultra 96-core GPU",
        "Apple M4 Ultra 80-core GPU",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4070 Ti",
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA H100 NVL",
        "AMD Radeon RX 7900 GRE",
        "Intel(R) UHD Graphics 630",
        "",
    ],
)
def test_a_chip_that_is_not_in_the_table_stays_unknown(gpu: str) -> None:
    """Also where a chip with a similar name is in it: a laptop's card is slower."""
    assert known(gpu) is None


def test_fewer_gpu_cores_compute_less_and_read_as_fast() -> None:
    """The M2 Ultra is sold with 60 and 76."""
    small, large = known("Apple M2 Ultra 60-core GPU"), known("Apple M2 Ultra 76-core GPU")
    assert small is not None
    assert large is not None
    assert small.bytes_per_s == large.bytes_per_s
    assert small.flops_per_s == pytest.approx(large.flops_per_s * 60 / 76)


def test_no_compute_limit_is_made_up() -> None:
    """The table has none for chips whose small batches nobody has published."""
    for gpu in ("Apple M5 Max 40-core GPU", "NVIDIA H200", "AMD Instinct MI300X"):
        speeds = known(gpu)
        assert speeds is not None
        assert speeds.flops_per_s is None


def test_every_chip_has_a_source() -> None:
    """The table says from whom its figures are, and of which day they are."""
    document = tomllib.loads(Path(bandwidth._CHIPS).read_text("utf-8"))
    assert document["date"].year >= 2026
    for chip in chips():
        assert document["sources"][chip.source]
        assert chip.name.split()[0].lower() in bandwidth._REACHED
        assert known(chip.name) is not None, chip.name


def measured(hardware: Hardware = HERE, limit_s: float = 0.0, read_bytes: int = 1 << 16) -> Speeds:
    """A measurement by clocks of which each look takes a second."""
    wall, busy = count(), count()
    return measure(
        hardware,
        limit_s,
        clock=lambda: float(next(wall)),
        busy=lambda: float(next(busy)),
        read_bytes=read_bytes,
    )


def test_the_processor_is_measured() -> None:
    """By the clock that is given: what all threads read in their time, and what each core multiplies."""
    speeds = measured()
    assert speeds.source == "measured"
    assert "on 2 cores" in speeds.words
    assert not speeds.overlaps
    # Each thread reads its half in one or more of these seconds.
    assert 0.25 * (1 << 16) < speeds.bytes_per_s <= 1 << 16
    products = 2.0 * bandwidth._BLOCK**3 * bandwidth._PRODUCTS
    assert speeds.flops_per_s == pytest.approx(2 * products * bandwidth._CPU_COMPUTE)


def test_it_ends_in_time() -> None:
    """Goes are repeated until the time is over, and no longer."""
    looks = count()
    speeds = measure(HERE, 9.0, clock=lambda: float(next(looks)), read_bytes=1 << 16)
    assert next(looks) <= 12
    assert 0 < speeds.bytes_per_s < float("inf")


def test_at_most_an_eighth_of_the_memory_is_read() -> None:
    """A small machine must not swap for an estimate."""
    small = measured(replace(HERE, memory_bytes=1 << 20), read_bytes=1 << 30)
    assert small.bytes_per_s <= 1 << 17


def test_the_daemon_gets_the_last_measurement_of_this_machine(tmp_path: Path) -> None:
    """And none of another machine, of a damaged file, or of no file."""
    speeds = measured()
    assert kept(HERE, tmp_path) is None
    keep(speeds, HERE, tmp_path / "state")
    assert kept(HERE, tmp_path / "state") == speeds
    assert kept(replace(HERE, id="another"), tmp_path / "state") is None
    for text in ("", "[]", '{"hardware": "x"}', f'{{"hardware": "{HERE.id}", "new": 1}}'):
        (tmp_path / "state" / bandwidth.KEPT_FILE).write_text(text, encoding="utf-8")
        assert kept(HERE, tmp_path / "state") is None
