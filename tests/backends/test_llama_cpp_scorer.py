"""Scoring in process gives what a server's own probabilities give."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from autospec.backends.embedded import Embedded
from autospec.backends.llama_cpp_scorer import LlamaCppScorer, most_likely
from autospec.backends.protocol import Request
from autospec.drafting import OFF
from autospec.errors import ModelFileError, RequestError
from tests.backends.contract import SETTINGS

ASKED = Request(
    messages=({"role": "user", "content": "Name three colours."},), max_tokens=24, timeout_s=120.0
)


def test_the_probability_is_among_ten():
    """As llama.cpp's draft computes it before it compares with p-min."""
    logits = np.array([*range(12)], dtype=np.float32)
    proposal = most_likely(logits)
    assert proposal.token == 11
    assert proposal.p == pytest.approx(1 / sum(math.exp(-k) for k in range(10)))


def test_a_small_vocabulary():
    """Fewer than ten tokens share what there is."""
    assert most_likely(np.zeros(4, dtype=np.float32)).p == pytest.approx(0.25)


@pytest.fixture
def scorer(lab_models):
    """SmolLM2 in this process."""
    pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")
    with LlamaCppScorer(str(lab_models.smollm2), n_ctx=512, n_threads=1) as made:
        yield made


def test_it_agrees_with_a_server(scorer, lab_models, state_dir):
    """One evaluation of the answer against a server asked token by token: the same tokens, probabilities but for rounding."""
    pytest.importorskip("xllamacpp")
    server = Embedded(state_dir).launch(str(lab_models.smollm2), OFF, SETTINGS)
    try:
        prompt = server.tokens.encode(ASKED)
        answer = server.tokens.generate(prompt, ASKED).ids
        asked = [server.tokens.propose([*prompt, *answer[:k]], 1)[0] for k in range(len(answer) - 1)]
    finally:
        server.stop()
    scored = scorer.score(prompt, answer)
    assert len(scored) == len(answer)
    same = [(a, b) for a, b in zip(asked, scored, strict=False) if not math.isnan(a.p)]
    # Batches of another size round otherwise: a near tie may fall the other way.
    assert sum(a.token == b.token for a, b in same) >= len(same) - 1
    # Two builds with other kernels, and batches of 24 against 1: Q4_1's rounded activations make 0.05 of a probability, at
    # most, in what was seen; what a p-min decides is the typical one.
    apart = [abs(a.p - b.p) for a, b in same if a.token == b.token]
    assert max(apart) < 0.12
    assert statistics.fmean(apart) < 0.03


def test_going_on_is_scoring_oneself(scorer):
    """A greedy continuation, scored, proposes itself; and what is in the cache changes nothing."""
    prompt = scorer._llama.tokenize(b"One, two, three, four,")
    first = scorer.propose(prompt, 8)
    scorer.score(prompt[:3], prompt[3:])
    assert [p.token for p in scorer.score(prompt, [p.token for p in first])] == [p.token for p in first]
    assert scorer.propose(prompt, 8) == first
    assert scorer.score(prompt, []) == []


def test_a_text_that_does_not_fit(scorer):
    """Said before it is computed."""
    with pytest.raises(RequestError, match="do not fit the scorer's context of 512"):
        scorer.score([1] * 600, [1])


def test_a_damaged_model(lab_models):
    """The file's fault."""
    pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        LlamaCppScorer(str(lab_models.damaged), n_ctx=128)
