"""A file is replaced as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autospec.files import privacy_hint, replace_file, user_temp_dir


def test_folders_that_are_missing_are_made(tmp_path: Path):
    """And the file has the mode that was asked for, whatever the umask."""
    file = tmp_path / "a" / "b" / "f"
    replace_file(file, "größer\n", mode=0o640)
    assert file.read_text("utf-8") == "größer\n"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path):
    """It is another file under the same name, and never half of one."""
    file = tmp_path / "f"
    file.write_text("old")
    with file.open() as reading:
        replace_file(file, "new")
        assert reading.read() == "old"
    assert file.read_text() == "new"


def test_when_it_cannot_be_finished_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk shows at fsync; nothing is left beside the file."""
    file = tmp_path / "f"
    file.write_text("old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_only_a_durable_file_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cache is replaced as a whole, too, and without fsync."""
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    replace_file(tmp_path / "cache", "{}", durable=False)
    assert (tmp_path / "cache").read_text() == "{}"
    assert not synced
    replace_file(tmp_path / "kept", "{}")
    assert len(synced) == 1


def test_a_macs_temporary_folder_does_not_depend_on_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A nix shell has a TMPDIR of its own, and the daemon under launchd has not: both must find the same lock."""
    monkeypatch.setattr(os, "confstr", {65537: "/var/folders/zz/abc/T/"}.get)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert user_temp_dir("darwin") == Path("/var/folders/zz/abc/T")
    assert user_temp_dir("linux") == tmp_path
    monkeypatch.setattr(os, "confstr", {}.get)
    assert user_temp_dir("darwin") == tmp_path


@pytest.mark.parametrize(
    ("text", "platform", "said"),
    [
        ("/Volumes/x cannot be read: Operation not permitted.", "darwin", "Full Disk Access"),
        ("connection to nas.local failed: No route to host", "darwin", "Local Network"),
        ("/x cannot be read: Permission denied.", "darwin", ""),
        ("/x cannot be read: Operation not permitted.", "linux", ""),
    ],
)
def test_the_privacy_settings_of_macos_are_named_where_they_may_be_the_cause(text, platform, said):
    """EPERM, where file permissions give EACCES; EHOSTUNREACH for a machine that answers the shell."""
    hint = privacy_hint(text, platform)
    assert (said in hint) is True
    assert bool(hint) is bool(said)
