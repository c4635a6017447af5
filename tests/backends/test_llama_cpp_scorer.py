"""A scorer in a child process gives the server's own probabilities; if the child dies, an error says so."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import statistics
import sys
from contextlib import suppress

import numpy as np
import pytest

from autospec.backends.llama_cpp import scorer as scorer_module
from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.llama_cpp.scorer import LlamaCppScorer, most_likely
from autospec.backends.protocol import Request
from autospec.drafting import OFF
from autospec.errors import LaunchError, RequestError, ServerDiedError
from tests.backends.contract import SETTINGS

ASKED = Request(
    messages=({"role": "user", "content": "Name three colours."},), max_tokens=24, timeout_s=120.0
)
# Any ids will do: what is held is that the same ones give the same.
COUNTING = (3575, 28, 827, 28, 1296, 28, 1937, 28)
# What an AMX build of GCC 12's does: nothing until the first batch.
DIES = """
import os, signal
class Llama:
    def __init__(self, *args, **options):
        self.ctx = self.model = None
    def n_ctx(self):
        return 128
    def n_vocab(self):
        return 10
def llama_batch_init(*args):
    return None
def llama_get_memory(context):
    os.kill(os.getpid(), signal.SIGILL)
"""


def test_the_probability_is_among_ten():
    """As llama.cpp's draft computes it before it compares with p-min."""
    logits = np.array([*range(12)], dtype=np.float32)
    token, p = most_likely(logits)
    assert token == 11
    assert p == pytest.approx(1 / sum(math.exp(-k) for k in range(10)))


def test_a_small_vocabulary():
    """Fewer than ten tokens share what there is."""
    assert most_likely(np.zeros(4, dtype=np.float32))[1] == pytest.approx(0.25)


@pytest.fixture(scope="module")
def scorer(lab_models, tmp_path_factory):
    """SmolLM2 in a child."""
    pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")
    state_dir = tmp_path_factory.mktemp("scorer") / "state"
    with LlamaCppScorer.launch(str(lab_models.smollm2), n_ctx=512, state_dir=state_dir) as made:
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
    first = scorer.propose(COUNTING, 8)
    scorer.score(COUNTING[:3], COUNTING[3:])
    assert [p.token for p in scorer.score(COUNTING, [p.token for p in first])] == [p.token for p in first]
    assert scorer.propose(COUNTING, 8) == first
    assert scorer.score(COUNTING, []) == []


def test_a_text_that_does_not_fit(scorer):
    """Said before it is computed, and the next one is read."""
    with pytest.raises(RequestError, match="600 tokens do not fit the context of 512"):
        scorer.score([1] * 600, [1])
    assert len(scorer.score(COUNTING, COUNTING)) == len(COUNTING)


def test_a_damaged_model(lab_models, state_dir):
    """The file's fault, and no process or record is left."""
    pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")
    with pytest.raises(LaunchError, match="could not be loaded"):
        LlamaCppScorer.launch(str(lab_models.damaged), n_ctx=128, state_dir=state_dir)
    assert not [*state_dir.rglob("*.json")]


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in's signal is sent by name")
def test_a_package_that_dies_of_its_first_matrix(monkeypatch, tmp_path, state_dir):
    """Compiled for another processor it loads, answers that it is ready, and dies when it computes: not this process."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "llama_cpp.py").write_text(DIES)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(LaunchError, match="an instruction that this processor does not have") as told:
        LlamaCppScorer.launch("any.gguf", n_ctx=128, state_dir=state_dir)
    assert told.value.permanent
    assert not [*state_dir.rglob("*.json")]


def test_a_child_that_is_killed(lab_models, state_dir):
    """Killed while it is asked: an error that says so, not a wait."""
    pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")
    with LlamaCppScorer.launch(str(lab_models.tiny), n_ctx=128, state_dir=state_dir) as scorer:
        for pid in scorer.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(ServerDiedError, match="llama-cpp-python was ended by SIGKILL"):
            scorer.propose(COUNTING, 1)


@pytest.mark.parametrize(
    ("system", "machine", "layers"),
    [("darwin", "arm64", -1), ("darwin", "x86_64", 0), ("linux", "x86_64", 0), ("linux", "aarch64", 0)],
)
def test_only_a_macs_gpu_reads_drafts(monkeypatch, system, machine, layers):
    """It shares the memory; elsewhere the GPU's memory is the measured servers'."""
    monkeypatch.setattr(scorer_module.sys, "platform", system)
    monkeypatch.setattr(scorer_module.platform, "machine", lambda: machine)
    assert scorer_module._gpu_layers() == layers
