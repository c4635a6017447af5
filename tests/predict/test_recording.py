"""What is gathered from real servers: answers in token ids, passes, times."""

from __future__ import annotations

import pytest

from autospec.backends.protocol import LaunchSettings, Request
from autospec.backends.registry import backend_for
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.predict.recording import pass_of, record, time_batches
from autospec.predict.replay import replay
from autospec.prompts.suite import Half, load_suite
from autospec.settings import load_settings

SETTINGS = LaunchSettings(args=("-c", "2048"))


@pytest.fixture(scope="module")
def asked() -> Request:
    """A prompt whose answer is made of whole characters: servers tell no probability of a token within one."""
    prompt = load_suite().of(PromptType.CODING, Half.TUNE)[0]
    return Request(messages=prompt.messages, max_tokens=48)


@pytest.fixture(params=["embedded", "llama-server"])
def backend(request, monkeypatch):
    """Each backend that can be asked in tokens."""
    if request.param == "llama-server":
        binary = request.getfixturevalue("llama_server_binary")
        monkeypatch.setenv("AUTOSPEC_LLAMA_SERVER", str(binary))
    return backend_for(request.param, load_settings())


@pytest.fixture
def launched(backend):
    """Launches, and stops them after the test."""
    servers = []

    def launch(model, drafting=OFF):
        servers.append(backend.launch(str(model), drafting, SETTINGS))
        return servers[-1]

    yield launch
    for server in servers:
        server.stop()


def test_recording_is_the_chat_answer_in_ids(launched, lab_models, asked):
    """As many tokens as the chat endpoint generates for the same question, of the same prompt, again and again."""
    server = launched(lab_models.smollm2)
    recording = record(server.tokens, "p", asked)
    completion = server.complete(asked)
    assert len(recording.prompt_ids) == completion.prompt_tokens
    assert len(recording.answer_ids) == completion.predicted_tokens
    assert record(server.tokens, "p", asked).answer_ids == recording.answer_ids
    assert recording.predicted_ms > 0
    assert recording.wall_ms >= recording.prompt_ms


def test_pass_of_the_model_over_its_own_answer_agrees(launched, lab_models, asked):
    """Teacher-forced on what it said itself, a model's top token is what it said, but for near-ties in batches."""
    server = launched(lab_models.smollm2)
    recording = record(server.tokens, "p", asked)
    made = pass_of(server.tokens, [recording], longest=8)
    assert made.profiles["p"].acceptance >= 0.95
    assert made.step_ms > 0
    assert ((made.profiles["p"].p > 0) & (made.profiles["p"].p <= 1)).all()
    assert made.profiles["p"].draft_prompt_ms > 0


@pytest.mark.parametrize(("n_max", "p_min"), [(1, 0.0), (8, 0.0), (8, 0.6)])
def test_replayed_counts_are_near_the_servers(launched, lab_models, asked, n_max, p_min):
    """A draft that is often wrong: accepted and drafted within what a few near-ties and unsampled misses explain."""
    recording = record(launched(lab_models.smollm2).tokens, "p", asked)
    profile = pass_of(launched(lab_models.bad_draft).tokens, [recording], longest=8).profiles["p"]
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.bad_draft), n_max=n_max, n_min=0, p_min=p_min)
    served = launched(lab_models.smollm2, drafting).complete(asked)
    counts = replay(profile, [n_max], [p_min], max_tokens=asked.max_tokens)
    assert abs(int(counts.accepted[0]) - served.accepted) <= 3
    assert abs(int(counts.drafted[0]) - served.drafted) <= max(6, 0.15 * served.drafted)


def test_batches_are_timed_up_to_the_largest(launched, lab_models, asked):
    """Every size that the curve is made of, in milliseconds."""
    server = launched(lab_models.smollm2)
    times = time_batches(server.tokens, record(server.tokens, "p", asked), 17)
    assert set(times) >= {1, 2, 17}
    assert all(ms > 0 for ms in times.values())
