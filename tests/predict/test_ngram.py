"""The n-gram modes: by hand, and against the server's own counts."""

from __future__ import annotations

import pytest

from autospec.backends.protocol import LaunchSettings, Request
from autospec.backends.registry import backend_for
from autospec.backends.server import canary
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.predict.ngram import pool_of, replay_tokens
from autospec.predict.profile import Recording
from autospec.predict.recording import record
from autospec.prompts.suite import Half, load_suite
from autospec.settings import load_settings

SIMPLE = Drafting(Mode.NGRAM_SIMPLE, ngram_n=3, ngram_m=4, min_hits=1)
MAP_K = Drafting(Mode.NGRAM_MAP_K, ngram_n=3, ngram_m=4, min_hits=1)
MAP_K4V = Drafting(Mode.NGRAM_MAP_K4V, ngram_n=3, ngram_m=4, min_hits=1)
MOD = Drafting(Mode.NGRAM_MOD, ngram_n=3, n_max=4, n_min=0)


def recording(prompt: list[int], answer: list[int], max_tokens: int = 1000) -> Recording:
    """An answer whose times do not matter."""
    return Recording("p", tuple(prompt), tuple(answer), max_tokens, False, 1.0, 1.0, 2.0)


def test_simple_copies_what_followed_the_same_tokens():
    """The prompt holds 1…10 twice over; an answer that repeats it is drafted in fours."""
    count = list(range(1, 11))
    counts = replay_tokens(pool_of(SIMPLE), recording([*count, 50, 51], count + count))
    assert counts.accepted[0] > 8
    assert counts.verified[0].size == 5  # drafts of at most four


def test_simple_drafts_nothing_where_nothing_repeats():
    """Every cycle is a token."""
    counts = replay_tokens(pool_of(SIMPLE), recording(list(range(20)), list(range(100, 120))))
    assert counts.verified[0].tolist() == [19]
    assert (counts.drafted[0], counts.accepted[0]) == (0, 0)


def test_draft_is_cut_where_the_request_ends():
    """With room for two tokens more, a draft of four is cut to one: the last is the main model's own."""
    count = list(range(1, 11))
    whole = replay_tokens(pool_of(SIMPLE), recording(count * 2 + [1, 2], [3, 4, 5], max_tokens=1000))
    cut = replay_tokens(pool_of(SIMPLE), recording(count * 2 + [1, 2], [3, 4, 5], max_tokens=3))
    assert whole.drafted[0] > cut.drafted[0] == 1


@pytest.mark.parametrize("drafting", [SIMPLE, MAP_K, MAP_K4V, MOD], ids=lambda d: d.mode)
def test_counts_fit_together(drafting):
    """Cycles and accepted tokens make up the answer, for any text."""
    text = [1, 2, 3, 4, 5, 6, 7, 8] * 6
    counts = replay_tokens(pool_of(drafting), recording(text, text[:30], max_tokens=30))
    assert counts.cycles[0] + counts.accepted[0] == 29
    assert counts.drafted[0] >= counts.accepted[0] > 0
    assert counts.by_position.sum() == counts.accepted[0]


def test_mod_remembers_earlier_requests():
    """What one request said, the next one is drafted from: the pool belongs to the launch."""
    pool = pool_of(MOD)
    text = list(range(200, 260))
    first = replay_tokens(pool, recording([1, 2, 3], text))
    second = replay_tokens(pool, recording([4, 5, 6, *text[:4]], text[4:]))
    assert first.drafted[0] == 0
    # The pool takes an answer in by chunks of 32 tokens: of those, four of every five are drafted.
    assert second.accepted[0] >= 20


def test_mode_with_a_model_has_no_pool():
    """Only draft-free modes that a backend offers are simulated."""
    for drafting in (
        Drafting(Mode.DRAFT_MODEL, draft="d", n_max=4, n_min=0, p_min=0.0),
        Drafting(Mode.NGRAM_CACHE, n_max=8, n_min=0),
    ):
        with pytest.raises(ValueError, match=drafting.mode):
            pool_of(drafting)


SETTINGS = LaunchSettings(args=("-c", "2048"))
PLACES = ("writing", "qa", "coding")
SERVED = [
    Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1),
    Drafting(Mode.NGRAM_MAP_K, ngram_n=4, ngram_m=8, min_hits=1),
    Drafting(Mode.NGRAM_MAP_K4V, ngram_n=4, ngram_m=8, min_hits=1),
    Drafting(Mode.NGRAM_MOD, ngram_n=4, n_max=16, n_min=0),
]


@pytest.fixture(scope="module")
def recorded():
    """Backend name → what `record` gave for the canary and three prompts: once for all modes."""
    return {}


@pytest.mark.parametrize("drafting", SERVED, ids=lambda d: str(d.mode))
@pytest.mark.parametrize("backend_name", ["embedded", "llama-server"])
def test_counts_are_the_servers_own(drafting, backend_name, lab_models, recorded, request):
    """Three requests in a row on one launch: drafted and accepted as the server says, exactly."""
    if backend_name == "llama-server":
        binary = request.getfixturevalue("llama_server_binary")
        request.getfixturevalue("monkeypatch").setenv("AUTOSPEC_LLAMA_SERVER", str(binary))
    backend = backend_for(backend_name, load_settings())
    model = str(lab_models.smollm2)
    suite = load_suite()
    prompts = [suite.of(PromptType(t), Half.TUNE)[0] for t in PLACES]
    asked = [Request(messages=p.messages, max_tokens=64) for p in prompts]
    if backend_name not in recorded:
        off = backend.launch(model, OFF, SETTINGS)
        try:
            answers = [record(off.tokens, p.id, r) for p, r in zip(prompts, asked, strict=True)]
            recorded[backend_name] = record(off.tokens, "canary", canary(OFF)), answers
        finally:
            off.stop()
    server = backend.launch(model, drafting, SETTINGS)
    try:
        completed = [server.complete(r) for r in asked]
        first, answers = recorded[backend_name]
        texts = [server.tokens.generate(r.prompt_ids, q).ids for r, q in zip(answers, asked, strict=True)]
    finally:
        server.stop()
    pool = pool_of(drafting)
    replay_tokens(pool, first)
    compared = 0
    for recording_, answer, ids in zip(answers, completed, texts, strict=True):
        if ids != recording_.answer_ids:
            break  # a near-tie fell otherwise in a batch: another text, other counts, and the pool has seen it
        counts = replay_tokens(pool, recording_)
        assert (counts.drafted[0], counts.accepted[0]) == (answer.drafted, answer.accepted)
        compared += 1
    assert compared
