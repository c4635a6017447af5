"""What is read of an answer that passes: token counts, its end, and the sample made of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

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
    assert read_counts(json.dumps({"usage": usage}).encode()) == TokenCounts(2, 4)
    assert read_counts(b'{"usage": {"input_tokens": 5, "output_tokens": 6}}') == TokenCounts(5, 6)


def test_tail_keeps_the_end_and_not_the_whole():
    """A long stream costs 16 KiB and its last part."""
    tail = UsageReader()
    for number in range(10_000):
        tail.feed(b"%09d\n" % number)
    assert tail.content().endswith(b"000009999\n")
    assert 16 * 1024 <= len(tail.content()) < 17 * 1024


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
