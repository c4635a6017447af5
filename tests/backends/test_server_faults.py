"""A server that misbehaves: an error reports each fault at once, and no process is left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
import time

import psutil
import pytest

from autospec.backends import server as child_server
from autospec.backends.protocol import LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import (
    LaunchError,
    NoAnswerError,
    RequestError,
    ServerDiedError,
    SpeculationInactiveError,
)
from tests.backends.waiting import gone, wait_until

MODEL = Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=4, n_min=0, p_min=0.0)
NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)
QUESTION = Request(messages=({"role": "user", "content": "hello"},), max_tokens=8, timeout_s=60.0)
HASTY = dataclasses.replace(QUESTION, timeout_s=0.5)
SETTINGS = LaunchSettings(ready_timeout_s=60.0)


@pytest.fixture
def children():
    """Fails the test if a process of its own is left at the end."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    wait_until(lambda: {p.pid for p in psutil.Process().children(recursive=True)} <= before)


@pytest.fixture
def launched(fake, children):
    """Launches a fake with faults; stops it after the test."""
    servers = []

    def launch(*faults, drafting=OFF, settings=SETTINGS):
        servers.append(fake(*faults).launch("/models/main.gguf", drafting, settings))
        return servers[-1]

    yield launch
    for server in servers:
        server.stop()


def test_a_good_server_answers(launched):
    """The stand-in itself is sound: launch, ask, stop."""
    server = launched(drafting=MODEL)
    done = server.complete(QUESTION)
    assert (done.text, done.prompt_tokens, done.predicted_tokens) == ("text", 5, 7)
    assert (done.prompt_ms, done.predicted_ms) == (10.0, 70.0)
    assert (done.drafted, done.accepted, done.finish_reason) == (8, 6, "stop")
    assert done.wall_ms > 0
    server.stop()
    assert gone(server.pids)


def test_never_ready(launched):
    """The time that a launch may take is kept, and the error says what the server was doing."""
    with pytest.raises(LaunchError, match=r"still loading the model after 0.5 s") as caught:
        launched("never-ready", settings=LaunchSettings(ready_timeout_s=0.5))
    assert caught.value.log_tail == ("fake server: starting",)
    assert not caught.value.permanent


def test_ended_while_it_loads(launched):
    """Another thread may end a launch that nobody needs any more: it does not wait until the model is loaded."""
    loading, begun_s = threading.Event(), time.monotonic()

    def started(end):
        threading.Thread(target=lambda: loading.wait(10.0) and end()).start()
        threading.Timer(0.3, loading.set).start()

    with pytest.raises(LaunchError):
        launched("never-ready", settings=LaunchSettings(ready_timeout_s=60.0, started=started))
    assert loading.is_set()
    assert time.monotonic() - begun_s < 30.0


def test_never_listens(launched):
    """As above, for a server that hangs before it listens."""
    with pytest.raises(LaunchError, match=r"did not listen after 0.5 s"):
        launched("never-listens", settings=LaunchSettings(ready_timeout_s=0.5))


def test_dies_at_start(launched):
    """Found at once, with the cause from the log."""
    begun = time.monotonic()
    with pytest.raises(LaunchError, match=r"/models/main\.gguf could not be loaded") as caught:
        launched("dies-at-start")
    assert caught.value.permanent
    assert "failed to load model" in caught.value.log_tail[-1]
    assert time.monotonic() - begun < 30


def test_dies_at_first_request(launched):
    """An assertion at the first request is a failed launch, not a measurement."""
    with pytest.raises(LaunchError, match=r"crashed: .*GGML_ASSERT") as caught:
        launched("dies-at-first-request")
    assert caught.value.permanent


@pytest.mark.parametrize("drafting", [MODEL, NGRAM])
def test_runs_without_speculation(launched, drafting):
    """What the slots deny is not measured under its name."""
    with pytest.raises(SpeculationInactiveError, match="does not draft although"):
        launched("slots-say-no", drafting=drafting)


def test_a_draft_model_that_never_proposes(launched):
    """Slots that say yes are not enough for a draft model without a least probability."""
    with pytest.raises(SpeculationInactiveError, match="does not draft"):
        launched("never-drafts", drafting=MODEL)


def test_a_careful_draft_model_may_be_silent(launched):
    """With a least probability, the canary may pass without a proposal; the slots have spoken."""
    careful = dataclasses.replace(MODEL, p_min=0.99)
    assert launched("never-drafts", drafting=careful).complete(QUESTION).drafted == 0


def test_an_ngram_mode_may_be_silent(launched):
    """Nothing repeats in the canary."""
    assert launched("never-drafts", drafting=NGRAM).complete(QUESTION).drafted == 0


def test_without_slots_the_canary_decides(launched):
    """A build whose slots are silent is believed by what it drafts."""
    assert launched("no-slots", drafting=MODEL).complete(QUESTION).drafted == 8
    with pytest.raises(SpeculationInactiveError):
        launched("no-slots", "never-drafts", drafting=MODEL)


SERVED = LaunchSettings(ready_timeout_s=60.0, serving=True)


@pytest.mark.parametrize("silence", ["slot-2-never-drafts", "slot-2-says-no"])
def test_a_slot_that_does_not_draft_is_served(launched, silence):
    """It is a limit of the drafting (`autospec.tuning.limits`), and no reason to refuse the others; the slots tell it."""
    server = launched("four-slots", silence, drafting=MODEL, settings=SERVED)
    assert server.complete(QUESTION).drafted == 8
    assert server.slots().silent == ((2,) if silence == "slot-2-says-no" else ())


@pytest.mark.parametrize("drafting", [MODEL, NGRAM])
def test_slot_0_that_does_not_draft_is_refused(launched, drafting):
    """Whatever the other slots say: this is the slot that was measured."""
    with pytest.raises(SpeculationInactiveError, match="does not draft although"):
        launched("four-slots", "slot-0-says-no", drafting=drafting, settings=SERVED)


def test_measuring_asks_slot_0_only(launched):
    """Its slots are of no account for a pair; how many requests a drafting holds for is measured apart."""
    server = launched("four-slots", "slot-2-never-drafts", drafting=MODEL)
    assert server.complete(QUESTION).drafted == 8


@pytest.mark.parametrize("drafting", [MODEL, NGRAM, OFF])
def test_four_slots_that_draft_are_served(launched, drafting):
    """And off is asked in one slot; an n-gram mode may be silent in any."""
    server = launched("four-slots", drafting=drafting, settings=SERVED)
    assert server.complete(QUESTION).drafted == (0 if drafting.is_off else 8)


def test_drafts_although_off(launched):
    """Off must be off."""
    with pytest.raises(SpeculationInactiveError, match="drafts although drafting is off"):
        launched("drafts-although-off")


def test_variables_that_reach_no_server_are_told_once(launched, monkeypatch, caplog):
    """One that drafts, and one that does not: the user would believe that it counts."""
    monkeypatch.setenv("LLAMA_SPEC_CHAIN", "8")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "512")
    launched()
    launched()
    told = [r.getMessage() for r in caplog.records if "LLAMA_SPEC_CHAIN" in r.getMessage()]
    assert told == [
        (
            "Not passed on to servers: LLAMA_ARG_CTX_SIZE, LLAMA_SPEC_CHAIN. autospec alone decides how a server drafts; "
            "put other settings of servers after -- or into server_args."
        )
    ]


def test_hangs(launched):
    """The request's own time is kept."""
    server = launched("hangs")
    with pytest.raises(NoAnswerError, match=r"llama-server did not answer within 0.5 s"):
        server.complete(HASTY)


def test_drips(launched):
    """An answer that comes byte by byte is not allowed more time than the whole."""
    server = launched("drips")
    with pytest.raises(NoAnswerError, match=r"did not answer within 0.5 s"):
        server.complete(HASTY)


def test_garbage(launched):
    """The start of what came instead of JSON is shown."""
    with pytest.raises(RequestError, match="not JSON: '<html>not JSON"):
        launched("garbage").complete(QUESTION)


def test_no_timings(launched):
    """An answer that cannot be measured is an error, not zeros."""
    with pytest.raises(RequestError, match="cannot be read: no 'timings'"):
        launched("no-timings").complete(QUESTION)


def test_refuses(launched):
    """The server's own message is passed on."""
    with pytest.raises(RequestError, match="status 400: the request exceeds the available context size"):
        launched("refuses").complete(QUESTION)


def test_dies_in_mid_answer(launched):
    """Told as a death, with the log's last lines, long before the request's own time."""
    server = launched("dies-in-mid-answer")
    begun = time.monotonic()
    with pytest.raises(
        ServerDiedError, match="was ended by SIGKILL during a request; its log ends: fake server"
    ):
        server.complete(QUESTION)
    assert time.monotonic() - begun < 20


def test_a_cut_connection_is_not_a_death(launched, monkeypatch):
    """The process lives: another sentence."""
    monkeypatch.setattr("autospec.backends.openai_http._DEATH_SETTLE_S", 0.3)
    server = launched("cuts-answer")
    with pytest.raises(RequestError, match="connection to llama-server broke") as caught:
        server.complete(QUESTION)
    assert not isinstance(caught.value, ServerDiedError)


def test_a_dead_server_is_not_asked(launched):
    """A second request to a dead server says so at once."""
    server = launched()
    os.kill(max(server.pids), signal.SIGKILL)
    wait_until(lambda: gone(server.pids))
    with pytest.raises(ServerDiedError):
        server.complete(QUESTION)


def test_ctrl_c_comes_through(launched):
    """A KeyboardInterrupt during a request is raised promptly, and stop still works."""
    server = launched("hangs")
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        server.complete(QUESTION)
    assert time.monotonic() - begun < 20
    timer.join()
    server.stop()
    assert gone(server.pids)


def test_a_taken_port_is_tried_again_once(fake, children, monkeypatch):
    """The second port is free, and the launch succeeds."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        real, first = child_server.free_port, [taken.getsockname()[1]]
        monkeypatch.setattr(child_server, "free_port", lambda: first.pop() if first else real())
        server = fake().launch("/models/main.gguf", OFF, SETTINGS)
        try:
            assert server.complete(QUESTION).text == "text"
            assert server.base_url != f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.stop()


def test_a_port_taken_twice_is_told(fake, children, monkeypatch):
    """Not a permanent failure: the next launch may find a free one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(child_server, "free_port", lambda: port)
        with pytest.raises(LaunchError, match=f"Port {port} was taken") as caught:
            fake().launch("/models/main.gguf", OFF, SETTINGS)
    assert not caught.value.permanent


def test_somebody_elses_server_on_the_port_is_not_ours(fake, launched, monkeypatch):
    """A server that answers /health is not enough: it must be the one that was started."""
    other = launched()
    port = int(other.base_url.rpartition(":")[2])
    monkeypatch.setattr(child_server, "free_port", lambda: port)
    with pytest.raises(LaunchError, match=f"Port {port} was taken"):
        fake("never-listens").launch("/models/main.gguf", OFF, SETTINGS)


def test_a_server_that_ignores_sigterm_is_stopped(launched, monkeypatch):
    """Whatever it does, it is dead when stop returns."""
    monkeypatch.setattr("autospec.backends.process.STOP_GRACE_S", 0.3)
    server = launched("ignores-sigterm")
    server.stop()
    assert gone(server.pids)


def test_a_request_says_all_that_matters(fake, launched):
    """Nothing cached, greedy made greedy, one slot, tools passed on."""
    from autospec.backends.openai_http import request_body

    body = request_body(dataclasses.replace(QUESTION, tools=({"type": "function"},)))
    assert body["cache_prompt"] is False
    assert (body["temperature"], body["top_k"], body["repeat_penalty"]) == (0.0, 1, 1.0)
    assert (body["seed"], body["id_slot"], body["max_tokens"]) == (42, 0, 8)
    assert body["tools"] == [{"type": "function"}]
    warm = request_body(dataclasses.replace(QUESTION, temperature=0.7))
    assert warm["temperature"] == 0.7
    assert "top_k" not in warm


def test_text_is_everything_but_random_ids():
    """Reasoning, content and tool calls count for the lossless check; call ids differ each time."""
    from autospec.backends.openai_http import read_completion

    call = {"id": "random", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"reasoning_content": "hm ", "content": None, "tool_calls": [call]}
    timings = {"prompt_n": 1, "prompt_ms": 1, "predicted_n": 1, "predicted_ms": 1}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "timings": timings}
    done = read_completion(answer, 1.0, tells_drafts=False)
    assert done.text == 'hm [["f", "{\\"a\\":1}"]]'
    assert (done.drafted, done.accepted, done.still_reasoning) == (None, None, False)
    answer["choices"] = [{"message": {"reasoning_content": "hm", "content": ""}, "finish_reason": "length"}]
    assert read_completion(answer, 1.0, tells_drafts=False).still_reasoning


def test_each_launch_prunes_the_logs(launched, state_dir):
    """Only a process's first one did, so a model that a proxy tried each minute left 1440 logs a day."""
    launched()
    for i in range(60):
        (state_dir / "launches" / f"20200101T0000{i:02}Z-0.log").touch()
    launched()
    assert len(list(state_dir.glob("launches/*.log"))) == 51  # fifty, and the new one


def test_a_failed_launch_leaves_no_record(fake, children, state_dir):
    """Only the log stays, for reading."""
    with pytest.raises(LaunchError):
        fake("dies-at-start").launch("/models/main.gguf", OFF, SETTINGS)
    assert not list(state_dir.glob("launches/*.json"))
    assert list(state_dir.glob("launches/*.log"))
