"""A tune times what context costs, and its verdict counts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.backends.protocol import Cycle
from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.errors import LaunchError, RequestError
from autospec.measure.measurements import DepthCosts, DepthRise, Shapes
from autospec.predict.profile import Recording
from autospec.predict.recording import DraftPass
from autospec.store.compatibility import DraftFile
from autospec.store.database import open_store
from autospec.tuning import profiling
from autospec.tuning.calibration import DepthTiming
from autospec.tuning.definition import load_definition
from autospec.tuning.profiling import Profiler
from autospec.tuning.proof import Proof
from autospec.tuning.proof_predictions import ProofPredictions
from autospec.tuning.request import TuneRequest
from autospec.tuning.resume import CellHistory
from autospec.tuning.space import Arm, Space
from tests.catalog.making import make_model
from tests.predict.machine import MachineTokens
from tests.tuning.proofs import lab
from tests.tuning.test_forecast import WAITS_FOR_MEMORY, calm, machine, tune
from tests.tuning.test_run import request_with

__all__ = ["calm"]  # a fixture

# A token takes 53 ms behind 60 tokens of prompt, and 0.05 ms more for each token before it.
DEEP = replace(WAITS_FOR_MEMORY, deep_ms=0.05, draft_deep_ms=0.005, noise=0.002)


@pytest.fixture
def request_(tmp_path: Path) -> TuneRequest:
    """A main model and a draft."""
    made = request_with(tmp_path, "draft", prompt_types=(PromptType.CODING,))
    for model in made.models:
        model.path.touch()
    return made


def depth_of(recommendation) -> DepthCosts | None:
    """What its evidence says that context costs."""
    return Shapes.from_json(recommendation.evidence["requests"]).depth


def test_the_evidence_says_what_context_costs(request_):
    """The rise of the main model, and that of a cycle with the draft."""
    recommendation, _ = tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=DEEP))
    depth = depth_of(recommendation)
    assert depth is not None
    alone, cycle = depth.rises[""], depth.rises[str(request_.models[1].path)]
    # Both rise by as much for each token of a batch.
    assert (alone.pass_ms, alone.token_ms) == pytest.approx((0.05, 0.05), rel=0.1)
    assert (cycle.pass_ms, cycle.token_ms) == pytest.approx((0.055, 0.06), rel=0.1)


def test_where_context_costs_nothing_the_verdict_is_as_before(request_):
    """No rise, no change, and the predictions still agree with the measurements."""
    exact = replace(WAITS_FOR_MEMORY, noise=0.0)
    recommendation, _ = tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=exact))
    depth = depth_of(recommendation)
    assert depth is not None
    assert [r.pass_ms for r in depth.rises.values()] == pytest.approx([0.0, 0.0], abs=1e-9)
    expected = recommendation.evidence["prediction"]["expected"]
    assert expected == pytest.approx(recommendation.speedup, rel=0.15)


def test_a_second_tune_does_not_time_it_again(request_, monkeypatch):
    """It stands in the store, and in the notes of the cell's requests."""
    backend = machine(request_, acceptance=lambda _: 0.85, costs=DEEP)
    first, _ = tune(request_, backend)
    told, batch_ms = [], MachineTokens.batch_ms
    monkeypatch.setattr(
        MachineTokens, "batch_ms", lambda *args: (told.append(len(args[1])), batch_ms(*args))[1]
    )
    second, _ = tune(replace(request_, budget_s=1e6), backend)
    assert depth_of(second) == depth_of(first)
    assert max(told, default=0) < 512


def refuse_long_contexts(monkeypatch):
    """The servers' context is too short for 512 more tokens."""
    batch_ms = MachineTokens.batch_ms

    def refuse(self, ids, extra):
        if len(ids) + len(extra) > 400:
            raise RequestError("the request exceeds the available context size")
        return batch_ms(self, ids, extra)

    monkeypatch.setattr(MachineTokens, "batch_ms", refuse)


def test_a_context_that_is_too_short_leaves_it_out(request_, monkeypatch):
    """The server refuses 512 more tokens: the tune goes on, and a token costs what was measured."""
    refuse_long_contexts(monkeypatch)
    recommendation, _ = tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=DEEP))
    assert depth_of(recommendation) is None
    assert recommendation.speedup > 2.0


def test_it_reaches_no_further_than_was_timed(request_):
    """A third of the time for it is a third of the tokens: beyond those nothing is added."""
    backend = machine(request_, acceptance=lambda _: 0.85, costs=replace(DEEP, prompt_ms=30.0))
    recommendation, _ = tune(replace(request_, budget_s=600.0), backend)
    depth = depth_of(recommendation)
    assert depth is not None
    store = open_store(request_.storage)
    try:
        surveys = store.surveys(recommendation.evidence["cell"], request_.protocol, "times")
    finally:
        store.close()
    told = [data["more_tokens"] for name, data in surveys.items() if name.endswith("/depth")]
    assert 128 <= min(told) < 512
    assert depth.reach_tokens == 60 + min(told)


def test_slow_prompts_are_not_read_for_it(request_):
    """A machine that reads a token of a prompt in a second: 512 of them would take nine minutes of a short budget."""
    slow = replace(DEEP, prompt_ms=1000.0)
    backend = machine(request_, acceptance=lambda _: 0.85, costs=slow)
    recommendation, _ = tune(replace(request_, budget_s=600.0), backend)
    assert depth_of(recommendation) is None


def test_a_proof_does_not_time_it(request_, monkeypatch):
    """The search had no time for it: the proof's predictions leave its requests as they are."""
    predicted, timed, prove, batch_ms = [], [], Proof.run, MachineTokens.batch_ms

    def predict_first(proof: Proof) -> None:
        predicted.extend(ProofPredictions(proof._context).predict(cell, []) for cell in proof._cells)
        prove(proof)

    monkeypatch.setattr(Profiler, "_search_left_s", lambda _: 1.0)
    monkeypatch.setattr(Proof, "run", predict_first)
    monkeypatch.setattr(
        MachineTokens, "batch_ms", lambda *args: (timed.append(len(args[1])), batch_ms(*args))[1]
    )
    recommendation, _ = tune(request_, machine(request_, acceptance=lambda _: 0.85, costs=DEEP))
    assert all(predicted)
    assert depth_of(recommendation) is None
    assert max(timed) < 512


def test_a_proof_that_was_looked_at_keeps_its_requests(tmp_path, monkeypatch):
    """A later search has timed what context costs: that is for other drafts, and for proofs that begin."""
    made = lab(tmp_path, monkeypatch)
    cell, rise = made.cells[0], DepthRise(0.1, 0.1)
    cell.winner = Drafting(Mode.DRAFT_MODEL, draft="/proved", n_max=4)
    context = replace(made.context, space=Space((), load_definition("quick").space))
    depth = DepthTiming(made.cells, context, lambda _: None, lambda *_: None, lambda: 0.0)
    depth._rises.update(dict.fromkeys(("", "/proved", "/new"), (rise, 512)))
    answer = Recording("p", tuple(range(60)), tuple(range(64)), 64, False, 60.0, 630.0, 700.0)
    begun, cell.history = cell.history, replace(cell.history, looks={"a look": None})
    depth.note([answer])
    assert cell.shapes.depth is None
    cell.shapes = replace(cell.shapes, depth=DepthCosts(10.0, 500, {"": rise}))
    depth.note([answer])
    assert set(cell.shapes.depth.rises) == {"", "/new"}
    cell.history, cell.shapes = begun, replace(cell.shapes, depth=None)
    depth.note([answer])
    assert set(cell.shapes.depth.rises) == {"", "/new", "/proved"}


def rise_for(request: TuneRequest, monkeypatch, *, main: Any = None, draft: Any = None) -> DepthCosts | None:
    """What a tune finds whose models' files say this of their caches; batches of those with a state stand alone."""
    headers = {str(request.models[0].path): main, str(request.models[1].path): draft}
    monkeypatch.setattr(profiling, "_header", headers.get)
    recommendation, _ = tune(request, machine(request, acceptance=lambda _: 0.85, costs=DEEP))
    return depth_of(recommendation)


def header(window: int, sliding: int, *, state: bool = False) -> Any:
    """A model of 600 bytes a token, with so many of them in layers with a window."""
    model = make_model(kv_bytes_per_token=600, kv_sliding_bytes_per_token=sliding, sliding_window=window)
    return replace(model, has_recurrent_state=state, files=())


def test_the_layers_without_a_window_go_on_growing(request_, monkeypatch):
    """Of main model and draft, a sixth of the layers see all of the text: each token adds a sixth of what was timed, or more."""
    monkeypatch.setattr("autospec.tuning.profiling.output_share", lambda _: 0.0)
    monkeypatch.setattr("autospec.catalog.model._MICRO_BATCH_TOKENS", 0)
    gemma = header(32, 500)
    depth = rise_for(request_, monkeypatch, main=gemma, draft=gemma)
    assert depth is not None
    alone, cycle = depth.rises[""], depth.rises[str(request_.models[1].path)]
    assert (alone.pass_ms, alone.token_ms) == pytest.approx((0.05 / 6, 0.05 / 6), rel=0.1)
    assert (cycle.pass_ms, cycle.token_ms) == pytest.approx((0.055 / 6, 0.06 / 6), rel=0.1)


def tune_thrice(
    request: TuneRequest, monkeypatch, *, error: Exception | None = None
) -> tuple[list[list[str]], set[str]]:
    """Which models each of three tunes times apart, the first by an earlier version, and for which the store has a rise then.

    `error` is what the launches of the second one end with.
    """
    gemma, draft = header(32, 500), str(request.models[1].path)
    monkeypatch.setattr(profiling, "_header", {str(m.path): gemma for m in request.models}.get)
    monkeypatch.setattr("autospec.tuning.profiling.output_share", lambda _: 0.0)
    times, time_depth, backend = (
        [],
        Profiler._time_depth,
        machine(request, acceptance=lambda _: 0.85, costs=DEEP),
    )
    timed_whole = Profiler._timed_whole

    def spy(self, path, *args):
        times[-1].append("draft" if path == draft else "main")
        if error is not None and len(times) == 2:
            raise error
        return timed_whole(self, path, *args)

    monkeypatch.setattr(Profiler, "_timed_whole", spy)
    for early in (True, False, False):
        times.append([])
        monkeypatch.setattr(Profiler, "_time_depth", lambda *_, **__: None) if early else monkeypatch.setattr(
            Profiler, "_time_depth", time_depth
        )
        monkeypatch.setattr(
            CellHistory, "news", lambda *_, early=early, **__: frozenset(() if early else (draft,))
        )
        recommendation, _ = tune(request, backend)
    store = open_store(request.storage)
    try:
        surveys = store.surveys(recommendation.evidence["cell"], request.protocol, "times")
    finally:
        store.close()
    return times, {n for n, data in surveys.items() if n.endswith("/depth") and data["more_tokens"]}


def test_windows_whose_batches_are_stored_get_it_once(request_, monkeypatch):
    """An earlier version timed the batches alone: the next search launches each model once more."""
    timed, known = tune_thrice(request_, monkeypatch)
    assert timed == [["main"], ["main", "draft"], []]
    assert len(known) == 2


def test_what_cannot_be_timed_is_not_tried_by_every_search(request_, monkeypatch):
    """The server refuses the longer context: that is noted."""
    refuse_long_contexts(monkeypatch)
    timed, known = tune_thrice(request_, monkeypatch)
    assert timed == [["main"], ["main", "draft"], []]
    assert not known


@pytest.mark.parametrize("permanent", [False, True])
def test_a_launch_that_failed_once_is_tried_again(request_, monkeypatch, permanent):
    """The next search has the memory or the port for it, unless the same launch would fail again."""
    error = LaunchError("The port is taken.", permanent=permanent)
    timed, known = tune_thrice(request_, monkeypatch, error=error)
    assert timed == [["main"], ["main", "draft"], [] if permanent else ["main", "draft"]]
    assert len(known) == (0 if permanent else 2)


@pytest.mark.parametrize(("left_s", "launched"), [(19.0, 0), (21.0, 1)])
def test_without_time_for_a_launch_there_is_none(tmp_path, monkeypatch, left_s, launched):
    """A launch takes 20 s."""
    made = lab(tmp_path, monkeypatch)
    monkeypatch.setattr(profiling, "_header", lambda _: header(32, 500))
    monkeypatch.setattr(type(made.context.launches), "launch_s", 20.0)
    monkeypatch.setattr(Profiler, "_search_left_s", lambda _: left_s)
    asked = []
    monkeypatch.setattr(Profiler, "_timed_whole", lambda *_: asked.append(1) or {})
    answer = Recording("p", tuple(range(60)), tuple(range(64)), 64, False, 60.0, 630.0, 700.0)
    times = DraftPass({}, 0.0, {1: 10.0, 2: 11.0})
    Profiler(made.cells, made.context)._deepened("", "main/whole", [answer], times, 16, read_ms=0.1)
    assert len(asked) == launched


def test_a_state_leaves_it_out(request_, monkeypatch):
    """No batch can be timed behind a text: the evidence has no rise."""
    monkeypatch.setattr("autospec.tuning.profiling.output_share", lambda _: 0.0)
    assert rise_for(request_, monkeypatch, main=header(0, 0, state=True)) is None


def test_a_tune_that_goes_on_knows_a_moved_draft(tmp_path, monkeypatch):
    """The proof's requests have what its context costs, under the path of today."""
    made, rise = lab(tmp_path, monkeypatch), DepthRise(0.1, 0.1)
    depth = DepthCosts(10.0, 500, {"": rise, "/old": rise}, {"/old": "the draft"})
    arms = (Arm(Mode.DRAFT_MODEL, "/new", file=DraftFile("the draft")),)
    cell = made.cells[0]
    cell.recall(CellHistory(requests=Shapes(depth=depth)), Space(arms, load_definition("quick").space))
    assert cell.history.requests is not None
    assert cell.history.requests.depth is not None
    assert set(cell.history.requests.depth.rises) == {"", "/old", "/new"}


def test_a_replaced_draft_is_timed_again(tmp_path, monkeypatch):
    """Another file has its path: the next search notes what that one's context costs."""
    made, old, new = lab(tmp_path, monkeypatch), DepthRise(0.1, 0.1), DepthRise(0.4, 0.0)
    noted = Shapes(depth=DepthCosts(10.0, 500, {"": old, "/draft": old}, {"/draft": "the old file"}))
    arms = (Arm(Mode.DRAFT_MODEL, "/draft", file=DraftFile("the new file")),)
    space = Space(arms, load_definition("quick").space)
    cell = made.cells[0]
    cell.recall(CellHistory(requests=noted), space)
    assert cell.history.requests is not None
    cell.shapes = cell.history.requests
    context = replace(made.context, space=space)
    depth = DepthTiming(made.cells, context, lambda _: None, lambda *_: None, lambda: 0.0)
    depth._rises.update({"": (old, 512), "/draft": (new, 512)})
    depth.note([Recording("p", tuple(range(60)), tuple(range(64)), 64, False, 60.0, 630.0, 700.0)])
    verifies = context.launches.cycle is Cycle.LLAMA_CPP
    assert cell.shapes.depth is not None
    assert cell.shapes.depth.rises["/draft"] == old.with_draft(new, verifies=verifies)
    assert cell.shapes.depth.identities == {"/draft": "the new file"}
