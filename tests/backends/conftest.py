"""Servers to test with: real ones on a tiny model, and a fake one for faults that no real server shows on demand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autospec.backends.flags import HelpText, parse
from autospec.backends.llama_cpp.server import LlamaServer

HELP = Path(__file__).parent / "help"
FAKE = Path(__file__).parent / "fake_server.py"


@pytest.fixture(params=["pycore010", "pydist012", "pydist018", "docs-2026-03", "b9093", "b11434", "b11669"])
def era(request) -> tuple[str, HelpText]:
    """Each era's name and help, one after the other."""
    return request.param, read_help(request.param)


def read_help(name: str) -> HelpText:
    """A captured help text."""
    return parse((HELP / f"{name}.txt").read_text(encoding="utf-8"))


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state folder of the test's own."""
    return tmp_path / "state"


@pytest.fixture
def fake(tmp_path: Path, state_dir: Path) -> Callable[..., LlamaServer]:
    """Makes a `LlamaServer` over a fake binary: ``fake("hang")``."""

    def make(*faults: str) -> LlamaServer:
        program = tmp_path / "llama-server"
        switches = " ".join(f"--fault {fault}" for fault in faults)
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" {switches} "$@"\n',
            encoding="utf-8",
        )
        program.chmod(0o755)
        return LlamaServer(program, state_dir)

    return make
