"""What every backend must do, on real servers: the same tests for each that this machine has. Facts: `contract.FACTS`."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from autospec.backends import server as child_server
from autospec.backends.protocol import Cycle, LaunchSettings, Request
from autospec.backends.records import sweep_orphans
from autospec.drafting import OFF, Mode
from autospec.errors import (
    LaunchError,
    ServerDiedError,
    SpeculationInactiveError,
    UnsupportedError,
    UsageError,
)
from tests.backends.contract import FACTS
from tests.backends.waiting import gone, wait_until

QUESTION = Request(messages=({"role": "user", "content": "Say something."},), max_tokens=16, timeout_s=120.0)
REPEATING = dataclasses.replace(
    QUESTION,
    messages=({"role": "user", "content": "Count again: 1 2 3 1 2 3 1 2 3 1 2 3 1 2 3"},),
    max_tokens=24,
)
# More than fits the context. The tiny MLX model ends its answer after 235 tokens, and one to "Say something." after 21: too soon.
ENDLESS = dataclasses.replace(
    QUESTION,
    messages=({"role": "user", "content": "Count from one to ten thousand."},),
    max_tokens=100_000,
)
# A server that computes burns processor time, and one that waits does not.
BUSY_S = 0.2


@pytest.fixture(params=FACTS)
def facts(request):
    """Each backend's row."""
    return FACTS[request.param]


@pytest.fixture
def backend(facts, request, state_dir):
    """The backend, where this machine has it."""
    return facts.make(request, state_dir)


@pytest.fixture
def model(facts, lab_models):
    """The model that it launches."""
    return str(lab_models.path(facts.model.replace("_", "-")))


@pytest.fixture
def launched(backend, facts, model):
    """Launches the model and stops it after the test."""
    servers = []

    def launch(drafting=OFF, *, path=model):
        servers.append(backend.launch(path, drafting, facts.settings))
        return servers[-1]

    yield launch
    for server in servers:
        server.stop()


def used_s(pids):
    """Processor time of the processes so far."""
    return sum(sum(p.cpu_times()[:2]) for pid in pids if (p := psutil.Process(pid)).is_running())


def works(pids):
    """Waits until the processes compute."""
    before = used_s(pids)
    wait_until(lambda: used_s(pids) - before > BUSY_S)


def servers_own(server):
    """Its processes without the guard, which is a child of this one."""
    return [pid for pid in server.pids if psutil.Process(pid).ppid() != os.getpid() or len(server.pids) == 1]


def test_capabilities(backend):
    """The build is named and hashed, off is among the modes, and what is said of drafting agrees."""
    abilities = backend.capabilities()
    assert abilities.build.backend == backend.name
    assert abilities.build.version
    assert len(abilities.build.fingerprint) == 16
    assert Mode.OFF in abilities.modes
    assert abilities.measures_only == (abilities.modes == {Mode.OFF})
    assert backend.capabilities() == abilities


def test_a_command_starts_nothing(backend, model, facts, state_dir):
    """It is for people to read, and the same each time."""
    command = backend.command(model, OFF, facts.settings)
    assert command == backend.command(model, OFF, facts.settings)
    assert all(isinstance(word, str) for word in command)
    assert not (state_dir / "launches").exists()


def test_what_a_drafting_adds_to_the_command_line(backend, model, facts):
    """The end of the command line; before it stands the command line without drafting."""
    assert backend.drafting_args(model, OFF, facts.settings) == ()
    if facts.drafting is None:
        pytest.skip("drafting of this backend cannot be chosen")
    plain = backend.command(model, OFF, facts.settings)
    command = backend.command(model, facts.drafting(model), facts.settings)
    added = backend.drafting_args(model, facts.drafting(model), facts.settings)
    kept = plain[:-1] if backend.name == "embedded" else plain  # its last word is the JSON of all settings
    assert command == (*kept, *added)
    assert added


def test_off(launched, facts):
    """Launched, asked, timed: nothing is drafted, nothing is cached, and greedy answers repeat."""
    server = launched()
    first, second = server.complete(QUESTION), server.complete(QUESTION)
    assert server.drafting == OFF
    assert server.command
    assert first.text == second.text
    assert first.prompt_tokens == second.prompt_tokens > 1
    assert 0 < first.predicted_tokens <= QUESTION.max_tokens
    assert first.prompt_ms > 0
    assert first.prompt_ms + first.predicted_ms <= first.wall_ms < 1000 * QUESTION.timeout_s
    assert first.finish_reason in {"stop", "length"}
    assert not first.drafted
    if facts.owns:
        assert server.launch_ms > 0
        assert first.text
    assert {server.launch_id} == {server.launch_id}
    assert server.with_drafting(OFF) is server


def test_drafting_is_in_force(launched, backend, facts, model):
    """It proposes, part of it is accepted, the text stays what it was, and off beside it drafts nothing."""
    if facts.drafting is None:
        pytest.skip("drafting of this backend cannot be chosen")
    drafting = facts.drafting(model)
    off = launched()
    drafted = off.with_drafting(drafting) or launched(drafting)
    assert drafted.drafting == drafting
    plain, done = off.complete(REPEATING), drafted.complete(REPEATING)
    # Builds of 2025 do not send the last accepted tokens of an answer that reaches its limit.
    withheld = backend.capabilities().cycle is Cycle.LLAMA_CPP_KEEPS_LAST
    assert plain.text.startswith(done.text) if withheld else done.text == plain.text
    assert done.predicted_tokens == plain.predicted_tokens
    if backend.capabilities().tells_drafts:
        assert done.drafted >= done.accepted > 0
        assert not plain.drafted
    else:
        assert (done.drafted, done.accepted) == (None, None)


def test_a_bad_draft(launched, facts):
    """Never measured: refused, or found out before the first measurement."""
    if facts.bad is None:
        pytest.skip("no mode of this backend has a draft")
    with pytest.raises((LaunchError, SpeculationInactiveError), match=facts.bad.draft) as caught:
        launched(facts.bad)
    assert getattr(caught.value, "permanent", True)


def test_a_mode_that_it_lacks(backend, facts, model, state_dir):
    """Refused before anything starts, by its name."""
    with pytest.raises(UnsupportedError, match=str(facts.lacks.mode)):
        backend.launch(model, facts.lacks, facts.settings)
    assert not (state_dir / "launches").exists()


def test_a_setting_that_it_refuses(backend, facts, model, state_dir):
    """Before anything starts, by its name."""
    with pytest.raises((UnsupportedError, UsageError), match=facts.bad_settings[0]):
        backend.launch(model, OFF, LaunchSettings(facts.bad_settings))
    assert not (state_dir / "launches").exists()


def test_a_model_that_is_not_there(launched):
    """A failure that would come again, and the model's."""
    with pytest.raises((LaunchError, UnsupportedError), match=r"no-such-model"):
        launched(path="/no/no-such-model.gguf")


def test_stop(launched, facts):
    """Everything is gone when stop returns, also the second time; what is not ours runs on."""
    server = launched()
    pids = server.pids
    assert not gone(pids)
    server.stop()
    server.stop()
    assert gone(pids) == facts.owns


def test_a_death_in_mid_answer(launched, facts):
    """Told as a death as soon as it happens, with the signal if the server is ours."""
    server = launched()
    victims = servers_own(server)

    def kill():
        works(victims)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    begun = time.monotonic()
    with pytest.raises(ServerDiedError, match="SIGKILL" if facts.owns else None):
        server.complete(ENDLESS)
    killer.join()
    assert time.monotonic() - begun < 60


def test_a_taken_port(launched, facts, monkeypatch):
    """The real server's own message is understood, and the next port taken."""
    if not facts.owns:
        pytest.skip("somebody else chose its port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        real, first = child_server.free_port, [taken.getsockname()[1]]
        monkeypatch.setattr(child_server, "free_port", lambda: first.pop() if first else real())
        server = launched()
    assert not first
    assert server.complete(QUESTION).predicted_tokens > 0


OWNER = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from autospec.backends.registry import backend_for
from autospec.backends.protocol import LaunchSettings, Request
from autospec.drafting import OFF
name, model, args, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
settings = SimpleNamespace(**{**settings, "state_dir": Path(settings["state_dir"])})
server = backend_for(name, settings).launch(model, OFF, LaunchSettings(tuple(args)))
print(json.dumps(sorted(server.pids)), flush=True)
server.complete(Request(({"role": "user", "content": "go"},), max_tokens=100000))
"""


@pytest.fixture
def owner(backend, facts, model, state_dir, request):
    """An autospec of its own, in the middle of a request: the process and its server's numbers."""
    if not facts.owns:
        pytest.skip("autospec did not start it, and must not end it")
    settings = {"llama_server": "", "attached_url": "", "attached_remote": False, "state_dir": str(state_dir)}
    settings |= facts.extra_settings(request)
    words = [backend.name, model, json.dumps(facts.settings.args), json.dumps(settings)]
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pids = json.loads(process.stdout.readline())
    works([pid for pid in pids if psutil.Process(pid).ppid() != process.pid])
    yield process, pids
    process.kill()
    process.wait()
    process.stdout.close()


def test_kill_9_of_autospec_in_mid_request(owner, state_dir):
    """No orphan: guard and server follow by themselves, and the next start only clears the record."""
    process, pids = owner
    process.kill()
    process.wait()
    wait_until(lambda: gone(pids))
    assert sweep_orphans(state_dir) == []
    assert not list(state_dir.glob("launches/*.json"))


def test_kill_9_of_guard_and_autospec(owner, state_dir):
    """Both watchers dead at once: the kernel ends the server on Linux, elsewhere the next start does."""
    process, pids = owner
    guard = next(pid for pid in pids if psutil.Process(pid).ppid() == process.pid)
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait()
    if not sys.platform.startswith("linux"):
        sweep_orphans(state_dir)
    wait_until(lambda: gone(pids))
