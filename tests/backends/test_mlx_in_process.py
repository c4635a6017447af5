"""MLX models read in a process of their own: the same tokens as the server's, and mlx_lm's cycle on paper."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest

from autospec.backends.mlx.backend import Mlx
from autospec.backends.protocol import Cycle, LaunchSettings, Request, Watched
from autospec.backends.registry import InProcess
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import LaunchError, RequestError, ServerDiedError
from autospec.predict.profile import Scorer, profile_answer, profile_scored
from autospec.predict.recording import pass_of, record, time_batches
from autospec.predict.replay import replay
from tests.backends.installed import installed
from tests.backends.waiting import gone

SETTINGS = LaunchSettings(ready_timeout_s=240.0)
QUESTION = Request(
    messages=({"role": "user", "content": "Name three colours."},), max_tokens=24, timeout_s=240.0
)


@pytest.fixture(scope="module")
def mlx(tmp_path_factory):
    """The backend, where mlx-lm is installed."""
    return installed(Mlx(tmp_path_factory.mktemp("mlx") / "state"))


@pytest.fixture(scope="module")
def main(mlx, lab_models):
    """The main model, alone."""
    server = mlx.in_process(str(lab_models.mlx_tiny), OFF, SETTINGS)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def half(mlx, lab_models):
    """A draft that is right about half the time, alone."""
    server = mlx.in_process(str(lab_models.mlx_noisy_draft), OFF, SETTINGS)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def recording(main):
    """The main model's answer."""
    return record(main.tokens, "p", QUESTION)


def drafting(draft, n_max):
    """A draft model's drafting as MLX has it."""
    return Drafting(Mode.DRAFT_MODEL, draft=str(draft), n_max=n_max)


def test_it_is_what_prediction_asks_for(mlx, main):
    """A backend that runs models in process, a process that can be watched, a model that reads whole answers."""
    assert isinstance(mlx, InProcess)
    assert isinstance(main, Watched)
    assert isinstance(main.tokens, Scorer)
    assert mlx.capabilities().cycle is Cycle.MLX_LM


def test_the_server_gives_the_same_text(mlx, main, lab_models):
    """Prompt and answer in process are those of `mlx_lm.server`."""
    server = mlx.launch(str(lab_models.mlx_tiny), OFF, SETTINGS)
    try:
        served = server.complete(QUESTION)
    finally:
        server.stop()
    here = main.complete(QUESTION)
    assert here.text == served.text != ""
    assert here.prompt_tokens == served.prompt_tokens == len(main.tokens.encode(QUESTION))
    assert here.predicted_tokens == served.predicted_tokens == QUESTION.max_tokens
    assert (here.drafted, here.accepted) == (0, 0)


def test_a_recording_has_tokens_and_times(recording):
    """What `autospec tune` keeps of each answer."""
    assert len(recording.answer_ids) == QUESTION.max_tokens
    assert not recording.ended
    assert 0 < recording.prompt_ms < recording.prompt_ms + recording.predicted_ms <= recording.wall_ms


def test_a_model_reads_its_own_answer_without_a_miss(main, recording):
    """One evaluation of the answer gives the tokens that were generated one by one."""
    told = main.tokens.score(recording.prompt_ids, recording.answer_ids)
    assert tuple(q.token for q in told) == recording.answer_ids
    assert all(0 < q.p <= 1 for q in told)
    assert main.tokens.score(recording.prompt_ids, ()) == []


def test_one_evaluation_gives_what_a_continuation_gives(half, recording):
    """The two ways to a profile agree, misses and probabilities."""
    how = {"longest": 4, "sampled_misses": 0}
    scored = profile_scored(half.tokens, recording, **how)
    stepwise = profile_answer(half.tokens, recording, **how)
    assert scored.hits.tolist() == stepwise.hits.tolist()
    assert scored.p == pytest.approx(stepwise.p, abs=1e-3)
    assert 0.2 < scored.acceptance < 0.9


def test_replay_is_what_mlx_counts(mlx, half, recording, lab_models):
    """Drafted and accepted tokens on paper against those of `stream_generate` (``from_draft``), for every number."""
    numbers = (1, 2, 3, 4, 8, 16)
    profile = pass_of(half.tokens, [recording], longest=16, scorer=half.tokens, p_min=False).profiles["p"]
    paper = replay(profile, numbers, [0.0] * len(numbers), max_tokens=QUESTION.max_tokens, cycle=Cycle.MLX_LM)
    drafted = mlx.in_process(str(lab_models.mlx_tiny), drafting(lab_models.mlx_noisy_draft, 1), SETTINGS)
    told = []
    try:
        for n_max in numbers:
            drafted.drafting = drafting(lab_models.mlx_noisy_draft, n_max)
            answer = drafted.complete(QUESTION)
            told.append((answer.drafted, answer.accepted))
    finally:
        drafted.stop()
    assert [*zip(paper.drafted.tolist(), paper.accepted.tolist(), strict=True)] == told


def test_a_quantized_cache_is_read_as_it_was_generated_with(mlx, main, lab_models):
    """With two bits the answer is another one; only a reader that quantizes too finds no miss in it."""
    args = ("--kv-bits", "2", "--kv-group-size", "32", "--quantized-kv-start", "0")
    server = mlx.in_process(str(lab_models.mlx_tiny), OFF, dataclasses.replace(SETTINGS, args=args))
    try:
        answer = record(server.tokens, "p", QUESTION)
        told = [q.token for q in server.tokens.score(answer.prompt_ids, answer.answer_ids)]
    finally:
        server.stop()
    assert told == list(answer.answer_ids)
    assert told != [q.token for q in main.tokens.score(answer.prompt_ids, answer.answer_ids)]


def test_batches_are_timed(main, recording):
    """A larger batch takes longer than a token, and less than its tokens one by one."""
    times = time_batches(main.tokens, recording, 17)
    assert times[1] > 0
    assert times[1] < times[17] < 17 * times[1] * 4


def test_what_fails_is_told(main):
    """A question that cannot be computed is a failed request, and the process lives on."""
    with pytest.raises(RequestError, match="refused"):
        main.tokens.generate((), QUESTION)
    assert main.ended() is None


def test_a_missing_folder(mlx):
    """Never looked for on the hub."""
    with pytest.raises(LaunchError, match="not a folder"):
        mlx.in_process("/no/model", OFF, SETTINGS)


def test_death_and_end(mlx, lab_models):
    """Killed from outside it is told as a death; nothing is left after stop."""
    server = mlx.in_process(str(lab_models.mlx_bad_draft), OFF, SETTINGS)
    guard_and_child = server.pids
    for pid in guard_and_child - {os.getpid()}:
        if pid != server._process._guard.pid:
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerDiedError, match="SIGKILL"):
        server.tokens.encode(QUESTION)
    server.stop()
    assert gone(guard_and_child)
