"""Reading answers in token ids: missing fields and impossible values."""

from __future__ import annotations

import math

import pytest

from autospec.backends.token_http import HttpTokens
from autospec.errors import RequestError


class Client:
    """Gives one answer to whatever is asked."""

    def __init__(self, answer):
        self.answer = answer

    def post(self, path, body, timeout_s):
        """The answer, and a time."""
        return self.answer, 1.0


def entry(token, *logprobs):
    """One token's candidates; the first is the token itself."""
    return {"top_logprobs": [{"id": token + k, "logprob": p} for k, p in enumerate(logprobs)]}


def test_probability_is_over_the_candidates():
    """A draft compares p-min with a softmax over ten tokens, not over the vocabulary."""
    answer = {"tokens": [7], "completion_probabilities": [entry(7, math.log(0.3), math.log(0.1))]}
    [proposal] = HttpTokens(Client(answer)).propose([1], 1)
    assert (proposal.token, proposal.p) == (7, pytest.approx(0.75))


def test_token_within_a_character_has_no_probability():
    """b11434 leaves it out of the list, and the whole list where it was the only token."""
    told = {"tokens": [7, 8], "completion_probabilities": [entry(8, 0.0)]}
    first, second = HttpTokens(Client(told)).propose([1], 2)
    assert math.isnan(first.p)
    assert second.p == 1.0
    [alone] = HttpTokens(Client({"tokens": [7]})).propose([1], 1)
    assert math.isnan(alone.p)


@pytest.mark.parametrize(
    "answer", [{}, [], {"tokens": ["a"]}, {"tokens": [1], "completion_probabilities": [{}]}]
)
def test_answers_without_sense_are_refused(answer):
    """One plain sentence, no traceback."""
    with pytest.raises(RequestError):
        HttpTokens(Client(answer)).propose([1], 1)


class Timed:
    """A server that says how many tokens it computed, and remembers what it was asked."""

    def __init__(self, computed):
        self.computed = computed
        self.asked = []
        self.timeouts = []
        self.told = {}

    def post(self, path, body, timeout_s):
        """Its times."""
        self.asked.append(dict(body))
        self.timeouts.append(timeout_s)
        return {"timings": {"prompt_n": self.computed, "prompt_ms": 12.5}, **self.told}, 13.0


def test_a_batch_is_timed_behind_a_cached_prompt():
    """The prompt first, then the prompt with the batch, both with the cache."""
    client = Timed(3)
    assert HttpTokens(client).batch_ms([1, 2], [7, 8, 9]) == 12.5
    assert [body["prompt"] for body in client.asked] == [[1, 2], [1, 2, 7, 8, 9]]
    assert all(body["cache_prompt"] for body in client.asked)


def test_the_next_batches_behind_the_same_prompt_take_one_request_each():
    """The prompt is in the cache; another one, or another request meanwhile, brings it there again."""
    client = Timed(3)
    tokens = HttpTokens(client)
    for _ in range(3):
        tokens.batch_ms([1, 2], [7, 8, 9])
    assert [body["prompt"] for body in client.asked] == [[1, 2], *[[1, 2, 7, 8, 9]] * 3]
    tokens.batch_ms([1, 2, 3], [7, 8, 9])
    assert [body["prompt"] for body in client.asked[4:]] == [[1, 2, 3], [1, 2, 3, 7, 8, 9]]


def test_a_prompt_that_is_no_longer_in_the_cache_is_brought_back():
    """Somebody else asked the same slot: the whole prompt was computed, and its time is not the batch's."""
    client = Timed(3)
    tokens = HttpTokens(client)
    tokens.batch_ms([1, 2], [7, 8, 9])
    told = iter([5, 2, 3])
    client.post = lambda _path, _body, _timeout_s: (
        {"timings": {"prompt_n": (n := next(told)), "prompt_ms": 10.0 * n}},
        1.0,
    )
    assert tokens.batch_ms([1, 2], [7, 8, 9]) == 30.0


def test_a_long_text_may_take_as_long_as_a_slow_machine_needs():
    """Both requests that may compute all of it have half a second for each of its tokens, besides what a short one has."""
    for ask in (
        lambda tokens, ids: tokens.batch_ms(ids, [7, 8, 9]),
        lambda tokens, ids: tokens.propose(ids, 1),
    ):
        client = Timed(3)
        client.told = {"tokens": [7]}
        ask(HttpTokens(client), list(range(2000)))
        assert all(1100.0 < timeout_s < 1200.0 for timeout_s in client.timeouts)


def test_a_batch_behind_nothing_takes_nothing_from_the_cache():
    """One request, of the batch alone: an old answer may begin with the same tokens."""
    client = Timed(3)
    assert HttpTokens(client).batch_ms((), [7, 8, 9]) == 12.5
    assert [(body["prompt"], body["cache_prompt"]) for body in client.asked] == [([7, 8, 9], False)]


def test_a_batch_that_was_not_computed_alone_is_no_time():
    """A cache that cannot be cut goes back to a checkpoint, and more is computed than was new."""
    with pytest.raises(RequestError, match="computed 6 tokens"):
        HttpTokens(Timed(6)).batch_ms([1, 2], [7])
