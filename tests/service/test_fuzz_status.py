"""Any output of launchctl and systemctl is a status: their formats are no stable interface."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.service.managers import (
    _PROPERTIES,
    Launchd,
    ServiceOutcome,
    ServiceState,
    ServiceStatus,
    Systemd,
)
from tests.service.fakes import PRINTED

LAUNCHD = Launchd(501, Path("/Users/me"), b"")
SYSTEMD = Systemd(Path("/home/me/.config"), "")

value = st.one_of(
    st.sampled_from(
        (
            "",
            "0",
            "1",
            "2",
            "-1",
            "²",
            "٣",
            "[not set]",
            "9" * 5000,
            "loaded",
            "active",
            "running",
            "(never exited)",
        )
    ),
    st.text(max_size=6),
)
field = st.one_of(
    st.sampled_from(("\tpid", "\tstate", "\tlast exit code", "\tlast terminating signal", *_PROPERTIES)),
    st.text(max_size=4),
)
line = st.one_of(
    st.tuples(field, st.sampled_from((" = ", "=", " => ")), value).map("".join),
    st.sampled_from((*PRINTED.splitlines(), "{", "}", '\t"com.autospec.daemon" => disabled')),
    st.text(max_size=10),
)
outcome = st.builds(
    ServiceOutcome, st.sampled_from((0, 0, 0, 113, -9)), st.lists(line, max_size=8).map("\n".join)
)
loaded = st.builds(
    ServiceOutcome,
    st.just(0),
    st.dictionaries(st.sampled_from(_PROPERTIES), value).map(
        lambda told: "LoadState=loaded\n" + "".join(f"{k}={v}\n" for k, v in told.items())
    ),
)


def _check(service: Launchd | Systemd, status: ServiceStatus) -> None:
    """What the lifecycle does with it."""
    assert status.state in set(ServiceState)
    assert status.pid is None or status.pid > 0
    for changed in (True, False):
        assert isinstance(service.to_load(status, changed=changed), tuple)
    assert isinstance(service.to_stop(status) + service.to_unload(status), tuple)


@settings(max_examples=100)
@given(outcome, outcome)
def test_any_output_of_launchctl(job, disabled):
    """Also without its blocks, and with numbers that are none."""
    _check(LAUNCHD, LAUNCHD.read([job, disabled]))


@settings(max_examples=100)
@given(st.one_of(outcome, loaded))
def test_any_output_of_systemctl(shown):
    """Also with properties that are empty, as of a unit that is not loaded."""
    _check(SYSTEMD, SYSTEMD.read([shown]))


@pytest.mark.parametrize("pid", ["", "[not set]", "-1", "²", "9" * 5000])
def test_a_process_id_that_is_none(pid):
    """What was a crash before."""
    assert SYSTEMD.read([ServiceOutcome(0, f"LoadState=loaded\nMainPID={pid}\n")]).pid is None
    job = ServiceOutcome(0, PRINTED.format(state="running", lines=f"\tpid = {pid}"))
    assert LAUNCHD.read([job, ServiceOutcome(0)]).pid is None
