"""The roofline of a pass, experts of a batch, and the acceptance that would pay."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from itertools import pairwise

import pytest

from autospec.catalog.candidates import Candidate
from autospec.catalog.model import Head, Weights
from autospec.drafting import Mode
from autospec.hardware.bandwidth import Speeds, known
from autospec.predict.estimate import (
    DraftEstimate,
    Reads,
    Steps,
    distinct_experts,
    draft_steps,
    estimate,
    estimate_draft,
    estimate_free,
    pass_bytes,
    pass_s,
    reads_of,
)
from studies.bench.estimate import REPORTS
from tests.catalog.making import make_model

# 100 GB/s, 10 TFLOPS, 1 ms a layer and 2 ms with experts.
SPEEDS = Speeds(100e9, 10e12, 1e-3, 2e-3, overlaps=True, source="known", words="For a test.")
DENSE = Reads(shared_bytes=5e9, flops_per_token=1e10, layers=10)
SPARSE = Reads(
    shared_bytes=1e9, expert_bytes=16e9, experts=8, active_experts=2, flops_per_token=1e10, layers=10
)


def candidate(mode: Mode = Mode.DRAFT_MODEL, **changes) -> Candidate:
    """A draft of a tenth of the main model's size."""
    own = {"name": "draft", "bytes_per_token": 500_000_000, "layers": 4, "kv_bytes_per_token": 1000}
    return Candidate(make_model(**(own | changes.pop("model", {}))), mode, fits=True, reason="", **changes)


class TestPasses:
    """What a pass reads, and how long it takes."""

    def test_one_token_chooses_its_experts(self) -> None:
        """Two of eight; a dense model has none."""
        assert distinct_experts(8, 2, 1) == pytest.approx(2.0)
        assert distinct_experts(0, 0, 5) == 0.0

    def test_more_tokens_choose_more_experts_and_never_more_than_there_are(self) -> None:
        """E (1 - (1 - a/E)^k): 3.5 for two tokens."""
        found = [distinct_experts(8, 2, k) for k in (1, 2, 4, 16, 1000)]
        assert found[1] == pytest.approx(3.5)
        assert all(a < b for a, b in pairwise(found))
        assert found[-1] <= 8.0

    def test_a_pass_reads_shared_weights_once_and_the_chosen_experts(self) -> None:
        """The cache is read besides."""
        assert pass_bytes(DENSE, 1) == pass_bytes(DENSE, 9) == 5e9
        assert pass_bytes(SPARSE, 1) == pytest.approx(1e9 + 16e9 / 4)
        assert pass_bytes(SPARSE, 2) == pytest.approx(1e9 + 16e9 * 3.5 / 8)
        assert pass_bytes(replace(DENSE, kv_bytes=1e9), 1) == 6e9

    def test_the_slower_of_reading_and_computing_counts(self) -> None:
        """50 ms to read, 1 ms to compute a token, 10 ms for the layers; 100 tokens are bound by computing."""
        assert pass_s(DENSE, SPEEDS, 1) == pytest.approx(0.060)
        assert pass_s(DENSE, SPEEDS, 50) == pytest.approx(0.060)
        assert pass_s(DENSE, SPEEDS, 100) == pytest.approx(0.110)
        assert pass_s(SPARSE, SPEEDS, 1) == pytest.approx(0.050 + 0.020)

    def test_a_processor_computes_after_it_has_read(self) -> None:
        """50 ms, 1 ms for each token, and 10 ms for the layers."""
        processor = replace(SPEEDS, overlaps=False)
        assert pass_s(DENSE, processor, 1) == pytest.approx(0.061)
        assert pass_s(DENSE, processor, 5) == pytest.approx(0.065)
        assert estimate(DENSE, processor).bound == "memory"

    def test_without_a_compute_limit_only_one_token_is_known(self) -> None:
        """Nothing is made up for a batch."""
        unknown = replace(SPEEDS, flops_per_s=None)
        assert pass_s(DENSE, unknown, 1) == pytest.approx(0.060)
        assert pass_s(DENSE, unknown, 2) is None
        assert estimate(DENSE, unknown).batch_ms.keys() == {1}

    def test_a_model_without_drafting(self) -> None:
        """Speed, batches, and what limits it."""
        own = estimate(DENSE, SPEEDS)
        assert own.tokens_per_s == pytest.approx(1000 / 60)
        assert own.batch_ms[16] == pytest.approx(60.0)
        assert own.bound == "memory"
        assert estimate(replace(DENSE, flops_per_token=1e12), SPEEDS).bound == "compute"
        assert estimate(replace(DENSE, shared_bytes=1e6), SPEEDS).bound == "overhead"

    def test_a_longer_text_before_is_read_too(self) -> None:
        """The cache of 32 layers at a depth."""
        model = make_model()
        weights = Weights(shared_bytes=4_500_000_000, row_bytes=8192, multiplied=8_000_000_000)
        short, long = reads_of(model, weights, 1000), reads_of(model, weights, 30000)
        assert long.kv_bytes == 30 * short.kv_bytes == 131072 * 30000
        assert short.flops_per_token == 16e9


class TestBreakEven:
    """The acceptance that would pay."""

    def test_a_draft_that_costs_nothing_pays_where_batches_are_free(self) -> None:
        """Reading limits: eight tokens take as long as one, so any accepted one is a gain."""
        free = estimate_free(DENSE, SPEEDS)
        assert free.break_even == pytest.approx(0.0, abs=0.01)
        assert free.bytes_per_token == 0
        assert "worth measuring" in free.sentence

    def test_experts_make_proposals_dear(self) -> None:
        """The same bytes for one token, in a mixture: a batch reads more."""
        dense = replace(DENSE, shared_bytes=5e9, experts=0)
        sparse = replace(SPARSE, shared_bytes=1e9)
        assert pass_bytes(dense, 1) == pytest.approx(pass_bytes(sparse, 1))
        needs = [estimate_free(m, SPEEDS).break_even for m in (dense, sparse)]
        assert needs[0] is not None
        assert needs[1] is not None
        assert needs[1] > needs[0] + 0.3

    def test_a_larger_draft_needs_more(self) -> None:
        """Each proposal costs a step of it."""
        needs = []
        for size in (100e6, 500e6, 2e9):
            steps = Steps(Reads(size, layers=1))
            found = estimate_draft(candidate(), steps, DENSE, SPEEDS)
            assert found.break_even is not None
            needs.append(found.break_even)
        assert needs == sorted(needs)
        assert needs[0] < needs[-1]

    def test_gains_grow_with_acceptance_and_with_longer_proposals(self) -> None:
        """At half accepted a short proposal is best, at nine tenths a long one."""
        found = estimate_draft(candidate(), Steps(Reads(50e6, layers=1)), DENSE, SPEEDS)
        assert found.speeds is not None
        (low, short), _, (high, long) = found.speeds.values()
        assert low < high
        assert short < long

    def test_computing_limits_what_verifying_gains(self) -> None:
        """Where a second token costs as much as the first one, nothing pays."""
        slow = replace(SPEEDS, flops_per_s=DENSE.flops_per_token / 0.050)
        found = estimate_draft(candidate(), Steps(Reads(100e6, layers=1)), DENSE, slow)
        assert found.break_even is not None
        assert found.break_even > 0.75
        assert "hardly worth it" in found.sentence or "not worth it" in found.sentence

    def test_unknown_stays_unknown_with_a_reason(self) -> None:
        """A chip without a compute limit, and a draft whose files do not say enough."""
        unknown = replace(SPEEDS, flops_per_s=None)
        found = estimate_draft(candidate(), Steps(Reads(1e8)), DENSE, unknown)
        assert (found.break_even, found.n_max) == (None, None)
        assert found.sentence.startswith("Unknown: ")
        told = estimate_draft(candidate(), "Unknown: so it is.", DENSE, SPEEDS)
        assert told.to_json()["unknown"] == told.sentence == "Unknown: so it is."

    @pytest.mark.parametrize(
        ("even", "words"),
        [
            (0.3, "Would need 30% accepted: worth measuring."),
            (0.6, "Would need 60% accepted: worth measuring for predictable text, such as code."),
            (0.93, "Would need 93% accepted: measuring is hardly worth it."),
            (
                1.4,
                "Would be slower even if every proposal were accepted: measuring is not worth it, by this estimate.",
            ),
        ],
    )
    def test_the_sentence(self, even: float, words: str) -> None:
        """Each says a number and what follows; none is called a verdict."""
        sentence = DraftEstimate("d", None, Mode.DRAFT_MODEL, n_max=1, break_even=even).sentence
        assert sentence == words
        assert "verdict" not in sentence


class TestSteps:
    """What a step of each kind of draft reads."""

    MAIN = Weights(shared_bytes=5_000_000_000, output_bytes=600_000_000, multiplied=5_000_000_000)

    def steps(self, draft: Candidate, weights: Weights) -> Steps:
        """With the main model above."""
        found = draft_steps(draft, weights, DENSE, self.MAIN, 100)
        assert isinstance(found, Steps)
        return found

    def test_a_draft_model(self) -> None:
        """Its weights and cache; llama.cpp has it read verified tokens again, mlx_lm does not."""
        weights = Weights(shared_bytes=500_000_000, multiplied=500_000_000)
        found = self.steps(candidate(), weights)
        assert found.step.shared_bytes == 500_000_000
        assert found.step.kv_bytes == 100_000
        assert (found.again, found.block) == (True, False)
        assert not self.steps(candidate(model={"format": "mlx"}), weights).again

    def test_a_head_without_an_output_matrix_reads_the_main_models(self) -> None:
        """EAGLE-3 and DFlash heads share it; the latter propose a block in one step."""
        head = {"head": Head("dflash"), "layers": 0}
        weights = Weights(shared_bytes=100_000_000)
        found = self.steps(candidate(Mode.DFLASH, model=head), weights)
        assert found.step.shared_bytes == 700_000_000
        assert found.block
        own = replace(weights, output_bytes=50_000_000)
        assert self.steps(candidate(Mode.EAGLE3, model=head), own).step.shared_bytes == 100_000_000

    def test_own_mtp_layers(self) -> None:
        """One layer and the output matrix for each proposal; without weights it is unknown."""
        draft = candidate(Mode.MTP, model={"mtp_layers": 2}, own_layers=True)
        found = self.steps(draft, replace(self.MAIN, mtp_bytes=400_000_000))
        assert found.step.shared_bytes == 200_000_000 + 600_000_000
        said = draft_steps(draft, self.MAIN, DENSE, self.MAIN, 100)
        assert isinstance(said, str)
        assert said.startswith("Unknown: ")

    def test_a_block_costs_one_step(self) -> None:
        """Eight proposals of a DFlash head cost as much as one of them, where reading limits."""
        step = Reads(500e6, layers=1)
        block = estimate_draft(candidate(n_max=8), Steps(step, block=True), DENSE, SPEEDS)
        single = estimate_draft(candidate(n_max=8), Steps(step), DENSE, SPEEDS)
        assert block.speeds is not None
        assert single.speeds is not None
        assert block.speeds[0.9][0] > single.speeds[0.9][0]
        assert block.n_max is not None
        assert block.n_max <= 8


def test_the_public_reports_are_read() -> None:
    """Each names a GPU of the table, models that are described, and speeds; `python -m studies.bench.estimate` compares them."""
    document = tomllib.loads(REPORTS.read_text("utf-8"))
    assert len(document["report"]) > 20
    for report in document["report"]:
        speeds = known(report["gpu"])
        assert speeds is not None, report
        assert speeds.flops_per_s is not None, report
        assert {report["main"], report["draft"]} <= document["models"].keys()
        assert report["without"] > 0
        assert report["with"] > 0
        assert report["source"]
