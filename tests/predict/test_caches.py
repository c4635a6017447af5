"""Every kind of cache on a real llama-server: counts are replayed, batches timed, and no kind is refused."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from autospec.backends.flags import WHOLE_BATCHES
from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.protocol import LaunchSettings, Request
from autospec.backends.server import canary
from autospec.catalog.gguf import read_gguf
from autospec.cells import Cell, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import RequestError
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking, OffLength
from autospec.predict.ngram import pool_of, replay_tokens
from autospec.predict.prediction import replay_drafts
from autospec.predict.profile import AnswerProfile, Recording, proposals
from autospec.predict.recording import pass_of, record, time_batches
from autospec.prompts.suite import Half, load_suite
from autospec.store.database import open_store
from autospec.tuning.budget import Budget, Pace
from autospec.tuning.cell import CellRun, TuneContext
from autospec.tuning.definition import load_definition
from autospec.tuning.launches import Launches
from autospec.tuning.profiling import Profiler, keeps_state, output_share, timed_apart
from autospec.tuning.space import Arm, Space
from tests.tuning.test_run import MACHINE, Silent

KINDS = ("chain-sliding", "chain-recurrent", "chain-hybrid", "chain-latent", "chain-experts")
# Their caches keep a state, which has no way back: a partly accepted draft is computed again.
STATES = {"chain-recurrent", "chain-hybrid"}
# One thread: two spin against each other where the cores are shared.
ARGS = ("-c", "2048", "-t", "1")
TOKENS = 96


@pytest.fixture
def backend(llama_server_binary: Path, tmp_path: Path) -> LlamaServer:
    """The native server."""
    return LlamaServer(llama_server_binary, tmp_path)


@pytest.fixture
def launched(backend):
    """Launches, and stops them after the test."""
    servers = []

    def launch(model: Path, drafting: Drafting = OFF, *more: str):
        servers.append(backend.launch(str(model), drafting, LaunchSettings((*ARGS, *more))))
        return servers[-1]

    yield launch
    for server in servers:
        server.stop()


@pytest.mark.parametrize("kind", [*KINDS, "chain-draft"])
def test_the_file_says_what_is_kept(lab_models, kind):
    """From the header alone: which caches keep a state, and which batches are timed apart."""
    path = str(lab_models.path(kind))
    assert keeps_state(path) is (kind in STATES)
    assert timed_apart(path) is (kind in STATES | {"chain-sliding"})
    # The vocabulary is nearly all of these models.
    assert output_share(path) > 1


def test_what_is_no_gguf_file_is_taken_for_plain(tmp_path):
    """A folder of MLX's, or a file that has gone: nothing is corrected and nothing launched apart."""
    for path in (tmp_path, tmp_path / "gone.gguf"):
        assert not keeps_state(str(path))
        assert not timed_apart(str(path))
        assert output_share(str(path)) == 0.0


def requests() -> list[Request]:
    """Some prompts of the suite."""
    suite = load_suite()
    prompts = [p for t in (PromptType.CODING, PromptType.CHAT) for p in suite.of(t, Half.TUNE)[:2]]
    return [Request(messages=p.messages, max_tokens=TOKENS) for p in prompts]


def served(server, asked: list[Request]) -> list[tuple[int, int]]:
    """Drafted and accepted tokens of each answer, as the server counts them."""
    return [(c.drafted, c.accepted) for c in map(server.complete, asked)]


def texts_of(server, asked: list[Request]) -> list[str]:
    """What a server answers."""
    return [server.complete(r).text for r in asked]


def compare(
    server, asked: list[Request], texts: list[str], counts: list, label: str
) -> list[tuple[int, int]]:
    """Replayed counts are the server's, to the token, up to the first answer that has another text with drafting.

    A batch rounds otherwise than a token alone. On an AMD EPYC that turns a near tie of the sliding model in one answer of four.
    """
    answers = [server.complete(r) for r in asked]
    pairs = enumerate(zip(answers, texts, strict=True))
    alike = next((k for k, (answer, text) in pairs if answer.text != text), len(asked))
    assert alike >= len(asked) // 2, label
    told = [(answer.drafted, answer.accepted) for answer in answers[:alike]]
    assert told == [(c.drafted[0], c.accepted[0]) for c in counts[:alike]], label
    return told


@pytest.fixture(scope="module")
def recorded(lab_models, llama_server_binary, tmp_path_factory):
    """What a main model of each kind answers without drafting: the canary first, then `requests`. Recorded once."""
    native = LlamaServer(llama_server_binary, tmp_path_factory.mktemp("state"))

    @cache
    def of(kind: str) -> tuple[Recording, list[Recording]]:
        server = native.launch(str(lab_models.path(kind)), OFF, LaunchSettings(ARGS))
        try:
            first = record(server.tokens, "first", canary(OFF))
            return first, [record(server.tokens, str(n), r) for n, r in enumerate(requests())]
        finally:
            server.stop()

    return of


@pytest.fixture(scope="module")
def profiles_of(lab_models, llama_server_binary, tmp_path_factory, recorded):
    """Profiles of the lab's draft over those answers. Read once."""
    native = LlamaServer(llama_server_binary, tmp_path_factory.mktemp("state"))

    @cache
    def of(kind: str) -> dict[str, AnswerProfile]:
        _, recordings = recorded(kind)
        server = native.launch(str(lab_models.chain_draft), OFF, LaunchSettings(ARGS))
        try:
            return dict(pass_of(server.tokens, recordings, longest=8).profiles)
        finally:
            server.stop()

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_replayed_counts_are_the_servers(launched, lab_models, recorded, profiles_of, kind):
    """Drafted and accepted of each answer, to the token, of a draft model and of an n-gram mode."""
    main, draft, asked = lab_models.path(kind), lab_models.chain_draft, requests()
    first, recordings = recorded(kind)
    profiles = profiles_of(kind)
    uncut = kind in STATES
    texts = texts_of(launched(main), asked)
    for n_max, p_min in ((1, 0.0), (6, 0.0), (8, 0.9)):
        drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft), n_max=n_max, n_min=0, p_min=p_min)
        counts = [
            replay_drafts(profiles[r.prompt_id], [drafting], r.max_tokens, uncut=uncut) for r in recordings
        ]
        told = compare(launched(main, drafting), asked, texts, counts, drafting.label)
        assert any(0 < accepted < drafted for drafted, accepted in told)
    simple = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)
    pool = pool_of(simple)
    replay_tokens(pool, first, uncut=uncut)
    counts = [replay_tokens(pool, r, uncut=uncut) for r in recordings]
    compare(launched(main, simple), asked, texts, counts, simple.label)


@contextmanager
def serving(backend, model: Path, drafting: Drafting = OFF):
    """One launch, stopped at the end."""
    server = backend.launch(str(model), drafting, LaunchSettings(ARGS))
    try:
        yield server
    finally:
        server.stop()


BESIDE = [
    (Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1),),
    (Drafting(Mode.NGRAM_MOD, ngram_n=3, n_max=12, n_min=0),),
    (Drafting(Mode.NGRAM_MAP_K4V, ngram_n=3, ngram_m=6, min_hits=1),),
    (
        Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=8, min_hits=1),
        Drafting(Mode.NGRAM_MOD, ngram_n=4, n_max=16, n_min=2),
    ),
]


@pytest.mark.parametrize(
    ("kind", "embedded"),
    [("chain-experts", False), ("chain-sliding", False), ("chain-hybrid", False), ("chain-experts", True)],
)
def test_replayed_counts_of_several_modes_are_the_servers(lab_models, request, tmp_path, kind, embedded):
    """A draft model with n-gram modes beside it, to the token: who is asked first, and what each learns."""
    backend = (
        Embedded(tmp_path)
        if embedded
        else LlamaServer(request.getfixturevalue("llama_server_binary"), tmp_path)
    )
    main, draft, asked = lab_models.path(kind), lab_models.chain_draft, requests()
    with serving(backend, main) as off:
        first = record(off.tokens, "first", canary(OFF))
        recordings = [record(off.tokens, str(n), r) for n, r in enumerate(asked)]
        texts = texts_of(off, asked)
    with serving(backend, draft) as alone:
        profiles = pass_of(alone.tokens, recordings, longest=8).profiles
    uncut = kind in STATES
    for beside in BESIDE:
        drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft), n_max=3, n_min=0, p_min=0.0, beside=beside)
        pool = pool_of(drafting)
        replay_tokens(pool, first, uncut=uncut)
        counts = [
            replay_tokens(pool, r, uncut=uncut, model=proposals(profiles[r.prompt_id], 3, 0.0, 0))
            for r in recordings
        ]
        with serving(backend, main, drafting) as server:
            compare(server, asked, texts, counts, drafting.label)
        # The draft was asked, but not for every proposal.
        assert 0 < sum(c.steps[0] for c in counts) < sum(c.drafted[0] for c in counts)


@pytest.fixture(scope="module")
def foreseen(lab_models, llama_server_binary, tmp_path_factory):
    """The canary and two answers of the model with an MTP layer, and what `chain-draft` proposes for them."""
    native = LlamaServer(llama_server_binary, tmp_path_factory.mktemp("state"))
    with serving(native, lab_models.path("chain-mtp")) as off:
        first = record(off.tokens, "first", canary(OFF))
        answers = [record(off.tokens, str(n), r) for n, r in enumerate(requests()[:2])]
    with serving(native, lab_models.chain_draft) as alone:
        return first, answers, pass_of(alone.tokens, answers, longest=3, timed=False).profiles


@pytest.mark.parametrize(
    "beside", [(), *BESIDE[:2]], ids=lambda beside: "+".join(d.mode for d in beside) or "alone"
)
def test_replayed_counts_of_an_mtp_layer_are_the_servers(launched, lab_models, foreseen, beside):
    """`draft-mtp,ngram-…` to the token: the lab's MTP layer proposes what `chain-draft` does, so that draft's profile is its own."""
    first, answers, profiles = foreseen
    drafting = Drafting(Mode.MTP, n_max=3, n_min=0, p_min=0.0, beside=beside)
    if beside:
        pool = pool_of(drafting)
        replay_tokens(pool, first)
        counts = [replay_tokens(pool, r, model=proposals(profiles[r.prompt_id], 3, 0.0, 0)) for r in answers]
    else:
        counts = [replay_drafts(profiles[r.prompt_id], [drafting], TOKENS) for r in answers]
    told = served(launched(lab_models.path("chain-mtp"), drafting), requests()[:2])
    assert told == [(c.drafted[0], c.accepted[0]) for c in counts]
    assert any(0 < accepted < drafted for drafted, accepted in told)


@pytest.mark.parametrize(
    ("kind", "draft"),
    [
        ("chain-hybrid", "chain-recurrent"),
        ("chain-recurrent", "chain-hybrid"),
        ("chain-latent", "chain-sliding"),
    ],
)
def test_drafts_have_caches_too(launched, lab_models, recorded, kind, draft):
    """A draft that keeps a state, or a window, is read and replayed like any other."""
    asked, recordings = requests()[:2], recorded(kind)[1][:2]
    alone = launched(lab_models.path(draft))
    profiles = pass_of(alone.tokens, recordings, longest=4, timed=False).profiles
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.path(draft)), n_max=4, n_min=0, p_min=0.0)
    told = served(launched(lab_models.path(kind), drafting), asked)
    counts = [
        replay_drafts(profiles[r.prompt_id], [drafting], TOKENS, uncut=kind in STATES) for r in recordings
    ]
    assert told == [(c.drafted[0], c.accepted[0]) for c in counts]


@pytest.mark.parametrize("kind", sorted(STATES))
def test_what_is_computed_again_changes_the_counts(recorded, profiles_of, kind):
    """Played without the second passes, the counts are others: the test above would see it."""
    (_, recordings), profiles = recorded(kind), profiles_of(kind)
    drafting = Drafting(Mode.DRAFT_MODEL, draft="draft", n_max=6, n_min=0, p_min=0.0)
    cut, uncut = (
        [replay_drafts(profiles[r.prompt_id], [drafting], TOKENS, uncut=u) for r in recordings]
        for u in (False, True)
    )
    assert sum(c.drafted[0] for c in uncut) < sum(c.drafted[0] for c in cut)
    for c in uncut:
        # Every pass of the main model gives a token of its own, whatever it was for.
        assert c.cycles[0] + c.accepted[0] == TOKENS - 1
        assert c.again is not None
        assert c.again[0] > 0


def decodes(server) -> int:
    """How often the server has run a model so far."""
    with httpx.Client() as client:
        told = client.get(f"{server.base_url}/metrics", timeout=30).text
    found = re.search(r"^llamacpp:n_decode_total (\d+)", told, re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.parametrize("kind", ["chain-sliding", *sorted(STATES)])
def test_batches_are_computed_whole(launched, lab_models, kind):
    """Nine tokens are one evaluation of a server that is launched for it, and two of the others: a checkpoint parts them."""
    ids = tuple(range(1000, 1009))
    parted, whole = (
        launched(lab_models.path(kind), OFF, "--metrics", *more) for more in ((), sum(WHOLE_BATCHES, ()))
    )
    counted = []
    for server in (parted, whole):
        before = decodes(server)
        server.tokens.batch_ms((), ids)
        counted.append(decodes(server) - before)
    assert counted == [2, 1]


def test_a_sliding_window_can_be_cut_where_it_is_kept_whole(launched, lab_models):
    """Behind a text that is shorter than the window; elsewhere the server goes back to a checkpoint and computes more."""
    with_window, kept = (
        launched(lab_models.chain_sliding, OFF, *more) for more in ((), sum(WHOLE_BATCHES, ()))
    )
    recording = record(kept.tokens, "p", requests()[0])
    short = replace(recording, prompt_ids=recording.prompt_ids[:20])
    assert set(time_batches(kept.tokens, short, 9)) == set(range(1, 10))
    with pytest.raises(RequestError, match="The server computed"):
        time_batches(with_window.tokens, short, 9)
    assert set(time_batches(with_window.tokens, short, 9, behind=False)) == set(range(1, 10))


@pytest.mark.parametrize(
    ("kind", "resident"), [*((kind, 2) for kind in KINDS), ("chain-sliding", 1), ("chain-hybrid", 1)]
)
def test_no_cache_is_refused(backend, lab_models, tmp_path, kind, resident):
    """What a tune gathers before its search speaks for every drafting, with room for two servers and for one."""
    definition, suite, told = load_definition("quick"), load_suite(), Silent()
    # A draft that keeps a state ends b11434 where its main model keeps none.
    draft = lab_models.path("chain-recurrent" if kind == "chain-hybrid" else "chain-draft")
    arms = (Arm(Mode.DRAFT_MODEL, str(draft)), Arm(Mode.NGRAM_SIMPLE))
    main = lab_models.path(kind)
    model = read_gguf(main).ref
    prompts = tuple(suite.of(PromptType.CODING, Half.TUNE)[:2])
    study = SimpleNamespace(note=lambda *_: None)
    cell = CellRun(Cell(model, PromptType.CODING, backend.capabilities().build, MACHINE), study, prompts, ())
    with Launches(backend, str(main), LaunchSettings(ARGS), resident=resident) as launches:
        calm = SimpleNamespace(after=lambda _: False)
        asking = Asking("p", 48, 0.0, StateWatch(lambda: launches.pids))
        length = OffLength(asking)
        pairing = SimpleNamespace(
            calm=calm,
            stand_for=lambda *_: None,
            failing=lambda *_: set(),
            pace=Pace(),
            off_length=length,
        )
        store = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")
        space = Space(arms, definition.space)
        context = TuneContext(definition, space, launches, pairing, Budget(600.0), told, asking, store)
        predictor = Profiler([cell], context).run()
    assert predictor is not None, told.told
    assert not [t for t in told.told if "predicted" in t or "timed" in t or "cannot" in t]
    # Behind a state no batch can be timed; behind a window one can where the server keeps all of the text.
    assert (cell.shapes.depth is None) is (kind in STATES)
    for drafting in context.space.grid():
        costs = predictor.costs(drafting)
        assert costs.main_ms[0] == pytest.approx(costs.plain_ms)
        # A batch that was timed as clearly slower than single tokens counts as timed (`test_costs`): a neighbour may disturb some.
        assert np.isfinite(costs.main_ms).all()
        single_ms = costs.plain_ms * np.arange(1, costs.main_ms.size + 1)
        # Times that hold the whole prompt would be longer in every batch.
        assert (costs.main_ms[1:] <= single_ms[1:] * (1 + 1e-9)).any()
        assert drafting in predictor.predict(cell.cell.key, [drafting])
