"""`autospec.hardware.processes`: who measures on this machine, also after the clock was set."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from autospec.errors import BusyError
from autospec.hardware import processes
from autospec.hardware.processes import holder, lock_path, machine_lock

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
tells_starts = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a start that no clock moves"
)


@pytest.fixture
def lock_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without abstract sockets."""
    monkeypatch.setattr(processes, "_HAS_NAMES", False)


@pytest.fixture(params=[pytest.param(True, marks=only_linux), False])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of lock."""
    monkeypatch.setattr(processes, "_HAS_NAMES", request.param)


@pytest.fixture
def note():
    """Writes the note of a holder."""
    path = lock_path().with_suffix(".json")

    def write(**held):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(held), encoding="utf-8")

    yield write
    path.unlink(missing_ok=True)


def _now(seconds: float = 0.0) -> str:
    return (datetime.now().astimezone() + timedelta(seconds=seconds)).isoformat(timespec="seconds")


@pytest.mark.usefixtures("either")
def test_who_holds_it_and_since_when():
    """Told while it is held, and not later."""
    assert holder() == ""
    with machine_lock("tune some-model"):
        assert f"process {os.getpid()} (tune some-model), since 20" in holder()
        with pytest.raises(BusyError, match="tune some-model"), machine_lock("bench"):
            pass
        assert "tune some-model" in holder()  # the other one has taken nothing away
    assert holder() == ""
    with machine_lock("bench"):
        assert "bench" in holder()


@tells_starts
@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("step_s", [-86400.0, -5.0, 5.0, 86400.0])
def test_a_step_of_the_clock_hides_no_holder(set_clock, step_s):
    """The daemon would measure beside a tune (Proxy review 10, the same kind)."""
    with machine_lock("tune some-model"):
        set_clock(step_s)
        assert "tune some-model" in holder()


@tells_starts
@pytest.mark.usefixtures("lock_file")
@pytest.mark.parametrize("since", ["another-boot 1", "same-boot"])
def test_a_reused_number_is_no_holder(note, since):
    """Killed holders leave their note; the number may belong to any program after that, in this boot or the next."""
    with machine_lock("tune"):
        held = json.loads(lock_path().with_suffix(".json").read_text(encoding="utf-8"))
    boot, ticks = held["since_boot"].split()
    note(**held)
    assert holder() != ""
    note(**held | {"since_boot": f"{boot} {int(ticks) - 1}" if since == "same-boot" else since})
    assert holder() == ""


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"pid": 1}', '{"pid": "x", "create_time": "y"}'])
def test_a_damaged_note_names_nobody(note, text):
    """A full disk, or a version to come."""
    note()
    lock_path().with_suffix(".json").write_text(text, encoding="utf-8")
    assert holder() == ""


@pytest.mark.usefixtures("either")
def test_a_holder_that_has_ended(note):
    """No process has that number."""
    note(pid=2**22 + 1, create_time=1.0, since_boot="", what="tune", since=_now())
    assert holder() == ""


@only_linux
@pytest.mark.process
def test_another_user_is_seen_and_named(tmp_path, monkeypatch):
    """Two users measured at the same time, and so did one with two folders for temporary files; the kernel says whose it is."""
    name = processes._lock_name().encode().hex()
    program = (
        "import socket; s = socket.socket(socket.AF_UNIX);"
        f" s.bind(bytes.fromhex({name!r})); s.listen(9); print(flush=True); input()"
    )
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    with subprocess.Popen(
        ["/usr/bin/env", "python3", "-I", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=user,
        cwd="/",
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        words = f"process {other.pid} of the user {pwd.getpwuid(user).pw_name}, since 20"
        monkeypatch.setattr(processes, "user_temp_dir", lambda: tmp_path / "another")
        assert words in holder()
        with pytest.raises(BusyError, match=words), machine_lock("bench"):
            pass
        other.communicate(b"\n")
    assert holder() == ""
    with machine_lock("bench"):
        assert "bench" in holder()


@only_linux
def test_a_note_of_another_process_gives_it_no_words(note):
    """It was left by a holder that was killed; the one that measures now cannot write here."""
    with machine_lock("tune some-model"):
        note(pid=1, what="bench", since=_now())
        assert holder().startswith(f"process {os.getpid()} of the user ")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("trap", ["link", "pipe", "folder"])
def test_what_another_user_put_in_place_of_the_note_is_not_written_to(tmp_path, trap):
    """In /tmp everybody knows the note's name: a link there would let it replace any file of the user's."""
    mine, path = tmp_path / "mine", lock_path().with_suffix(".json")
    mine.write_text("precious", encoding="utf-8")
    match trap:
        case "link":
            path.symlink_to(mine)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with machine_lock("tune some-model"), suppress(BusyError), machine_lock("bench"):
        pytest.fail("both have it")
    assert mine.read_text(encoding="utf-8") == "precious"


@only_linux
def test_a_holder_that_is_asked_too_often_still_holds(monkeypatch):
    """Nobody answers those who ask, so at some time the kernel takes no more."""
    monkeypatch.setattr(processes, "_ASKERS", 1)
    with machine_lock("tune some-model"):
        assert {holder() != "" for _ in range(9)} == {True}
        with pytest.raises(BusyError, match="Another autospec is measuring"), machine_lock("bench"):
            pass
