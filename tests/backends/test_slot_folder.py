"""`autospec.backends.llama_cpp.server`: the folder that builds of 2025 need to empty a slot."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.drafting import OFF
from autospec.errors import LaunchError
from tests.backends.conftest import read_help

NAME = "--slot-save-path"


def folder_in(command: tuple[str, ...]) -> Path:
    """The folder that a server was started with."""
    return Path(command[command.index(NAME) + 1])


@pytest.fixture
def old(fake, tmp_path, monkeypatch):
    """A llama-server with the flags of a build of 2025, on a machine with a temporary folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backend = fake()
    probe = backend._probe
    backend._probe = replace(probe, help=read_help("pydist012"))
    return backend


def test_a_server_for_users_has_no_folder(old):
    """With one, any client could write its slot to the disk (Proxy review 4)."""
    server = old.launch("/m.gguf", OFF, LaunchSettings((), 60.0, serving=True))
    server.stop()
    assert NAME not in server.command


def test_each_launch_for_measuring_has_an_empty_folder_of_its_own(old, state_dir):
    """It was the state folder, so that any client could overwrite the database (Proxy review 4)."""
    settings = LaunchSettings(("-ngl", "0"), 60.0)
    assert NAME not in old.command("/m.gguf", OFF, settings)
    first, second = (old.launch("/m.gguf", OFF, settings) for _ in range(2))
    try:
        folders = [folder_in(server.command) for server in (first, second)]
        assert folders[0] != folders[1]
        for folder in folders:
            assert not list(folder.iterdir())
            assert folder.stat().st_mode & 0o777 == 0o700
            assert state_dir not in (folder, *folder.parents)
            assert folder not in state_dir.parents
            assert first.command[first.command.index(NAME) + 1].endswith("/")
        (folders[0] / "saved").write_bytes(b"x")
    finally:
        first.stop()
        second.stop()
    assert not any(folder.exists() for folder in folders)


def test_a_folder_of_the_users_stays(old, tmp_path):
    """Whoever names one in server_args wants it."""
    mine = tmp_path / "mine"
    mine.mkdir()
    server = old.launch("/m.gguf", OFF, LaunchSettings((NAME, f"{mine}/"), 60.0, serving=True))
    server.stop()
    assert server.command.count(NAME) == 1
    assert folder_in(server.command) == mine
    assert mine.exists()


def test_nothing_is_left_of_a_launch_that_failed(fake, tmp_path, monkeypatch):
    """The folder of a server that ended at its start goes, too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backend = fake("dies-at-start")
    probe = backend._probe
    backend._probe = replace(probe, help=read_help("pydist012"))
    with pytest.raises(LaunchError):
        backend.launch("/m.gguf", OFF, LaunchSettings((), 60.0))
    assert not list(tmp_path.glob("autospec-slots-*"))
