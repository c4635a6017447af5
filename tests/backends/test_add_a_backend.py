"""The small backend that CONTRIBUTING.md prints works as it is printed."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import signal
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from autospec.backends import registry
from autospec.backends.protocol import Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import BackendMissingError, ServerDiedError, SpeculationInactiveError, UnsupportedError
from tests.backends import contract
from tests.backends.conftest import FAKE
from tests.backends.waiting import gone

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
QUESTION = Request(messages=({"role": "user", "content": "hello"},), max_tokens=8, timeout_s=60.0)


@pytest.fixture(scope="module")
def blocks():
    """The page's Python: the file, the line of registration, the row for the tests."""
    page = PAGE.read_text(encoding="utf-8").partition("## Add a backend")[2]
    found = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(found) == 3
    return found


@pytest.fixture
def toy(blocks, tmp_path):
    """The class, from the page's own file."""
    file = tmp_path / "toy_server.py"
    file.write_text(blocks[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("toy_server", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ToyServer


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a toy-server on PATH, with faults."""

    def put(*faults):
        program = tmp_path / "bin" / "toy-server"
        program.parent.mkdir(exist_ok=True)
        switches = " ".join(f"--fault {fault}" for fault in faults)
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" {switches} "$@"\n', encoding="utf-8"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.fixture
def facts(blocks, toy):
    """The page's row, read where it belongs."""
    row = textwrap.dedent(blocks[2])
    names = {**vars(contract), "ToyServer": toy}
    return eval("{" + row + "}", names)["toy-server"]  # noqa: S307 - our own page


@pytest.fixture
def backend(facts, install, request, state_dir):
    """The backend, made by the row."""
    install()
    return facts.make(request, state_dir)


def test_it_is_short(blocks):
    """Somebody shall read it."""
    code = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(code) < 60


def test_the_line_of_registration(blocks, toy, state_dir):
    """It names a format and makes the backend from the settings, as its neighbours do."""
    line = textwrap.dedent(blocks[1])
    made = eval("{" + line + "}", {"ToyServer": toy})  # noqa: S307 - our own page
    ((name, (form, make)),) = made.items()
    assert make(SimpleNamespace(state_dir=state_dir)).name == name
    assert form in registry._FORMAT_NAMES
    assert name not in registry._BACKENDS


def test_launch_ask_stop(backend, facts):
    """With and without drafting, in force both times, and gone afterwards."""
    assert backend.capabilities().modes == {Mode.OFF, Mode.DRAFT_MODEL}
    for drafting, drafted in ((OFF, 0), (facts.drafting("/m.gguf"), 8)):
        server = backend.launch("/m.gguf", drafting, facts.settings)
        try:
            done = server.complete(QUESTION)
        finally:
            server.stop()
        assert (done.text, done.predicted_tokens, done.drafted) == ("text", 7, drafted)
        assert gone(server.pids)


def test_a_draft_that_is_not_in_force(backend, facts, install):
    """Found out by the launch."""
    install("never-drafts")
    with pytest.raises(SpeculationInactiveError):
        backend.launch("/m.gguf", facts.drafting("/m.gguf"), facts.settings)


def test_a_death_in_mid_answer(backend, facts):
    """Told as a death."""
    server = backend.launch("/m.gguf", OFF, facts.settings)
    try:
        for pid in server.pids:
            if psutil.Process(pid).ppid() != os.getpid():
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(ServerDiedError):
            server.complete(dataclasses.replace(QUESTION, timeout_s=20.0))
    finally:
        server.stop()


def test_what_it_lacks(backend, facts):
    """Before anything starts."""
    with pytest.raises(UnsupportedError, match="ngram-mod"):
        backend.command("/m.gguf", Drafting(Mode.NGRAM_MOD, ngram_n=2, n_max=4, n_min=0), facts.settings)
    with pytest.raises(UnsupportedError, match=str(facts.lacks.mode)):
        backend.launch("/m.gguf", facts.lacks, facts.settings)


def test_not_installed(toy, state_dir, monkeypatch):
    """The line that installs it; the contract tests would skip."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendMissingError, match="no toy-server on PATH"):
        toy(state_dir).capabilities()
