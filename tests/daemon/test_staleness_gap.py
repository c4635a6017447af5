"""Live traffic held against its proof: silent where it is as proven, explained by its conditions, or a reason to measure again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from autospec.cells import PromptType
from autospec.cli.daemon import status_lines
from autospec.daemon.staleness import GAP, Gap, gap_of, samples_of
from autospec.daemon.work import Tunable
from autospec.daemon.work_finder import _mark_stale
from autospec.drafting import OFF
from autospec.measure.measurements import Sample
from autospec.recommendations import CONDITIONS, Recommendation, Status, Verdict
from autospec.store.database import open_store
from tests.report.samples import DRAFTING, HERE, recommendation

CELL = "0123456789ab"
PROVEN_TPS = 50.0
PROOF = recommendation(
    backend="embedded",
    acceptance=0.6,
    speedup=1.3,
    speedup_ci=(1.28, 1.32),
    created_at="1970-01-01T00:00:01+00:00",
    evidence={
        "decode_drafting_tps": PROVEN_TPS,
        "decode_baseline_tps": 38.0,
        "basis": {},
        CONDITIONS: {"temperature": 0.0, "context_tokens": 400, "slots": 1},
    },
)
ALIKE = Sample(
    at=2.0,
    model=PROOF.model,
    backend="embedded",
    build="b1",
    prompt_type=PromptType.CODING,
    prompt_tokens=100,
    predicted_tokens=100,
    prompt_ms=50.0,
    predicted_ms=2000.0,
    drafting=DRAFTING,
    drafted=100,
    accepted=60,
    cached_tokens=0,
    concurrent=1,
    temperature=0.0,
)
HOT = {"temperature": 0.8}


def traffic(
    tps: float, count: int, *, acceptance: float = 0.6, seed: int = 1, **changes: Any
) -> list[Sample]:
    """Requests around a speed and an acceptance, with 5 % of noise."""
    rng = random.Random(seed)
    return [
        replace(
            ALIKE,
            at=2.0 + n,
            predicted_ms=1e5 / (tps * (1 + rng.gauss(0.0, 0.05))),
            accepted=round(100 * min(1.0, acceptance * (1 + rng.gauss(0.0, 0.05)))),
            **changes,
        )
        for n in range(count)
    ]


def mixed(*kinds: Sequence[Sample]) -> list[Sample]:
    """Requests of several kinds by turns."""
    return [sample for row in zip(*kinds, strict=True) for sample in row]


@pytest.mark.parametrize(
    "tps", [PROVEN_TPS, 70.0, 0.97 * PROVEN_TPS], ids=["as proven", "faster", "3 % slower"]
)
def test_traffic_as_proven_or_faster_is_no_gap(tps):
    """Nor is a difference that does not matter."""
    assert gap_of(PROOF, traffic(tps, 2000)) is None


def test_what_the_proof_s_own_interval_allows_is_no_gap():
    """10 % below a proof that is itself unsure by 15 %."""
    unsure = replace(PROOF, speedup=1.3, speedup_ci=(1.1, 1.5))
    assert gap_of(unsure, traffic(45.0, 1000)) is None
    assert gap_of(PROOF, traffic(45.0, 1000)) is not None


def test_slower_under_the_same_conditions_is_a_gap():
    """With both speeds, and that it is slower than without drafting."""
    gap = gap_of(PROOF, traffic(35.0, 400))
    assert (gap.what, gap.proven, gap.conditions) == ("speed", PROVEN_TPS, ())
    assert 34.0 < gap.live < 36.0
    assert "was 50.0 tok/s in the proof (38.0 tok/s without drafting)" in gap.sentence
    assert "without drafting" not in gap_of(PROOF, traffic(42.0, 400)).reason


def test_fewer_accepted_tokens_are_a_gap():
    """The speed may be right, as on a machine that has become faster."""
    gap = gap_of(PROOF, traffic(PROVEN_TPS, 400, acceptance=0.4))
    assert (gap.what, gap.proven) == ("acceptance", 0.6)
    assert "acceptance is 40% over" in gap.sentence


def test_a_gap_needs_as_many_requests_as_a_drift():
    """A hundred slow requests say nothing yet, 200 and more do; single slow ones never."""
    assert gap_of(PROOF, traffic(25.0, 60)) is None
    assert gap_of(PROOF, traffic(25.0, 300)) is not None
    assert (
        gap_of(PROOF, mixed(traffic(PROVEN_TPS, 700), traffic(52.0, 700, seed=2), traffic(20.0, 700))) is None
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (HOT, "at a temperature above 0"),
        ({"concurrent": 4}, "beside other requests"),
        ({"cached_tokens": 8000}, "of more than 1024 tokens"),
        ({"concurrent": None}, "of unknown conditions"),
    ],
)
def test_other_conditions_explain_a_gap(changes, words):
    """Two thirds are slow under another condition, the others are as proven: told, with their numbers."""
    slow = [traffic(25.0, 400, seed=seed, **changes) for seed in (2, 3)]
    gap = gap_of(PROOF, mixed(traffic(PROVEN_TPS, 400), *slow))
    assert gap.conditions == (f"67% {words}",)
    assert gap.compared == 400
    assert 48.0 < gap.compared_live < 52.0
    assert "400 requests under the proof's conditions: " in gap.sentence
    only_other = gap_of(PROOF, traffic(25.0, 400, **changes))
    assert only_other.conditions == (f"100% {words}",)
    assert "no request was under the proof's conditions" in only_other.sentence


def test_conditions_do_not_explain_what_is_also_slow_without_them():
    """Half of the requests are hot, and all are slow."""
    gap = gap_of(PROOF, mixed(traffic(25.0, 400), traffic(25.0, 400, seed=2, **HOT)))
    assert gap.conditions == ()


def test_other_requests_at_once_do_not_explain_acceptance():
    """They take time and change no text."""
    gap = gap_of(PROOF, traffic(PROVEN_TPS, 400, acceptance=0.3, concurrent=4))
    assert (gap.what, gap.conditions) == ("acceptance", ())


def test_conditions_of_the_proof_itself_explain_nothing():
    """It was measured at a temperature and behind a long context."""
    evidence = {**PROOF.evidence, CONDITIONS: {"temperature": 0.8, "context_tokens": 9000}}
    proof = replace(PROOF, evidence=evidence)
    assert gap_of(proof, traffic(25.0, 400, cached_tokens=8000, **HOT)).conditions == ()


@pytest.mark.parametrize(
    "proof",
    [
        replace(PROOF, drafting=OFF, verdict=Verdict.DISABLE),
        replace(PROOF, acceptance=None, evidence={}),
        replace(PROOF, acceptance=None, evidence={"decode_drafting_tps": "fast", CONDITIONS: 3}),
    ],
    ids=["off", "no figures", "figures that are none"],
)
def test_without_figures_there_is_no_gap(proof):
    """Nothing to hold the traffic against."""
    assert gap_of(proof, traffic(20.0, 400)) is None


def test_only_the_recommendation_s_own_requests_count():
    """Another model, backend, type or drafting, or an older request."""
    others = {"model": "x", "backend": "mlx", "prompt_type": PromptType.QA, "drafting": OFF, "at": 0.5}
    wrong = [replace(ALIKE, **{name: value}) for name, value in others.items()]
    assert samples_of(PROOF, [ALIKE, *wrong]) == [ALIKE]


TUNABLE = Tunable(PROOF.model, "/m.gguf", "embedded", "f", {}, 1, 0, 0.0, 1)


def surveyed(store: Any, samples: Sequence[Sample]) -> tuple[list[Recommendation], list[str], list[str]]:
    """What a survey makes of the stored recommendations."""
    found, marked, gaps = _mark_stale(store, store.recommendations(), [TUNABLE], samples, HERE)
    return [entry.recommendation for entry in found], marked, gaps


@pytest.fixture
def store(tmp_path):
    """With the proof."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    store.save_recommendation(PROOF, HERE, CELL)
    yield store
    store.close()


def test_an_unexplained_gap_opens_the_cell_again(store):
    """Stale with the reason, and served on."""
    (stale,), (sentence,), gaps = surveyed(store, traffic(35.0, 400))
    assert stale.status is Status.STALE
    assert stale.drafting == DRAFTING
    assert stale.evidence["stale_cause"] == "traffic"
    assert stale.evidence[GAP]["what"] == "speed"
    assert "was 50.0 tok/s in the proof" in sentence
    assert gaps == []
    assert store.recommendations()[0].recommendation == stale


def test_an_explained_gap_is_told_and_opens_nothing(store):
    """In the daemon's status."""
    (kept,), marked, (sentence,) = surveyed(store, traffic(35.0, 400, **HOT))
    assert (kept, marked) == (PROOF, [])
    assert sentence.startswith(f"{PROOF.model}, coding: Live generation speed is 35")
    lines = status_lines({"gaps": [sentence]})
    assert lines[lines.index("Slower than proven:") + 1] == f"  {sentence}"


def test_a_gap_that_the_next_proof_has_too_is_not_measured_for_ever(store):
    """The suite is unlike the traffic: told, until it becomes worse."""
    surveyed(store, traffic(35.0, 400))
    again = replace(PROOF, created_at="1970-01-01T00:00:02+00:00")
    store.save_recommendation(again, HERE, CELL)
    (kept,), marked, (sentence,) = surveyed(store, traffic(35.0, 400))
    assert (kept.status, marked) == (Status.PROVEN, [])
    assert "measured again because of that" in sentence
    (worse,), _, gaps = surveyed(store, traffic(25.0, 400))
    assert (worse.status, gaps) == (Status.STALE, [])


def test_another_drafting_has_a_gap_of_its_own(store):
    """What was found of the former one says nothing of it."""
    surveyed(store, traffic(35.0, 400))
    other = replace(DRAFTING, n_max=3)
    new = replace(PROOF, created_at="1970-01-01T00:00:02+00:00", drafting=other, tried=other)
    store.save_recommendation(new, HERE, CELL)
    (stale,), *_ = surveyed(store, traffic(35.0, 400, drafting=other))
    assert stale.status is Status.STALE


def test_a_gap_as_json():
    """What `autospec explain --json` has."""
    gap = Gap("speed", 50.0, 35.12344, 240, ("67% beside other requests",), 80, 49.0, 38.0)
    assert gap.to_json() == {
        "what": "speed",
        "proven": 50.0,
        "live": 35.1234,
        "requests": 240,
        "conditions": ["67% beside other requests"],
        "baseline": 38.0,
        "compared": 80,
        "compared_live": 49.0,
        "known": False,
    }
