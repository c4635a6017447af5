"""Which figures count for a model on a machine, and the estimate of files on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autospec.catalog.candidates import candidates
from autospec.catalog.gguf import read_gguf
from autospec.errors import ModelFileError
from autospec.hardware.bandwidth import Speeds
from autospec.hardware.gpu import Device
from autospec.hardware.identity import describe
from autospec.predict.estimate import estimate_here, least_acceptance, speeds_for
from tests.catalog.making import make_model, write_gguf

SPEEDS = Speeds(10e9, 1e11, 1e-5, 2e-5, overlaps=False, source="measured", words="For a test.")
PC = describe(chip="Test", memory_bytes=64 << 30, cores=8, os_name="linux 6", gpu="NVIDIA GeForce RTX 4090")
MAC = describe(
    chip="Apple M2 Ultra",
    memory_bytes=64 << 30,
    cores=24,
    os_name="macos 26",
    gpu="Apple M2 Ultra 60-core GPU",
)
CARD = Device("CUDA0", "NVIDIA GeForce RTX 4090", 24 << 30, 23 << 30)
METAL = Device("MTL0", "Apple M2 Ultra", 48 << 30, 48 << 30, unified=True)


def figures(model=None, args=(), devices=(CARD,), hardware=PC, processor=lambda: SPEEDS):
    """For a model of 5 GB."""
    return speeds_for(model or make_model(), args, devices, hardware, processor)


def test_a_card_has_its_known_figures() -> None:
    """The processor is not measured for a model that runs on the card."""
    found = figures(processor=lambda: pytest.fail("the processor was measured"))
    assert isinstance(found, Speeds)
    assert "RTX 4090" in found.words


def test_a_mac_has_those_of_its_number_of_cores() -> None:
    """llama.cpp's name of the device has no cores; the machine's has."""
    found = figures(devices=(METAL,), hardware=MAC)
    assert isinstance(found, Speeds)
    assert found.flops_per_s == pytest.approx(27.2e12 * 60 / 76 * 0.1)


def test_without_a_card_the_processor_counts() -> None:
    """Also where the user keeps the model off the card."""
    assert figures(devices=()) is SPEEDS
    assert figures(args=("-ngl", "0")) is SPEEDS
    assert figures(args=("--device", "none")) is SPEEDS


def test_what_cannot_be_known_is_said() -> None:
    """A part in system memory, a model that is too large, a card without figures, a processor that was never measured."""
    for found, words in (
        (figures(args=("--cpu-moe",)), "a part of the model stays in the system's memory"),
        (figures(make_model(size_bytes=100 << 30)), "larger than the GPU's memory"),
        (figures(devices=(replace(CARD, description="Nova 1"),)), "no memory bandwidth of Nova 1"),
        (figures(devices=(), processor=lambda: None), "has not been measured"),
        (figures(devices=None, hardware=replace(PC, gpu="Nova 2")), "no memory bandwidth of Nova 2"),
    ):
        assert isinstance(found, str)
        assert found.startswith("Unknown: ")
        assert words in found


def test_files_on_the_disk(tmp_path: Path) -> None:
    """The drafts that fit, the one that needs least first, and the n-gram modes."""
    main = read_gguf(write_gguf(tmp_path / "main.gguf", layers=40, width=64))
    drafts = [read_gguf(write_gguf(tmp_path / f"d{n}.gguf", layers=n, seed=n)) for n in (1, 8)]
    fitting = [c for c in candidates(main, drafts, memory_bytes=0, context_tokens=512) if c.fits]
    found = estimate_here(main, fitting, SPEEDS, 100)
    assert [d.name for d in found.drafts] == ["n-gram modes", "d1", "d8"]
    assert found.own.bytes_per_token > main.bytes_per_token
    needs = [d.break_even for d in found.drafts]
    assert least_acceptance(main, fitting, SPEEDS, 100) == needs[1]
    assert least_acceptance(main, (), SPEEDS, 100) is None
    assert least_acceptance(main, fitting, "Unknown: why.", 100) is None


def test_files_that_have_gone(tmp_path: Path) -> None:
    """A draft becomes unknown; a main model is an error, and none for the daemon."""
    main = read_gguf(write_gguf(tmp_path / "main.gguf", layers=40, width=64))
    draft = read_gguf(write_gguf(tmp_path / "d.gguf", layers=1))
    fitting = [c for c in candidates(main, [draft], memory_bytes=0, context_tokens=512) if c.fits]
    draft.path.unlink()
    last = estimate_here(main, fitting, SPEEDS, 100).drafts[-1]
    assert (last.name, last.break_even) == ("d", None)
    assert "cannot be read" in last.sentence
    main.path.unlink()
    with pytest.raises(ModelFileError):
        estimate_here(main, fitting, SPEEDS, 100)
    assert least_acceptance(main, fitting, SPEEDS, 100) is None
