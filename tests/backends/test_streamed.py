"""Streamed answers: what is read of them, and that an answer that was cut off is an error."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.backends.process import Ended
from autospec.backends.protocol import Request
from autospec.backends.streamed import AnswerReader, StreamedClient, data_of, streamed_body
from autospec.errors import LateAnswerError, NoAnswerError, RequestError, ServerDiedError

QUESTION = Request(messages=({"role": "user", "content": "hello"},), max_tokens=8, timeout_s=30.0)
USAGE = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 5}}


def delta(finish=None, **fields):
    """A chunk."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


GOOD = [delta(role="assistant"), delta(content="Hel"), delta(content="lo"), delta("stop"), USAGE]


def answer(chunks, *, every_ms=10.0):
    """What chunks that come at even times make."""
    reader = AnswerReader()
    for number, chunk in enumerate(chunks, start=1):
        reader.read(chunk, number * every_ms)
    return reader.answer((len(chunks) + 1) * every_ms)


def test_times_are_from_the_first_token_to_the_last():
    """A chunk that only names the role is no token, nor is the one that tells the usage."""
    done = answer(GOOD)
    assert (done.text, done.finish_reason) == ("Hello", "stop")
    assert (done.prompt_tokens, done.predicted_tokens) == (12, 5)
    assert (done.prompt_ms, done.predicted_ms, done.wall_ms) == (20.0, 10.0, 60.0)
    assert (done.drafted, done.accepted) == (None, None)


def test_without_usage_chunks_are_counted():
    """A chunk may hold several tokens, so what the server tells wins."""
    assert answer(GOOD).predicted_tokens == 5
    counted = answer(GOOD[:-1])
    assert (counted.prompt_tokens, counted.predicted_tokens) == (0, 2)


def test_cached_tokens_of_the_prompt_do_not_count():
    """As llama.cpp's ``prompt_n``: what was computed for this request."""
    usage = {"prompt_tokens": 12, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}
    assert answer([delta(content="a"), {"usage": usage}]).prompt_tokens == 3


def test_the_servers_own_times_win():
    """llama.cpp streams its timings in the last chunk."""
    timings = {"prompt_n": 4, "prompt_ms": 7.5, "predicted_n": 6, "predicted_ms": 31.0, "draft_n": 8}
    done = answer([delta(content="a"), {**delta("stop"), "timings": timings | {"draft_n_accepted": 3}}])
    assert (done.prompt_ms, done.predicted_ms, done.prompt_tokens, done.predicted_tokens) == (7.5, 31.0, 4, 6)
    assert (done.drafted, done.accepted) == (8, 3)


@pytest.mark.parametrize("place", ["stats", "usage"])
def test_lm_studios_draft_counts(place):
    """Told in ``stats`` since 0.3.10, in ``usage`` by 0.4.24."""
    counts = {"total_draft_tokens_count": 40, "accepted_draft_tokens_count": 30}
    done = answer([delta(content="a"), {**USAGE, place: {**USAGE["usage"], **counts}}])
    assert (done.drafted, done.accepted) == (40, 30)


def test_vllms_draft_counts():
    """With --per-request-spec-decode-metrics, in the chunk of the usage (vllm-project/vllm#48915)."""
    told = {
        "mean_acceptance_length": 1.23,
        "draft_acceptance_rate": 0.0775,
        "acceptance_histogram": [39, 1, 0, 3],
        "num_spec_steps": 43,
        "num_accepted_draft_tokens": 10,
        "num_draft_tokens": 129,
        "num_spec_tokens": 3,
    }
    chunk = {**USAGE, "metrics": {"time_to_first_token_ms": 85.2, "speculative_decoding": told}}
    done = answer([delta(content="a"), chunk])
    assert (done.drafted, done.accepted) == (129, 10)
    assert answer([delta(content="a"), {**USAGE, "metrics": None}]).drafted is None


def test_mlx_vlms_timings():
    """llama.cpp's names; the draft fields are null unless a drafter ran (Blaizzy/mlx-vlm#1788)."""
    timings = {"prompt_n": 4, "cache_n": 0, "prompt_ms": 7.5, "predicted_n": 6, "predicted_ms": 31.0}
    nothing = {"draft_kind": None, "draft_rounds": None, "draft_n": None, "draft_n_accepted": None}
    ran = {"draft_kind": "mtp", "draft_rounds": 3, "draft_n": 9, "draft_n_accepted": 8}
    for fields, drafts in ((nothing, (None, None)), (ran, (9, 8))):
        done = answer([delta(content="a"), {**delta("stop"), "timings": timings | fields}])
        assert (done.predicted_tokens, done.predicted_ms) == (6, 31.0)
        assert (done.drafted, done.accepted) == drafts


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("prompt_n", "predicted_n", "prompt_ms", "predicted_ms", "draft_n", "draft_n_accepted"),
                    *("prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens"),
                    *("total_draft_tokens_count", "accepted_draft_tokens_count", "speculative_decoding"),
                    *("num_draft_tokens", "num_accepted_draft_tokens"),
                ]
            ),
            inner,
            max_size=8,
        )
    ),
    max_leaves=15,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["usage", "stats", "timings", "metrics"], ODD)))
def test_whatever_is_told_of_an_answer_it_is_an_answer(told):
    """Counts of another shape are unknown: then the chunks are counted and their arrival is timed."""
    done = answer([delta(content="Hel"), delta(content="lo"), {**delta("stop"), **told}])
    assert done.text == "Hello"
    assert 0 <= done.prompt_tokens < 2**31
    assert 0 <= done.predicted_tokens < 2**31
    assert 0 <= done.prompt_ms < 2**31
    assert 0 <= done.predicted_ms < 2**31
    assert (done.accepted or 0) <= (done.drafted or 0)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_text_and_starts_the_clock(name):
    """The first token is the first token, whatever it is for."""
    done = answer([delta(**{name: "hm "}), delta(content="yes"), delta("stop")])
    assert (done.text, done.prompt_ms) == ("hm yes", 10.0)


@pytest.mark.parametrize(
    ("parts", "reasoning"),
    [
        ([{"reasoning_content": "hm "}, {"reasoning_content": "so"}], True),
        ([{"reasoning": "hm "}, {"content": "\n"}], True),
        ([{"reasoning_content": "hm"}, {"content": "yes"}], False),
        (
            [{"reasoning_content": "hm"}, {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
            False,
        ),
        ([{"content": "yes"}], False),
        ([{"content": "\n<think>\nhm"}], True),
        ([{"content": "<think>hm</think> yes"}], False),
        ([{"content": "<|channel|>analysis<|message|>hm"}], True),
        ([{"content": "What is <think>?"}], False),
    ],
)
def test_whether_an_answer_has_come_beyond_its_reasoning(parts, reasoning):
    """By the fields that tell reasoning apart; where a server leaves it in the text, by its marks."""
    assert answer([delta(**part) for part in parts]).still_reasoning is reasoning


def test_tool_calls_in_pieces_and_whole():
    """OpenAI's pieces by index, and whole calls without one, in the form of the other client; ids are random and left out."""
    pieces = [
        delta(tool_calls=[{"index": 0, "id": "x", "function": {"name": "f", "arguments": '{"a"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
    ]
    whole = [delta(tool_calls=[{"id": "y", "function": {"name": "f", "arguments": '{"a":1}'}}])]
    assert answer(pieces).text == answer(whole).text == '[["f", "{\\"a\\":1}"]]'
    assert answer([*whole, *whole]).text.count('"f"') == 2


def test_an_error_in_mid_answer():
    """Status 200 has been sent long ago; the chunk tells."""
    with pytest.raises(RequestError, match="out of memory"):
        answer([delta(content="a"), {"error": {"message": "out of memory"}}])


def test_greedy_without_a_seed_and_fields_taken_out():
    """A seed turns batching off in mlx_lm.server, and means nothing at temperature 0."""
    assert "seed" not in streamed_body(QUESTION)
    warm = streamed_body(dataclasses.replace(QUESTION, temperature=0.7, tools=({"type": "function"},)))
    assert (warm["seed"], warm["temperature"], warm["tools"]) == (42, 0.7, [{"type": "function"}])
    changed = streamed_body(QUESTION, {"draft_model": "/d", "stream_options": None})
    assert changed["draft_model"] == "/d"
    assert "stream_options" not in changed


def test_events_are_cut_at_line_feeds_only():
    """Parts may end anywhere, also within a character; U+2028 may stand in a text."""
    body = ': keep\r\ndata: {"a": "\u2028é"}\r\n\r\nevent: x\ndata:[DONE]\n\n'.encode()
    assert list(data_of(bytes([b]) for b in body)) == ['{"a": "\u2028é"}', "[DONE]"]


class Scripted(ThreadingHTTPServer):
    """A stand-in for faults: answers each request with the next of `script`, a status, a kind and the parts of a body."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.bodies, self.hang = [], [], threading.Event()

    def handle_error(self, *_args):
        """Nothing."""


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0 without a length, as mlx_lm.server streams: the end of the connection is the end of the answer."""

    def log_message(self, *_args):
        """Nothing."""

    def do_POST(self):
        """The next answer."""
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        status, kind, parts = self.server.script.pop(0)
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        for part in parts:
            if part is None:
                self.server.hang.wait(30)
            else:
                self.wfile.write(part)
                self.wfile.flush()


def events(chunks, *, done=True):
    """The parts of a stream."""
    return [f"data: {json.dumps(c)}\n\n".encode() for c in chunks] + [b"data: [DONE]\n\n"] * done


SSE = "text/event-stream"


@pytest.fixture
def server():
    """Runs while the test does."""
    with Scripted() as scripted:
        threading.Thread(target=scripted.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield scripted
        scripted.hang.set()
        scripted.shutdown()


@pytest.fixture
def client(server, monkeypatch):
    """Its client; `client.end` is how its process ended."""
    monkeypatch.setattr("autospec.backends.openai_http._DEATH_SETTLE_S", 0.1)
    ends = []
    made = StreamedClient(
        f"http://127.0.0.1:{server.server_port}",
        "mlx",
        lambda _timeout: ends[0] if ends else None,
        lambda _lines: ("last words",),
        {"authorization": "Bearer key"},
    )
    made.end = ends.append
    yield made
    made.close()


def test_an_answer_over_http(server, client):
    """Comments that keep the connection alive are passed over; the clock is ours."""
    server.script.append((200, SSE, [b": keepalive 1/9\n\n", *events(GOOD)]))
    done = client.complete(QUESTION, {"num_draft_tokens": 3})
    assert (done.text, done.predicted_tokens) == ("Hello", 5)
    assert 0 < done.prompt_ms <= done.prompt_ms + done.predicted_ms <= done.wall_ms
    assert server.bodies[0]["num_draft_tokens"] == 3
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_a_server_that_refuses_stream_options_is_asked_without(server, client):
    """Once: then it is known."""
    refusal = (422, "application/json", [b'{"error": {"message": "extra field stream_options"}}'])
    server.script += [refusal, (200, SSE, events(GOOD[:-1])), (200, SSE, events(GOOD[:-1]))]
    assert client.complete(QUESTION).predicted_tokens == 2
    client.complete(QUESTION)
    assert ["stream_options" in body for body in server.bodies] == [True, False, False]


def test_a_refusal(server, client):
    """The server's own sentence."""
    server.script.append((404, "application/json", [b'{"error": "no model /d"}']))
    with pytest.raises(RequestError, match="mlx refused the request with status 404: no model /d") as caught:
        client.complete(QUESTION)
    assert not isinstance(caught.value, NoAnswerError)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_refusal_for_now_is_no_fault_of_the_prompt(server, client, status):
    """A server that loads, or has too much to do: the same prompt is answered later."""
    server.script.append((status, "application/json", [b'{"error": {"message": "Loading model"}}']))
    with pytest.raises(NoAnswerError, match=f"status {status}: Loading model"):
        client.complete(QUESTION)


@pytest.mark.parametrize("kept", [2, 3, 4])
def test_a_stream_that_ends_early_is_no_answer(server, client, kept):
    """Also where all the text has come: without its end nobody knows."""
    server.script.append((200, SSE, events(GOOD[:kept], done=False)))
    with pytest.raises(NoAnswerError, match="mlx ended its answer too early"):
        client.complete(QUESTION)


def test_an_end_without_a_reason_is_no_answer(server, client):
    """A server may send [DONE] from a ``finally``."""
    server.script.append((200, SSE, events(GOOD[:3])))
    with pytest.raises(RequestError, match="mlx ended its answer too early"):
        client.complete(QUESTION)


def test_a_death_in_mid_answer(server, client):
    """Told as a death, though the stream's end looks like any other."""

    def parts():
        yield from events(GOOD[:2], done=False)
        client.end(Ended(signal=9))

    server.script.append((200, SSE, parts()))
    with pytest.raises(ServerDiedError, match=r"mlx was ended by SIGKILL during a request; .*last words"):
        client.complete(QUESTION)


def test_a_dead_server_is_not_asked(server, client):
    """Its port may be somebody else's by now."""
    client.end(Ended(code=1))
    with pytest.raises(ServerDiedError, match="ended with status 1"):
        client.complete(QUESTION)
    assert not server.bodies


@pytest.mark.parametrize("start", [[], [b": keepalive\n\n"], events(GOOD[:2], done=False)])
def test_a_server_that_hangs(server, client, start):
    """Before its first byte or after: the time of the whole request is kept."""
    server.script.append((200, SSE, [*start, None]))
    begun = time.monotonic()
    with pytest.raises(LateAnswerError, match=r"mlx did not answer within 0.3 s"):
        client.complete(dataclasses.replace(QUESTION, timeout_s=0.3))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("body", [b"data: {broken\n\n", b'data: {"choices": [3]}\n\n', b"data: []\n\n"])
def test_garbage(server, client, body):
    """Not read as an empty answer."""
    server.script.append((200, SSE, [body]))
    with pytest.raises(RequestError, match="cannot be read"):
        client.complete(QUESTION)


def test_a_server_that_does_not_stream(server, client):
    """There is no first token to time."""
    server.script.append((200, "application/json", [b'{"choices": []}']))
    with pytest.raises(RequestError, match="mlx does not stream"):
        client.complete(QUESTION)
