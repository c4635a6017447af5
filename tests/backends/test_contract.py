"""What every backend must do, on real servers with a tiny model: the same tests for each that this machine has."""

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
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import psutil
import pytest

from autospec.backends.launches import sweep_orphans
from autospec.backends.llama_server import LlamaServer
from autospec.backends.protocol import LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import LaunchError, NotInForceError, ServerDiedError, UnsupportedError, UsageError
from tests.backends.conftest import SETTINGS
from tests.backends.waiting import gone, wait_until

QUESTION = Request(messages=({"role": "user", "content": "Say something."},), max_tokens=24, timeout_s=120.0)
# More than fits the context: it goes on until somebody ends it.
ENDLESS = dataclasses.replace(QUESTION, max_tokens=100_000)


def draft_model(path, **changes):
    """A draft model's drafting with every parameter given."""
    return dataclasses.replace(
        Drafting(Mode.DRAFT_MODEL, draft=str(path), n_max=4, n_min=0, p_min=0.0), **changes
    )


@pytest.fixture
def launched(backend, lab_models):
    """Launches the tiny model and stops it after the test."""
    servers = []

    def launch(drafting=OFF, *, model=None, settings=SETTINGS):
        servers.append(backend.launch(str(model or lab_models.tiny), drafting, settings))
        return servers[-1]

    yield launch
    for server in servers:
        server.stop()


def slots(server):
    """What the server says of its slots."""
    return httpx.get(f"{server.base_url}/slots", trust_env=False, timeout=30).json()


def processing(server):
    """True while a slot works."""
    return any(slot["is_processing"] for slot in slots(server))


def test_capabilities(backend):
    """The build is named and hashed, and off is among the modes."""
    abilities = backend.capabilities()
    assert abilities.build.backend == backend.name
    assert abilities.build.version
    assert len(abilities.build.fingerprint) == 16
    assert {Mode.OFF, Mode.DRAFT_MODEL} <= abilities.modes
    assert not abilities.drafting_per_request


def test_off(launched):
    """Launched, asked, timed: nothing is drafted, nothing is cached, and greedy answers repeat."""
    server = launched()
    first, second = server.complete(QUESTION), server.complete(QUESTION)
    assert server.launch_ms > 0
    assert server.drafting == OFF
    assert first.text == second.text
    assert first.prompt_tokens == second.prompt_tokens > 1
    assert 0 < first.predicted_tokens <= 24
    assert first.prompt_ms + first.predicted_ms <= first.wall_ms < 120_000
    assert not first.drafted
    assert server.command[0]


def test_draft_model_is_in_force(launched, backend, lab_models):
    """The draft is the main model itself: what it proposes is accepted, and the text stays the same."""
    server = launched(draft_model(lab_models.tiny))
    done = server.complete(QUESTION)
    if backend.capabilities().tells_drafts:
        assert done.drafted >= done.accepted > 0
    assert done.predicted_tokens > 0


def test_p_min_is_in_force(launched, backend, lab_models):
    """A high least probability proposes less."""
    if not backend.capabilities().tells_drafts:
        pytest.skip("this build does not tell drafts")
    loose = launched(draft_model(lab_models.tiny)).complete(QUESTION).drafted
    strict = launched(draft_model(lab_models.tiny, p_min=0.99)).complete(QUESTION).drafted
    assert strict < loose


def test_serving_drafts_in_several_slots_at_once(launched, backend, lab_models):
    """A launch for users has the server's own number of slots, and each of them drafts, all at a time."""
    settings = dataclasses.replace(SETTINGS, serving=True)
    server = launched(draft_model(lab_models.tiny), settings=settings)
    count = len(slots(server))
    body = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 48}
    with ThreadPoolExecutor(count) as threads:
        url = f"{server.base_url}/v1/chat/completions"
        post = partial(httpx.post, url, json=body, trust_env=False, timeout=120)
        answers = [future.result().json() for future in [threads.submit(post) for _ in range(count)]]
    assert count > 1
    if backend.capabilities().tells_drafts:
        assert all(answer["timings"]["draft_n"] > 0 for answer in answers)


@pytest.mark.parametrize(
    "drafting",
    [
        Drafting(Mode.NGRAM_SIMPLE, ngram_n=2, ngram_m=8, min_hits=1),
        Drafting(Mode.NGRAM_MAP_K, ngram_n=2, ngram_m=8, min_hits=1),
        Drafting(Mode.NGRAM_MAP_K4V, ngram_n=2, ngram_m=8, min_hits=1),
        Drafting(Mode.NGRAM_MOD, ngram_n=2, n_max=8, n_min=1),
    ],
    ids=lambda drafting: str(drafting.mode),
)
def test_draftless_modes_draft(launched, backend, lab_models, drafting):
    """Each mode that the build offers proposes something on a text that repeats itself."""
    if drafting.mode not in backend.capabilities().modes:
        pytest.skip(f"this build has no {drafting.mode}")
    repeating = Request(
        messages=({"role": "user", "content": "Write a table of the squares of 1 to 20."},), max_tokens=48
    )
    assert launched(drafting, model=lab_models.smollm2).complete(repeating).drafted > 0


def test_a_mode_that_cannot_be(backend, lab_models):
    """Refused before anything starts."""
    with pytest.raises(UnsupportedError, match="prompt-lookup"):
        backend.launch(str(lab_models.tiny), Drafting(Mode.PROMPT_LOOKUP, n_max=4, ngram_n=2), SETTINGS)


@pytest.mark.parametrize(
    ("args", "error"),
    [(("--no-such-flag",), UnsupportedError), (("--port", "1"), UsageError), (("-c",), UsageError)],
)
def test_wrong_arguments(backend, lab_models, state_dir, args, error):
    """Refused before anything starts, naming the argument."""
    with pytest.raises(error, match=args[0]):
        backend.launch(str(lab_models.tiny), OFF, LaunchSettings(args))
    assert not (state_dir / "launches").exists()


def test_the_users_arguments_reach_the_server(launched):
    """The context is what was asked for."""
    server = launched(settings=LaunchSettings(("-c", "1024", "-t", "1")))
    assert [slot["n_ctx"] for slot in slots(server)] == [1024]


@pytest.mark.parametrize("draft", ["damaged", "damaged_header"])
def test_a_damaged_draft(launched, lab_models, draft):
    """A failed launch that would fail again, with the log's last lines."""
    with pytest.raises(LaunchError, match=r"The draft .*\.gguf could not be loaded") as caught:
        launched(draft_model(getattr(lab_models, draft)))
    assert caught.value.permanent
    assert caught.value.log_tail


def test_a_missing_draft(launched):
    """As a damaged one."""
    with pytest.raises(LaunchError, match=r"The draft /no/draft\.gguf could not be loaded"):
        launched(draft_model("/no/draft.gguf"))


@pytest.mark.parametrize("draft", ["other_vocab", "other_tokenizer"])
def test_a_draft_with_another_vocabulary(launched, lab_models, draft):
    """Never measured: newer builds run on without speculation, older ones refuse."""
    with pytest.raises((NotInForceError, LaunchError), match="vocab") as caught:
        launched(draft_model(getattr(lab_models, draft)))
    assert getattr(caught.value, "permanent", True)


def test_a_damaged_model(launched, lab_models):
    """Told as the model's fault."""
    with pytest.raises(LaunchError, match=r"The model .*\.gguf could not be loaded") as caught:
        launched(model=lab_models.damaged)
    assert caught.value.permanent


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS has no limit on address space")
def test_a_context_that_does_not_fit(llama_server_binary, lab_models, tmp_path, state_dir):
    """Memory: not permanent, since the other server of a comparison may be what is in the way."""
    limited = tmp_path / "llama-server"
    limited.write_text(f'#!/bin/sh\nulimit -v 2000000\nexec "{llama_server_binary}" "$@"\n', encoding="utf-8")
    limited.chmod(0o755)
    with pytest.raises(LaunchError, match="not enough memory") as caught:
        LlamaServer(limited, state_dir).launch(
            str(lab_models.tiny), OFF, LaunchSettings(("-c", "3000000", "-t", "1"), ready_timeout_s=100)
        )
    assert not caught.value.permanent


def test_a_mode_that_only_seems_to_work_is_left_out(backend):
    """ngram-cache is in the help and never emptied between requests; doctor says so."""
    abilities = backend.capabilities()
    assert Mode.NGRAM_CACHE not in abilities.modes
    if Mode.NGRAM_SIMPLE in abilities.modes:
        assert any(note.startswith("ngram-cache is left out") for note in abilities.notes)


def test_a_taken_port(backend, launched, monkeypatch):
    """The real server's own message is understood, and the next port taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        from autospec.backends import launching

        real, first = launching.free_port, [taken.getsockname()[1]]
        monkeypatch.setattr(launching, "free_port", lambda: first.pop() if first else real())
        server = launched()
    assert not first
    assert server.complete(QUESTION).predicted_tokens > 0


def test_stop(launched):
    """Everything is gone when stop returns, in the middle of nothing or twice."""
    server = launched()
    pids = server.pids
    assert not gone(pids)
    server.stop()
    assert gone(pids)
    server.stop()


def test_a_server_killed_in_mid_answer(launched):
    """Told as a death as soon as it happens."""
    server = launched()
    killer = threading.Thread(
        target=lambda: (
            wait_until(lambda: processing(server)),
            [
                os.kill(pid, signal.SIGKILL)
                for pid in server.pids
                if psutil.Process(pid).ppid() != os.getpid()
            ],
        )
    )
    killer.start()
    begun = time.monotonic()
    with pytest.raises(ServerDiedError, match="SIGKILL"):
        server.complete(ENDLESS)
    killer.join()
    assert time.monotonic() - begun < 60


OWNER = """
import json, sys
from pathlib import Path
from autospec.backends.registry import backend_for
from autospec.backends.protocol import LaunchSettings, Request
from autospec.drafting import OFF
name, binary, state, model = sys.argv[1:]
class Settings:
    state_dir = Path(state)
    llama_server = binary
server = backend_for(name, Settings).launch(model, OFF, LaunchSettings(("-c", "2048", "-t", "1")))
print(json.dumps([server.base_url, sorted(server.pids)]), flush=True)
server.complete(Request(({"role": "user", "content": "go"},), max_tokens=100000))
"""


@pytest.fixture
def owner(backend, lab_models, state_dir, request):
    """An autospec of its own, in the middle of a request: the process and its server's numbers."""
    binary = str(request.getfixturevalue("llama_server_binary")) if backend.name == "llama-server" else ""
    command = [sys.executable, "-c", OWNER, backend.name, binary, str(state_dir), str(lab_models.tiny)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    base_url, pids = json.loads(process.stdout.readline())
    yield process, pids, base_url
    process.kill()
    process.wait()
    process.stdout.close()


class _At:
    """Just enough of a server for `processing`."""

    def __init__(self, base_url):
        self.base_url = base_url


def test_kill_9_of_autospec_in_mid_request(owner, state_dir):
    """No orphan: guard and server follow by themselves, and the next start only clears the record."""
    process, pids, base_url = owner
    wait_until(lambda: processing(_At(base_url)))
    process.kill()
    process.wait()
    wait_until(lambda: gone(pids))
    assert sweep_orphans(state_dir) == []
    assert not list(state_dir.glob("launches/*.json"))


def test_kill_9_of_guard_and_autospec(owner, state_dir):
    """Both watchers dead at once: the kernel ends the server on Linux, elsewhere the next start does."""
    process, pids, base_url = owner
    guard = next(pid for pid in pids if psutil.Process(pid).ppid() == process.pid)
    wait_until(lambda: processing(_At(base_url)))
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait()
    if not sys.platform.startswith("linux"):
        sweep_orphans(state_dir)
    wait_until(lambda: gone(pids))
