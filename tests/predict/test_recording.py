"""What predictions need of real servers: answers in token ids, passes over them, times of batches."""

from __future__ import annotations

import pytest

from autospec.backends.protocol import LaunchSettings, Request
from autospec.backends.registry import backend_for
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.predict.profile import replay
from autospec.predict.recording import pass_of, record, time_batches
from autospec.prompts.suite import Half, load_suite
from autospec.settings import load_settings

SETTINGS = LaunchSettings(args=("-c", "2048"))


@pytest.fixture(scope="module")
def asked() -> Request:
    """A prompt whose answer is made of whole characters: servers tell no probability of a token within one."""
    prompt = load_suite().of(PromptType.CODING, Half.TUNE)[0]
    return Request(messages=prompt.messages, max_tokens=48)


@pytest.fixture(scope="module", params=["embedded", "llama-server"])
def backend(request, tmp_path_factory):
    """Each backend that can be asked in tokens."""
    chosen = {}
    if request.param == "llama-server":
        chosen["llama_server"] = str(request.getfixturevalue("llama_server_binary"))
    home = {"AUTOSPEC_HOME": str(tmp_path_factory.mktemp("home"))}
    return backend_for(request.param, load_settings(overrides=chosen, environ=home))


@pytest.fixture(scope="module")
def main(backend, lab_models):
    """A launch of the main model without drafting; no test changes it."""
    server = backend.launch(str(lab_models.smollm2), OFF, SETTINGS)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def recording(main, asked):
    """The main model's answer."""
    return record(main.tokens, "p", asked)


@pytest.fixture(scope="module")
def often_wrong(backend, lab_models, recording):
    """The profile of a draft that is often wrong, read over that answer."""
    server = backend.launch(str(lab_models.bad_draft), OFF, SETTINGS)
    try:
        return pass_of(server.tokens, [recording], longest=8).profiles["p"]
    finally:
        server.stop()


def test_recording_is_the_chat_answer_in_ids(main, recording, asked):
    """As many tokens as the chat endpoint generates for the same question, of the same prompt, again and again."""
    completion = main.complete(asked)
    assert len(recording.prompt_ids) == completion.prompt_tokens
    assert len(recording.answer_ids) == completion.predicted_tokens
    assert record(main.tokens, "p", asked).answer_ids == recording.answer_ids
    assert recording.predicted_ms > 0
    assert recording.wall_ms >= recording.prompt_ms


def test_pass_of_the_model_over_its_own_answer_agrees(main, recording):
    """Teacher-forced on its own answer, a model's top token is the answer's token, but for near-ties in batches."""
    made = pass_of(main.tokens, [recording], longest=8)
    assert made.profiles["p"].acceptance >= 0.95
    assert made.step_ms > 0
    assert ((made.profiles["p"].p > 0) & (made.profiles["p"].p <= 1)).all()
    assert made.profiles["p"].draft_prompt_ms > 0


@pytest.mark.parametrize(("n_max", "p_min"), [(1, 0.0), (8, 0.0), (8, 0.6)])
def test_replayed_counts_are_near_the_servers(  # noqa: PLR0917 - fixtures
    backend, lab_models, often_wrong, asked, n_max, p_min
):
    """A draft that is often wrong: accepted and drafted within what a few near-ties and unsampled misses explain."""
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.bad_draft), n_max=n_max, n_min=0, p_min=p_min)
    server = backend.launch(str(lab_models.smollm2), drafting, SETTINGS)
    try:
        served = server.complete(asked)
    finally:
        server.stop()
    cycle = backend.capabilities().cycle
    counts = replay(often_wrong, [n_max], [p_min], max_tokens=asked.max_tokens, cycle=cycle)
    assert abs(int(counts.accepted[0]) - served.accepted) <= 3
    assert abs(int(counts.drafted[0]) - served.drafted) <= max(6, 0.15 * served.drafted)


def test_batches_are_timed_up_to_the_largest(main, recording):
    """Every size that the curve is made of, in milliseconds."""
    times = time_batches(main.tokens, recording, 17)
    assert set(times) >= {1, 2, 17}
    assert all(ms > 0 for ms in times.values())
