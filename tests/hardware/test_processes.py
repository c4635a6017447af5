"""`autospec.hardware.processes`: who measures on this machine, also after the clock was set."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timedelta

import pytest

from autospec.errors import BusyError
from autospec.hardware.processes import holder, lock_path, machine_lock

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the clock does not move a start")


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


def test_who_holds_it_and_since_when():
    """Told while it is held, and not later."""
    assert holder() == ""
    with machine_lock("tune some-model"):
        assert f"process {os.getpid()} (tune some-model), since 20" in holder()
        with pytest.raises(BusyError, match="tune some-model"), machine_lock("bench"):
            pass
    assert holder() == ""


@only_linux
@pytest.mark.parametrize("step_s", [-86400.0, -5.0, 5.0, 86400.0])
def test_a_step_of_the_clock_hides_no_holder(set_clock, step_s):
    """The daemon would measure beside a tune (Proxy review 10, the same kind)."""
    with machine_lock("tune some-model"):
        set_clock(step_s)
        assert "tune some-model" in holder()


@only_linux
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


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"pid": 1}', '{"pid": "x", "create_time": "y"}'])
def test_a_damaged_note_names_nobody(note, text):
    """A full disk, or a version to come."""
    note()
    lock_path().with_suffix(".json").write_text(text, encoding="utf-8")
    assert holder() == ""


def test_a_holder_that_has_ended(note):
    """No process has that number."""
    note(pid=2**22 + 1, create_time=1.0, since_boot="", what="tune", since=_now())
    assert holder() == ""
