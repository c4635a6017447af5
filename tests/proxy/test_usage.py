"""What is read of an answer that passes: token counts, its end, and the sample made of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.proxy.usage import RequestOutcome, TokenCounts, UsageReader, read_counts, sample_of, saw_the_end

TIMINGS = {
    "prompt_n": 3,
    "prompt_ms": 1.5,
    "predicted_n": 9,
    "predicted_ms": 90.0,
    "draft_n": 8,
    "draft_n_accepted": 6,
}


def test_timings_are_found_at_the_end_and_text_cannot_pretend():
    """The last ones count; quotation marks in text are escaped, so text is never taken for a field."""
    fake = json.dumps({"content": '"timings":{"prompt_n":1,"predicted_n":99}', "timings": TIMINGS})
    first = json.dumps({"timings": {**TIMINGS, "predicted_n": 1}})
    found = read_counts(f"data: {first}\n\ndata: {fake}\n\ndata: [DONE]\n\n".encode())
    assert found == TokenCounts(3, 9, 1.5, 90.0, 8, 6)
    assert read_counts(json.dumps({"content": '"timings":{}'}).encode()) is None
    assert read_counts(b'"timings":{"prompt_n":') is None


def test_usage_counts_where_there_are_no_timings():
    """OpenAI's and Anthropic's names; cached tokens were not processed."""
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    assert read_counts(json.dumps({"usage": usage}).encode()) == TokenCounts(2, 4, cached_tokens=8)
    assert read_counts(b'{"usage": {"input_tokens": 5, "output_tokens": 6}}') == TokenCounts(5, 6)


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": [1]}}, None),
        (
            {
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": "3"},
                }
            },
            None,
        ),
        (
            {"usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": None}},
            TokenCounts(9, 4),
        ),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": 4}}, None),
        ({"usage": {"prompt_tokens": True, "completion_tokens": 4}}, None),
        ({"timings": {**TIMINGS, "prompt_n": float("inf")}}, None),
        ({"timings": {**TIMINGS, "predicted_n": 10**20}}, None),
        ({"timings": {**TIMINGS, "prompt_ms": float("nan")}}, None),
        ({"timings": {**TIMINGS, "predicted_ms": -1.0}}, None),
        ({"timings": {**TIMINGS, "predicted_ms": "90"}}, None),
        ({"timings": [TIMINGS]}, None),
        # mlx-vlm's fields are null unless a drafter ran.
        (
            {"timings": {**TIMINGS, "draft_n": None, "draft_n_accepted": None}},
            TokenCounts(3, 9, 1.5, 90.0),
        ),
        ({"timings": {**TIMINGS, "draft_n": 10**20}}, TokenCounts(3, 9, 1.5, 90.0)),
        ({"timings": {**TIMINGS, "draft_n_accepted": 9}}, TokenCounts(3, 9, 1.5, 90.0)),
        ({"timings": {**TIMINGS, "draft_n_accepted": []}}, TokenCounts(3, 9, 1.5, 90.0, 8)),
    ],
)
def test_counts_of_another_shape_are_unknown(answer, counts):
    """What is good beside them is kept."""
    assert read_counts(json.dumps(answer).encode()) == counts


@pytest.mark.parametrize("odd", [{"note": "}"}, {"note": '"{}"'}, {"nested": {"a": [{}]}}, {"note": '\\"}'}])
def test_counts_beside_braces(odd):
    """In a string or around another object, before the counts and behind them."""
    for timings in ({**odd, **TIMINGS}, {**TIMINGS, **odd}):
        assert read_counts(json.dumps({"timings": timings}).encode()) == read_counts(
            json.dumps({"timings": TIMINGS}).encode()
        )


def test_a_number_without_end_and_a_nest_without_bottom():
    """What JSON can say and Python's parser refuses."""
    assert read_counts(b'{"timings": {"prompt_n": ' + b"9" * 5000 + b"}}") is None
    assert read_counts(b'{"usage": {"a": ' + b"[" * 15_000) is None
    assert read_counts(b'{"timings": {"prompt_n": 1e999, "predicted_n": 1}}') is None


COUNTED = st.sampled_from(
    [
        *TIMINGS,
        "prompt_tokens",
        "completion_tokens",
        "input_tokens",
        "output_tokens",
        "prompt_tokens_details",
        "input_tokens_details",
        "cached_tokens",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 5, 2**31 - 1, 2**31, 10**20, 1e308])
ODD = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(COUNTED, inner, max_size=6),
    max_leaves=12,
)
# Mostly near to what a server sends, so that each reader comes to its end.
NEAR = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(TIMINGS, NUMBERS | ODD)
    | dict.fromkeys(("prompt_tokens", "completion_tokens", "prompt_tokens_details"), NUMBERS | ODD),
)


@given(ODD | NEAR, ODD | NEAR, ODD, st.integers(0, 400))
def test_any_document_is_read_without_an_error(timings, usage, metrics, lost):
    """A count is unknown, or one that every database holds; whatever a backend says, and wherever the kept bytes begin."""
    content = json.dumps({"metrics": metrics, "usage": usage, "timings": timings}).encode()
    counts = read_counts(content[lost:])
    if counts is None:
        return
    told = [counts.prompt_tokens, counts.predicted_tokens, counts.drafted, counts.accepted]
    assert all(type(n) is int and 0 <= n < 2**31 for n in told if n is not None)
    assert all(0 <= ms < 2**31 for ms in (counts.prompt_ms, counts.predicted_ms) if ms is not None)
    assert (counts.accepted or 0) <= (counts.drafted or 0)


def test_usage_that_arrives_in_two_parts():
    """Anthropic's stream tells the prompt at its beginning and the answer's tokens, which grow, at its end."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    end = {"type": "message_delta", "usage": {"output_tokens": 15, "input_tokens": None}}
    events = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in (start, end))
    assert read_counts(events) == TokenCounts(25, 15)
    assert read_counts(events[60:]) is None  # the beginning of a long answer is not kept
    odd = json.dumps({"usage": {"output_tokens": "15"}}).encode()
    assert read_counts(events + odd) is None


def test_the_last_timings_count_or_none():
    """Those of an earlier event are of a part of the answer."""
    first, last = json.dumps({"timings": TIMINGS}), json.dumps({"timings": {**TIMINGS, "predicted_n": None}})
    assert read_counts(f"data: {first}\n\ndata: {last}\n\n".encode()) is None


def test_tail_keeps_the_end_and_not_the_whole():
    """Of a long stream 16 KiB, whatever the size of its parts; in between at most 1 MiB and one part more is held."""
    for size in (1, 10, 250, 4000, 5000, 20_000, 300_000):
        tail, whole = UsageReader(), b""
        for number in range(2_000 if size < 1000 else 60):
            part = (b"%d," % number * size)[-size:]
            whole = (whole + part)[-16 * 1024 :]
            tail.feed(part)
            assert sum(map(len, tail.parts)) <= 16 * 1024 + 256 * 4096
        assert tail.content() == whole


@pytest.mark.parametrize(
    ("end", "seen"),
    [
        (b"data: [DONE]\n\n", True),
        (b'data: {"type":"message_stop"}', True),
        (b'{"stop":true}', True),
        (b"x", False),
    ],
)
def test_streams_say_that_they_are_complete(end, seen):
    """In one of the ways of the APIs."""
    assert saw_the_end(b"data: {}\n\n" + end) is seen


def test_sample_of_an_answer():
    """Complete answers with counts are evidence; with the server's clock, or ours where a stream has none."""
    drafting = Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=8, n_min=0)
    outcome = RequestOutcome(
        1.0, "/v1/completions", "main", "mlx", "1", PromptType.QA, drafting,
        status=200, complete=True, first_byte_ms=20.0, total_ms=100.0, streamed=True, counts=TokenCounts(5, 8),
    )  # fmt: skip
    sample = sample_of(outcome)
    assert (sample.prompt_ms, sample.predicted_ms, sample.drafted) == (20.0, 80.0, None)
    assert sample_of(replace(outcome, streamed=False)) is None
    assert sample_of(replace(outcome, complete=False)) is None
    assert sample_of(replace(outcome, status=500)) is None
    assert sample_of(replace(outcome, drafting=OFF)).drafted == 0


def test_a_request_that_sets_its_own_drafting_tells_nothing_of_the_server_s():
    """Builds of 2025 obey `speculative.n_max` of a request. Without a draft it changes nothing."""
    outcome = RequestOutcome(
        1.0, "/completion", "main", "llama-server", "b5000", None, Drafting(Mode.DRAFT_MODEL, "/d", n_max=4),
        status=200, complete=True, counts=TokenCounts(5, 8, 1.0, 80.0, 0, 0), sets_drafting=True,
    )  # fmt: skip
    assert sample_of(outcome) is None
    assert sample_of(replace(outcome, sets_drafting=False)) is not None
    assert sample_of(replace(outcome, drafting=OFF)) is not None


@pytest.mark.parametrize(("drafting", "told"), [(OFF, None), (Drafting(Mode.DRAFT_MODEL, "/d", n_max=4), 0)])
def test_what_is_cached_without_drafting_is_unknown_where_a_draft_keeps_the_cache_away(drafting, told):
    """MLX with a draft loaded: nothing is cached. That holds for drafted requests, and tells nothing of a server without it."""
    outcome = RequestOutcome(
        1.0, "/v1/chat/completions", "main", "mlx", "1", PromptType.CHAT, drafting,
        status=200, complete=True, streamed=True, counts=TokenCounts(1500, 8, cached_tokens=0), keeps_cache=False,
    )  # fmt: skip
    sample = sample_of(outcome)
    assert (sample.prompt_tokens, sample.cached_tokens) == (1500, told)
    assert sample_of(replace(outcome, keeps_cache=True)).cached_tokens == 0
