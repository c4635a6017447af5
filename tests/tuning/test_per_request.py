"""Backends that take drafting with the request: one launch per draft, whatever the number of tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import LaunchError, UnsupportedError
from autospec.measure.measurements import Phase
from autospec.recommendations import CONDITIONS, Verdict
from autospec.tuning.launches import Launches
from tests.catalog.making import make_model
from tests.tuning.simulated import SHORT_TOKENS, SimulatedBackend, SimulatedServer
from tests.tuning.test_paired_runner import TASKS, Watch, pairing
from tests.tuning.test_run import TYPES, pays_for_coding, request_, tune

pytestmark = pytest.mark.usefixtures("no_waits")

__all__ = ["request_"]

MODES = frozenset({Mode.OFF, Mode.DRAFT_MODEL})


def drafting(n_max: int, draft: str = "/draft") -> Drafting:
    """As MLX has it."""
    return Drafting(Mode.DRAFT_MODEL, draft=draft, n_max=n_max)


@pytest.fixture(autouse=True)
def only_the_types_own_proofs(monkeypatch):
    """Requests and launches are counted here: without those that the answer for all types together needs."""
    monkeypatch.setattr("autospec.tuning.overall_proof.OverallProof._can_measure", lambda *_: False)


@pytest.fixture
def backend() -> SimulatedBackend:
    """Drafting goes with the request."""
    return SimulatedBackend(pays_for_coding, modes=MODES, per_request=True)


def test_another_number_of_tokens_is_no_launch_and_another_draft_is_one(backend):
    """Off keeps a process of its own: a draft that is loaded and not used is not off."""
    with Launches(backend, "/main", LaunchSettings(), resident=2) as launches:
        off = launches.off()
        four = launches.drafted(drafting(4))
        launches.expire()
        eight = launches.drafted(drafting(8))
        assert (eight.launch_id, eight.drafting.n_max) == (four.launch_id, 8)
        assert launches.drafted(drafting(8, "/other")).launch_id != four.launch_id
        assert launches.off() is off
    assert backend.launched == [OFF, drafting(4), drafting(8, "/other")]
    assert not backend.running


@pytest.mark.parametrize("per_request", [False, True])
def test_both_sides_are_launched_again_for_every_round(tmp_path, per_request):
    """Even if drafting goes with the request: otherwise one launch's luck would be in all rounds."""
    pairs, made = pairing(tmp_path, Watch(), [], per_request=per_request)
    found = [[m.pair for m in pairs.block(TASKS, drafting(4), Phase.PROVE, round_)] for round_ in (1, 2, 3)]
    for side in ("off", "drafted"):
        launches = [{getattr(pair, side).launch_id for pair in round_} for round_ in found]
        assert all(len(ids) == 1 for ids in launches)
        assert len(set.union(*launches)) == 3
    assert len(made.launched) == 6
    # The new off starts beside the old one; the drafted launch has gone by then.
    assert made.most_running == 2


def test_cells_in_the_same_round_share_the_launches(tmp_path, backend):
    """Two prompt types with winners of one draft; what differs goes with the request, and off is the same."""
    pairs, made = pairing(tmp_path, Watch(), [], per_request=True)
    other = [replace(task, cell_key="other") for task in TASKS]
    for round_ in (1, 2):
        list(pairs.block(TASKS, drafting(4), Phase.PROVE, round_))
        list(pairs.block(other, drafting(8), Phase.PROVE, round_))
    assert made.launched == [OFF, drafting(4), OFF, drafting(4)]


def test_the_search_keeps_its_launches_and_the_proof_begins_with_another_of_the_draft(tmp_path):
    """The search's launch of a draft helped to choose it; its off is the same for all draftings."""
    pairs, made = pairing(tmp_path, Watch(), [], per_request=True)
    for tokens in (4, 8):
        list(pairs.block(TASKS, drafting(tokens), Phase.SEARCH, 0))
    assert made.launched == [OFF, drafting(4)]
    list(pairs.block(TASKS, drafting(8), Phase.PROVE, 1))
    assert made.launched == [OFF, drafting(4), drafting(8)]


def test_a_whole_tune_launches_each_draft_once_to_search_and_once_a_round(request_, backend):
    """Search and proof of two prompt types, which are decided in one round: off, and the one draft that fits."""
    result = tune(request_, backend)
    assert [d.is_off for d in backend.launched] == [True, False, False]
    assert result[PromptType.CODING].verdict is Verdict.ENABLE
    assert result[PromptType.WRITING].verdict is Verdict.DISABLE


def test_every_verdict_is_against_true_off(request_, backend):
    """The baseline is the launch without a draft in memory."""
    tune(request_, backend)
    off = {launch for launch, drafting, _ in backend.asked if drafting.is_off}
    assert len(off) == 1
    assert off.isdisjoint(launch for launch, drafting, _ in backend.asked if not drafting.is_off)


def test_the_evidence_tells_which_side_has_a_prompt_cache(request_, backend):
    """The proof counts the whole prompt for the drafting, and says so."""
    backend.drafts_uncached = True
    enabled = tune(request_, backend)[PromptType.CODING]
    assert enabled.verdict is Verdict.ENABLE
    request, requests = enabled.evidence["request"], enabled.evidence["requests"]
    assert (request["prompt_tokens"], request["drafted_prompt_tokens"]) == (SHORT_TOKENS / 2, SHORT_TOKENS)
    assert requests["drafts_uncached"] is True
    conditions = enabled.evidence[CONDITIONS]
    assert (conditions["cached_share"], conditions["drafted_cached_share"]) == (0.5, 0.0)


@pytest.mark.parametrize("change", [{"has_recurrent_state": True}, {"sliding_window": 512}])
def test_a_model_that_cannot_be_rolled_back_is_disabled_before_anything_starts(request_, backend, change):
    """The reason stands in the recommendation."""
    main = replace(make_model(name="main", format="mlx"), **change)
    result = tune(replace(request_, model=main, models=(main,)), backend)
    assert backend.launched == []
    for prompt_type in TYPES:
        assert result[prompt_type].verdict is Verdict.DISABLE
        assert "mlx_lm cannot roll back" in result[prompt_type].reason


def test_what_the_backend_refuses_for_every_draft_is_disabled_before_anything_starts(
    request_, backend, monkeypatch
):
    """The backend knows models whose metadata tell nothing."""
    command = backend.command

    def refuse(path, drafting, settings):
        if not drafting.is_off:
            raise UnsupportedError("Its cache cannot be rolled back.")
        return command(path, drafting, settings)

    monkeypatch.setattr(backend, "command", refuse)
    result = tune(request_, backend)
    assert backend.launched == []
    assert result[PromptType.CODING].verdict is Verdict.DISABLE
    assert result[PromptType.CODING].reason == "Its cache cannot be rolled back."


class _InProcess(SimulatedBackend):
    """A backend that loads models a second time to ask them in tokens."""

    def in_process(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> SimulatedServer:
        """As a launch, but its server has tokens, and the model's path stands among the launches."""
        server = self.launch(model_path, drafting, settings)
        server.tokens = (model_path, settings.args)  # type: ignore[assignment]
        return server

    def settings_of_draft(self, settings: LaunchSettings) -> LaunchSettings:
        """None."""
        return LaunchSettings(ready_timeout_s=settings.ready_timeout_s)


@pytest.mark.parametrize(("resident", "most"), [(2, 2), (1, 1)])
def test_the_main_model_is_read_in_a_process_of_its_own(resident, most):
    """Loaded when it is first asked for, once; beside off where both fit, else instead of it; gone afterwards."""
    backend = _InProcess(pays_for_coding, modes=MODES, per_request=True)
    settings = LaunchSettings(args=("--adapter-path", "/a"))
    with Launches(backend, "/main", settings, resident=resident) as launches:
        launches.off()
        with launches.main_in_tokens() as main:
            assert len(backend.launched) == 1
            assert main() is main()
            assert main() == ("/main", settings.args)
            assert len(backend.launched) == 2
        assert len(backend.running) == resident - 1
        with launches.alone("/draft") as draft:
            # The main model's adapter is not the draft's.
            assert draft.tokens == ("/draft", ())
    assert not backend.running
    assert backend.most_running == most


@pytest.mark.parametrize("permanent", [False, True])
def test_a_model_that_does_not_fit_beside_off_after_all_is_loaded_alone(permanent):
    """Off stops, and launches take turns; a launch that can never work stops nothing."""
    backend = _InProcess(pays_for_coding, modes=MODES, per_request=True)

    def refuse(_drafting: Drafting) -> None:
        if backend.running:
            raise LaunchError("Out of memory.", permanent=permanent)

    backend.before_launch = refuse
    with Launches(backend, "/main", LaunchSettings(), resident=2) as launches:
        off = launches.off()
        if permanent:
            with pytest.raises(LaunchError, match="memory"), launches.alone("/draft"):
                pass
            assert launches.off() is off
            return
        with launches.alone("/draft") as draft:
            assert draft.tokens == ("/draft", ())
        assert launches.resident == 1
        assert launches.off() is not off
    assert not backend.running
    assert backend.most_running == 1
