"""What a tune gathers for its predictions, and what it does not gather again, on a machine on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.errors import RequestError
from autospec.recommendations import Verdict
from autospec.tuning import profiling
from autospec.tuning.cell import NOTHING_TO_DRAFT
from autospec.tuning.profiling import Profiler
from autospec.tuning.proof import Proof
from autospec.tuning.proof_predictions import ProofPredictions
from autospec.tuning.resume import CellHistory
from autospec.tuning.run import Tuning
from tests.predict.machine import MachineTokens
from tests.tuning.test_forecast import WAITS_FOR_MEMORY, calm, drafts_launched, machine, request_, tune
from tests.tuning.test_run import MACHINE, TYPES, Silent

__all__ = ["calm", "request_"]  # fixtures


@pytest.fixture
def predicted(monkeypatch) -> list[dict[str, float]]:
    """What the predictions are that every proof begins with."""
    found: list[dict[str, float]] = []
    prove = Proof.run

    def predict_first(proof: Proof) -> None:
        found.extend(ProofPredictions(proof._context).predict(cell, []) for cell in proof._cells)
        prove(proof)

    monkeypatch.setattr(Proof, "run", predict_first)
    return found


def test_a_proof_does_not_try_again_what_cannot_be_timed(request_, predicted, monkeypatch):
    """No batch of the main model: one attempt in the search, with its launch and its sentence, and none in the proof."""
    batch_ms = MachineTokens.batch_ms

    def of_drafts(self, ids, extra):
        if not self.server.alone:
            raise RequestError("timed out")
        return batch_ms(self, ids, extra)

    monkeypatch.setattr(MachineTokens, "batch_ms", of_drafts)
    _, told = tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY))
    assert predicted
    assert all(predicted)
    assert sum("Batches cannot be timed here" in line for line in told) == 1


def test_a_proof_does_not_time_again_what_the_search_has_timed(request_, predicted, monkeypatch):
    """The draft reads the proof's answers in a launch of its own; its batches are timed in the search's launch alone."""
    timed, read = {}, {}  # a server's identity → the server
    batch_ms, propose = MachineTokens.batch_ms, MachineTokens.propose

    def of_batch(self, *args):
        timed[id(self.server)] = self.server
        return batch_ms(self, *args)

    def of_answer(self, *args):
        read[id(self.server)] = self.server
        return propose(self, *args)

    monkeypatch.setattr(MachineTokens, "batch_ms", of_batch)
    monkeypatch.setattr(MachineTokens, "propose", of_answer)
    tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY))
    assert all(predicted)
    paths = [server.alone for server in read.values()]
    assert len(paths) > len(set(paths))
    assert sorted(s.alone for s in timed.values() if s.alone) == sorted(set(paths))


def test_a_dropped_draft_costs_no_more(request_, monkeypatch):
    """No batches of it are timed, and when something new opens the search again, it is not even launched."""
    better, worse = (str(model.path) for model in request_.models[1:])
    request_ = replace(request_, prompt_types=TYPES)
    backend = machine(request_, acceptance=lambda _: 0.8, costs=WAITS_FOR_MEMORY, worse={worse: 0.75})
    timed, batch_ms = set(), MachineTokens.batch_ms
    monkeypatch.setattr(
        MachineTokens,
        "batch_ms",
        lambda self, *args: (timed.add(self.server.alone), batch_ms(self, *args))[1],
    )
    told = []
    for news in ((), (better,)):
        monkeypatch.setattr(CellHistory, "news", lambda *_, news=news, **__: frozenset(news))
        progress = Silent()
        Tuning(request_, backend, MACHINE, progress).run()
        told.append([line for line in progress.told if "second.gguf" in line])
    assert worse not in timed
    assert [path for path, _ in backend.launched].count(worse) == 1
    assert all(any("is dropped" in line for line in lines) for lines in told)


@pytest.mark.parametrize("pays", [False, True])
def test_a_dropped_drafts_times_are_not_whole(request_, monkeypatch, pays):
    """A later tune asks only what it read before: it is dropped again, or its batches are timed, which are not free."""
    better, worse = (str(model.path) for model in request_.models[1:])
    request_ = replace(request_, prompt_types=TYPES)
    backend = machine(request_, acceptance=lambda _: 0.8, costs=WAITS_FOR_MEMORY, worse={worse: 0.75})
    Tuning(request_, backend, MACHINE, Silent()).run()
    init, passes, made, progress = Profiler.__init__, Profiler._passes, [], Silent()
    first = {"prompts": lambda cell: cell.tune_prompts[: 2 if cell.prompt_type is TYPES[0] else 1]}
    monkeypatch.setattr(Profiler, "__init__", lambda *args, **more: init(*args, **{**more, **first}))
    monkeypatch.setattr(Profiler, "_passes", lambda *args: (made.append(passes(*args)), made[-1])[1])
    monkeypatch.setattr(CellHistory, "news", lambda *_, **__: frozenset((better,)))
    if pays:
        monkeypatch.setattr(Profiler, "_hopeless", lambda *_: False)
    Tuning(request_, backend, MACHINE, progress).run()
    assert any("second.gguf is dropped" in line for line in progress.told) is not pays
    assert [path for path, _ in backend.launched].count(worse) == 1 + pays
    assert made[0][worse].hopeless is not pays
    assert bool(made[0][worse].batch_ms) is pays


def test_nothing_is_recorded_or_read_after_the_searchs_time(request_, monkeypatch):
    """The first answer takes all of it: the other types are not recorded, no draft runs, and the tune says so."""
    left = iter([100.0])
    monkeypatch.setattr(Profiler, "_search_left_s", lambda _: next(left, 0.0))
    request_, progress = replace(request_, prompt_types=TYPES), Silent()
    backend = machine(request_, acceptance=lambda _: 0.8, costs=WAITS_FOR_MEMORY)
    Tuning(request_, backend, MACHINE, progress).run()
    assert any(line.startswith("No time is left to record answers") for line in progress.told)
    assert any("No time is left to run draft.gguf and second.gguf alone" in line for line in progress.told)


def ends_at_once(monkeypatch, *ended: PromptType) -> None:
    """The model ends every answer to prompts of these types with its first token."""
    whole = profiling.record

    def cut(tokens, prompt_id, request):
        recording = whole(tokens, prompt_id, request)
        if not prompt_id.startswith(tuple(ended)):
            return recording
        return replace(recording, answer_ids=recording.answer_ids[:1], ended=True)

    monkeypatch.setattr(profiling, "record", cut)


def test_where_every_answer_is_one_token_long_nothing_is_launched(request_, monkeypatch):
    """Off is concluded, with the reason; a second tune says the same."""
    ends_at_once(monkeypatch, *TYPES)
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    for _ in range(2):
        recommendation, _ = tune(request_, backend)
        assert (recommendation.verdict, recommendation.drafting) == (Verdict.DISABLE, OFF)
        assert recommendation.reason == NOTHING_TO_DRAFT
    assert not drafts_launched(backend)
    assert all(drafting.is_off for _, drafting in backend.launched)


def test_other_prompt_types_go_on_where_one_has_nothing_to_draft(request_, monkeypatch):
    """Its answers are one token long, theirs are not."""
    ends_at_once(monkeypatch, TYPES[1])
    backend, progress = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY), Silent()
    found = Tuning(replace(request_, prompt_types=TYPES), backend, MACHINE, progress).run()
    verdicts = {r.prompt_type: r.verdict for r in found}
    assert verdicts == {TYPES[0]: Verdict.ENABLE, TYPES[1]: Verdict.DISABLE}
    assert f"{TYPES[1]}: {NOTHING_TO_DRAFT}" in progress.told


def test_texts_that_are_too_short_to_time_batches_are_told(request_, monkeypatch):
    """Nothing is predicted then, and every drafting is measured."""
    monkeypatch.setattr(profiling, "batch_sizes", lambda *_: [])
    backend = machine(request_, acceptance=lambda _: 0.85, costs=WAITS_FOR_MEMORY)
    recommendation, told = tune(request_, backend)
    assert sum("too short to time batches" in line for line in told) == 1
    assert recommendation.verdict is Verdict.ENABLE
