"""When a recommendation becomes stale, and the reason given for it."""

from __future__ import annotations

import pytest

from autospec.daemon.queue import uncertainty
from autospec.daemon.staleness import UNCACHED, Stale, mark, why_stale
from autospec.daemon.work import Tunable
from autospec.daemon.work_finder import _basis_changed
from autospec.measure.measurements import RequestShape, Shapes
from autospec.recommendations import Status
from tests.report.samples import recommendation, stored

BASIS = {
    "host": "h",
    "hardware": "chip-32g",
    "os": "linux 6.1.0-45-amd64",
    "model": "f1",
    "build": "b100",
    "build_fingerprint": "p1",
    "settings": ["-c", "4096"],
    "drafts": {"draft-model:d1": "Small-1B"},
}


def test_the_same_is_not_stale():
    """Nothing changed."""
    assert why_stale(BASIS, dict(BASIS)) is None


@pytest.mark.parametrize(
    ("change", "cause", "words"),
    [
        ({"hardware": "chip-64g"}, "hardware", "from chip-32g to chip-64g"),
        ({"model": "f2"}, "model", "the model file changed"),
        ({"settings": ["-c", "8192"]}, "settings", "from -c 4096 to -c 8192"),
        ({"build": "b200", "build_fingerprint": "p2"}, "build", "from b100 to b200"),
        ({"build_fingerprint": "p2"}, "build", "rebuilt"),
        ({"drafts": {**BASIS["drafts"], "draft-model:d2": "Tiny"}}, "drafts", "Tiny now fits as a draft"),
        ({"drafts": {}}, "drafts", "Small-1B no longer fits"),
        ({"os": "linux 6.8.0-1"}, "os", "the operating system changed"),
    ],
)
def test_each_change_has_its_words(change, cause, words):
    """The issue's list, one by one."""
    found = why_stale(BASIS, {**BASIS, **change})
    assert found is not None
    assert found.cause == cause
    assert words in found.reason


def test_a_patch_of_the_system_is_no_change():
    """Kernels are patched weekly; 6.1 stays 6.1."""
    assert why_stale(BASIS, {**BASIS, "os": "linux 6.1.0-46-amd64"}) is None


def test_drafts_that_the_user_named_are_their_choice():
    """A tune with --draft does not grow stale by what else lies on the disk."""
    assert why_stale({**BASIS, "drafts": None}, BASIS) is None


def test_what_an_older_version_did_not_keep_is_no_change():
    """Only what both know is compared."""
    assert why_stale({"build": "b100"}, BASIS) is None
    assert why_stale({"build": "b99"}, BASIS) is not None


@pytest.mark.parametrize(
    ("requests", "uncached", "stale"),
    [
        pytest.param(Shapes(0.5), True, True, id="an-earlier-version-judged-it"),
        pytest.param(Shapes(0.0, traffic=RequestShape(9.0, 9.0)), True, True, id="for-traffic"),
        pytest.param(Shapes(0.5, drafts_uncached=True), True, False, id="judged-as-it-is"),
        pytest.param(Shapes(0.0), True, False, id="nothing-is-cached"),
        pytest.param(Shapes(0.5), False, False, id="drafting-has-a-cache-too"),
    ],
)
def test_a_proof_that_took_for_cached_what_drafting_computes(requests, uncached, stale):
    """The daemon has it judged again, by a tune that goes on with its pairs."""
    basis = {**BASIS, **({UNCACHED: True} if uncached else {})}
    proof = recommendation(evidence={"basis": BASIS, "requests": requests.to_json()})
    model = Tunable(proof.model, "/m", "mlx", "f", basis, 1, 0, 0.0, 1)
    found = _basis_changed(stored(proof), model)
    assert (found is not None) is stale
    if found is not None:
        marked = mark(proof, found)
        assert uncertainty(marked) == 0.8
        assert marked.evidence["renewing"]
        assert "prompt cache" in marked.evidence["stale_reason"]


def test_a_marked_one_keeps_verdict_and_figures():
    """It goes on being served, with the reason beside it."""
    fresh = recommendation()
    marked = mark(fresh, Stale("build", "the backend's build changed from b1 to b2"))
    assert marked.status is Status.STALE
    assert (marked.verdict, marked.drafting, marked.speedup) == (fresh.verdict, fresh.drafting, fresh.speedup)
    assert marked.evidence["stale_reason"] == "the backend's build changed from b1 to b2"
