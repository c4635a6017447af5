"""What only llama.cpp's servers do: their modes, drafts that do not fit, their own error messages."""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.protocol import LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import LaunchError, SpeculationInactiveError, UsageError
from tests.backends.contract import FACTS, SETTINGS, itself

QUESTION = Request(messages=({"role": "user", "content": "Say something."},), max_tokens=24, timeout_s=120.0)


def draft_model(path, **changes):
    """A draft model's drafting with every parameter given."""
    return itself(str(path), **changes)


@pytest.fixture(params=["llama-server", "embedded"])
def backend(request, state_dir):
    """Each of the two that this machine has."""
    return FACTS[request.param].make(request, state_dir)


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


def test_the_log_tells_where_the_main_model_is(launched, backend, lab_models):
    """Its weights only, not the draft's as well; with the levels of b11434 at the verbosity that a GPU's launch gets."""
    assert isinstance(backend.devices(), tuple | None)
    settings = dataclasses.replace(SETTINGS, args=(*SETTINGS.args, "-lv", "4"))
    server = launched(draft_model(lab_models.tiny), settings=settings)
    weights_mib = server.placement.total_mib
    assert weights_mib == pytest.approx(lab_models.tiny.stat().st_size / 1024**2, rel=0.15)


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


@pytest.mark.parametrize(
    ("args", "error"),
    [(("--port", "1"), UsageError), (("-c",), UsageError)],
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


@pytest.mark.parametrize("draft", ["other_vocab", "other_tokenizer"])
def test_a_draft_with_another_vocabulary(launched, lab_models, draft):
    """Never measured: newer builds run on without speculation, older ones refuse."""
    with pytest.raises((SpeculationInactiveError, LaunchError), match="vocab") as caught:
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
