"""The lab's own llama-server is built for this machine, and tried before a test gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.native import cmake_options, what_fails


@pytest.mark.parametrize(("flags", "without"), [("avx2 amx_bf16 amx_tile", True), ("avx2 avx512f", False)])
def test_amx_is_left_out_where_the_processor_has_it(tmp_path: Path, flags: str, without: bool):
    """Elsewhere the compiler may not know the options that leave it out."""
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"model name : any\nflags : {flags}\n")
    assert any("-mno-amx-tile" in option for option in cmake_options(cpu_info)) is without


def test_the_file_that_makes_the_build_quick_is_there(tmp_path: Path):
    """CMake only warns of one that is not, and takes twice as long."""
    (option,) = (o for o in cmake_options(tmp_path / "none") if o.startswith("-DCMAKE_PROJECT_INCLUDE="))
    assert Path(option.partition("=")[2]).is_file()


def test_a_machine_without_cpuinfo_gets_the_plain_options(tmp_path: Path):
    """Macs have none."""
    assert not any("amx" in option for option in cmake_options(tmp_path / "none"))


def test_a_server_that_dies_is_told(lab_models, tmp_path: Path):
    """One that was built for another processor prints nothing: how it ended is all there is."""
    del lab_models  # makes the model that is loaded
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\necho loading >&2\nkill -ILL $$\n")
    server.chmod(0o755)
    assert what_fails(server) == "ended with -4:\nloading"
