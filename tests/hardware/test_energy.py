"""Energy counters: which are read, what they tell of a window, and when they tell nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autospec.cells import Aim, Hardware
from autospec.hardware.energy import (
    Energy,
    EnergyMeter,
    RaplZone,
    aim_in_force,
    energy_refusal,
    rapl_zones,
)

# Of an Intel package: 262 144 J.
RANGE_UJ = 262_143_328_850


def zone(
    root: Path, folder: str, name: str, energy: str | None = "1000000", range_uj: int = RANGE_UJ
) -> Path:
    """A folder of powercap; no counter for ``None``, as where only root may read it."""
    made = root / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "max_energy_range_uj").write_text(f"{range_uj}\n")
    if energy is not None:
        (made / "energy_uj").write_text(f"{energy}\n")
    return made


def names(root: Path) -> list[str]:
    """The folders that are counted."""
    return [found.path.name for found in rapl_zones(root)]


def test_a_laptop_with_an_intel_processor(tmp_path: Path):
    """Its package; cores and graphics are in it, the platform's counter and the copy over MMIO are not counted."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "uncore")
    zone(tmp_path, "intel-rapl:1", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    assert names(tmp_path) == ["intel-rapl:0"]


def test_a_server_with_two_sockets_and_their_memory(tmp_path: Path):
    """A server's memory has a counter beside the package's."""
    for socket in (0, 1):
        zone(tmp_path, f"intel-rapl:{socket}", f"package-{socket}")
        zone(tmp_path, f"intel-rapl:{socket}:0", "dram")
    assert names(tmp_path) == ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1", "intel-rapl:1:0"]


def test_amds_processors_have_the_same_names(tmp_path: Path):
    """Only the range differs: 65 kJ."""
    zone(tmp_path, "intel-rapl:0", "package-0", range_uj=65_532_610_987)
    zone(tmp_path, "intel-rapl:0:0", "core", range_uj=65_532_610_987)
    assert names(tmp_path) == ["intel-rapl:0"]


def test_what_only_root_may_read_is_unknown(tmp_path: Path):
    """Since Linux 5.10. If one of two packages can be read, their sum is unknown as well."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:1", "package-1", energy=None)
    assert rapl_zones(tmp_path) == ()
    assert rapl_zones(tmp_path / "missing") == ()


def meter(
    tmp_path: Path, first: str, *gpu: float | None, range_uj: int = RANGE_UJ
) -> tuple[EnergyMeter, Path]:
    """A meter at the start of a window, and the file of its processor's counter."""
    folder = zone(tmp_path, "intel-rapl:0", "package-0", first, range_uj)
    answers = iter(gpu)
    made = EnergyMeter(lambda: next(answers), [RaplZone(folder, range_uj)])
    made.start()
    return made, folder / "energy_uj"


def test_joules_of_a_window(tmp_path: Path):
    """Microjoules of the processor, joules of the GPU."""
    made, counter = meter(tmp_path, "5000000", 1000.0, 1120.5)
    counter.write_text("35000000\n")
    assert made.finish(2.0) == Energy(30.0, 120.5)


def test_a_counter_that_began_again(tmp_path: Path):
    """It ends at its range, about every hour on a laptop."""
    made, counter = meter(tmp_path, str(RANGE_UJ - 1_000_000), None, None)
    counter.write_text("2000000\n")
    assert made.finish(2.0) == Energy(cpu_j=3.0)


@pytest.mark.parametrize(("window_s", "known"), [(100.0, True), (131.0, True), (132.0, False)])
def test_a_window_in_which_it_may_have_passed_its_end_twice(tmp_path: Path, window_s, known):
    """AMD's smaller range, at more power than any package draws."""
    made, counter = meter(tmp_path, "0", None, None, range_uj=65_532_610_987)
    counter.write_text("9000000\n")
    assert (made.finish(window_s).cpu_j is not None) is known


def test_a_counter_that_vanished_or_went_back_is_unknown(tmp_path: Path):
    """A driver that was loaded again counts from 0."""
    made, counter = meter(tmp_path, "5", 1000.0, 3.0)
    counter.unlink()
    assert made.finish(1.0) == Energy()
    made = EnergyMeter(iter([None, 3.0]).__next__, [])
    made.start()
    assert made.finish(1.0) == Energy()


def test_a_window_without_a_start_is_unknown(tmp_path: Path):
    """Also the second one."""
    made, _ = meter(tmp_path, "5", 1.0, 2.0, 3.0, 4.0)
    assert made.finish(1.0) == Energy(0.0, 1.0)
    assert made.finish(1.0) == Energy()


def told(cpu: bool, gpu: bool, tmp_path: Path) -> EnergyMeter:
    """A meter of a machine that tells these parts."""
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    return EnergyMeter(lambda: 5.0 if gpu else None, [RaplZone(folder, RANGE_UJ)] if cpu else [])


PLAIN = Hardware("plain", "Chip", 1, os="linux 6.1")
WITH_GPU = Hardware("gpu", "Chip", 1, os="linux 6.1", gpu="NVIDIA H200")


def test_the_parts_that_tell_their_energy(tmp_path: Path):
    """Now: a counter may have become unreadable since the meter was made."""
    meter = told(True, True, tmp_path)
    assert meter.parts == {"cpu", "gpu"}
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.parts == {"gpu"}
    assert EnergyMeter(lambda: None, []).parts == set()


@pytest.mark.parametrize(
    ("needed", "parts", "words"),
    [
        (("cpu",), (True, False), ""),
        (("gpu",), (False, True), ""),
        (("cpu", "gpu"), (True, True), ""),
        # The energy of what rests says nothing about a model that computes elsewhere.
        (("cpu",), (False, True), "the energy of the processor"),
        (("gpu",), (True, False), "the energy of every GPU"),
        (("cpu", "gpu"), (False, True), "the energy of the processor"),
    ],
)
def test_the_aim_energy_is_refused_where_what_computes_tells_none(
    tmp_path, monkeypatch, needed, parts, words
):
    """In one sentence, with what to do."""
    monkeypatch.setattr(sys, "platform", "linux")
    refusal = energy_refusal(needed, told(*parts, tmp_path))
    assert (refusal is None) == (not words)
    if refusal is not None:
        assert words in refusal[0]
        assert "aim speed" in refusal[1]


def test_macs_give_energy_to_root_only(monkeypatch):
    """There is nothing to allow."""
    monkeypatch.setattr(sys, "platform", "darwin")
    refusal = energy_refusal(("gpu",), EnergyMeter(lambda: None, []))
    assert refusal is not None
    assert "macOS gives to root only" in refusal[0]


def test_the_aim_falls_back_to_speed_and_says_so(tmp_path: Path):
    """With a GPU its energy decides, and without one the processor's."""
    assert aim_in_force("speed", PLAIN) == (Aim.SPEED, "")
    assert aim_in_force("energy", PLAIN, told(True, False, tmp_path / "a")) == (Aim.ENERGY, "")
    assert aim_in_force("energy", WITH_GPU, told(False, True, tmp_path / "b")) == (Aim.ENERGY, "")
    aim, note = aim_in_force("energy", PLAIN, told(False, False, tmp_path / "c"))
    assert aim is Aim.SPEED
    assert "The aim is speed instead." in note
    assert aim_in_force("energy", WITH_GPU, told(True, False, tmp_path / "d"))[0] is Aim.SPEED
