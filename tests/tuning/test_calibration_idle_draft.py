"""The cost of a draft model that is loaded but not used."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.backends.registry import Idles
from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.errors import RequestError, ServerDiedError
from autospec.measure.asking import Asking
from autospec.prompts.suite import Half
from autospec.tuning.budget import Budget
from autospec.tuning.calibration import idle_draft_figures
from autospec.tuning.launches import Launches
from tests.backends.waiting import wait_until
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_paired_runner import Watch
from tests.tuning.test_run import TYPES, Silent, pays_for_coding, request_, tune

pytestmark = pytest.mark.usefixtures("no_waits")

__all__ = ["request_"]

MODES = frozenset({Mode.OFF, Mode.DRAFT_MODEL})
SLOWER = 0.8
CHOSEN = Drafting(Mode.DRAFT_MODEL, draft="/draft", n_max=4)


@dataclass
class _Idling(SimulatedServer):
    """A server that is slower with its draft loaded."""

    unused: bool = False

    def complete(self, request):
        """Slower, and without the draft's speedup, if nothing is drafted."""
        done = super().complete(request)
        if not self.unused:
            return done
        self.backend.idle_asked.append(self.drafting.draft)
        ratio = SLOWER / self.backend.speedup(self.drafting, str(request.messages))
        return replace(done, wall_ms=done.wall_ms / ratio, predicted_ms=done.predicted_ms / ratio)

    def idle(self):
        """A view on itself."""
        return replace(self, unused=True)


@dataclass
class _Backend(SimulatedBackend):
    """Launches them, and notes which drafts were loaded and not used when a request came."""

    idle_asked: list[str] = field(default_factory=list)

    def launch(self, model_path, drafting, settings):
        """A simulated launch that can be asked without drafting."""
        server = super().launch(model_path, drafting, settings)
        fields = {name: getattr(server, name) for name in server.__dataclass_fields__}
        return _Idling(**fields)


@pytest.fixture
def backend() -> _Backend:
    """Drafting doubles the speed of everything; loading the draft costs a fifth."""
    return _Backend(lambda _drafting, _text: 2.0, modes=MODES, per_request=True, noise=0.0)


def figures(backend, prompts, resident=2, budget=None):
    """One comparison."""
    asking = Asking("p", 32, 0.0, Watch())
    with Launches(backend, "/main", LaunchSettings(), resident=resident) as launches:
        return idle_draft_figures(launches, asking, CHOSEN, prompts, budget or Budget(1000.0))


def test_a_prompt_that_fails_without_drafting_is_not_asked(backend, request_):
    """It would end the comparison."""

    def refuse(_server: SimulatedServer, text: str) -> None:
        if "coding tune 0" in text:
            raise RequestError("status 500: the answer cannot be parsed.")

    backend.before_answer = refuse
    found = tune(request_, backend)
    assert all(r.evidence["idle_draft"]["pairs"] == 5 for r in found.values())


@pytest.mark.parametrize("resident", [1, 2])
def test_it_is_measured_in_pairs(backend, request_, resident):
    """Five pairs with their interval, whichever way the launches fit into memory."""
    prompts = request_.suite.of(PromptType.CODING, Half.TUNE)
    found = figures(backend, prompts, resident)
    assert found["ratio"] == pytest.approx(SLOWER, rel=0.01)
    assert found["interval"] == pytest.approx([SLOWER, SLOWER], rel=0.01)
    assert found["decode_ratio"] == pytest.approx(SLOWER, rel=0.01)
    assert (found["pairs"], found["same_text"]) == (5, 5)
    assert len(backend.launched) == 2


def test_a_server_that_cannot_idle_is_not_compared(request_):
    """A backend whose drafting is the launch's."""
    plain = SimulatedBackend(pays_for_coding, modes=MODES)
    assert figures(plain, request_.suite.of(PromptType.CODING, Half.TUNE)) is None


def test_a_tune_keeps_it_in_the_evidence_and_launches_nothing_for_it(request_, backend):
    """Once for the draft, in every cell's evidence; the third launch is the proof's first round."""
    progress = Silent()
    result = tune(request_, backend, progress)
    assert "idle" in {s.phase for s in progress.steps}
    assert len(backend.launched) == 3
    for recommendation in result.values():
        assert recommendation.evidence["idle_draft"]["ratio"] == pytest.approx(SLOWER, rel=0.02)


def test_a_runner_up_that_is_enabled_has_its_own(request_, backend, tmp_path):
    """The search prefers one draft; on the prove prompts another one pays, and its idle cost is measured, too."""
    main, first = request_.models
    second = replace(first, name="second", path=tmp_path / "second.gguf", fingerprint="second")

    def speedup(drafting: Drafting, text: str) -> float:
        if drafting.draft == str(first.path):
            return 1.5 if "tune" in text else 0.9
        return 1.4

    backend.speedup = speedup
    result = tune(replace(request_, models=(main, first, second)), backend)
    for recommendation in result.values():
        assert recommendation.drafting.draft == str(second.path)
        assert recommendation.evidence["idle_draft"]["ratio"] == pytest.approx(SLOWER, rel=0.02)
    assert backend.idle_asked == [str(first.path)] * 5 + [str(second.path)] * 5


def test_without_time_it_is_left_out_and_said(request_, backend, monkeypatch):
    """The budget is the user's; the proof goes first."""
    monkeypatch.setattr(Budget, "allows", lambda *_args, **_options: False)
    progress = Silent()
    result = tune(request_, backend, progress)
    assert backend.idle_asked == []
    assert "idle_draft" not in result[PromptType.CODING].evidence
    assert "idle" not in {s.phase for s in progress.steps}
    assert (
        "The cost of keeping draft.gguf loaded but unused was not measured: no time is left for it."
        in progress.told
    )


def test_its_failure_ends_no_tune(request_, backend, monkeypatch):
    """The proof continues without it."""

    def fail(self, request):
        raise RequestError("No.")

    real = _Idling.complete
    monkeypatch.setattr(_Idling, "complete", lambda self, r: fail(self, r) if self.unused else real(self, r))
    result = tune(request_, backend)
    assert "idle_draft" not in result[PromptType.CODING].evidence
    assert result[PromptType.CODING].pairs > 0


def test_prompt_types_that_are_tuned_one_after_another_measure_it_once(request_, backend):
    """As the daemon does: the second tune uses the first one's measurement."""
    for prompt_type in TYPES:
        result = tune(replace(request_, prompt_types=(prompt_type,)), backend)
        assert result[prompt_type].evidence["idle_draft"]["pairs"] == 5
    assert len(backend.idle_asked) == 5


def test_a_replaced_draft_is_measured_again(request_, backend):
    """The figures are of the file, not of its name."""
    draft = request_.models[1].path
    for prompt_type in TYPES:
        draft.write_bytes(str(prompt_type).encode())
        tune(replace(request_, prompt_types=(prompt_type,)), backend)
    assert len(backend.idle_asked) == 10


def test_each_draft_is_kept_before_the_next_is_measured(request_, backend):
    """Interrupted in the second draft's comparison, the next tune continues with that draft."""
    main, first = request_.models
    other = replace(first, name="other", path=first.path.with_name("other.gguf"), fingerprint="other")
    request = replace(request_, models=(main, first, other))
    backend.speedup = lambda drafting, text: 2.0 if ("other" in drafting.draft) is ("coding" in text) else 0.9

    def interrupt(server, text):
        if (
            len(backend.idle_asked) == 5
            and server.drafting.draft
            and server.drafting.draft != backend.idle_asked[0]
        ):
            raise KeyboardInterrupt

    backend.before_answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(request, backend)
    backend.before_answer = lambda _server, _text: None
    result = tune(request, backend)
    assert len(backend.idle_asked) == 10
    assert len(set(backend.idle_asked)) == 2
    assert all("idle_draft" in result[t].evidence for t in TYPES)


def test_a_remeasurement_measures_it_once_more(request_, backend):
    """Whether the prompt types are measured again together or one after another."""
    tune(request_, backend)
    tune(replace(request_, again=True), backend)
    assert len(backend.idle_asked) == 10
    for prompt_type in TYPES:
        tune(replace(request_, again=True, prompt_types=(prompt_type,)), backend)
    assert len(backend.idle_asked) == 15


def test_an_interrupted_remeasurement_keeps_what_it_measured(request_, backend):
    """Interrupted in the proof, the draft is not compared a third time."""
    again = replace(request_, again=True)
    tune(request_, backend)
    made = time.time()
    wait_until(lambda: time.time() >= made + 1.0, 3)  # recommendations tell their second only

    def interrupt(_server, text):
        if "prove" in text:
            raise KeyboardInterrupt

    backend.before_answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(again, backend)
    assert len(backend.idle_asked) == 10
    backend.before_answer = lambda _server, _text: None
    tune(again, backend)
    assert len(backend.idle_asked) == 10


@pytest.mark.parametrize("resident", [1, 2])
@pytest.mark.parametrize(("total_s", "pairs"), [(250.0, 1), (1000.0, 4), (9000.0, 5)])
def test_it_keeps_to_its_part_of_the_budget(backend, request_, resident, total_s, pairs):
    """8 %, with prompts of ten seconds each; also by turns, where a pair is complete only at the end."""
    now = [0.0]

    def takes_ten_seconds(_server, _text):
        now[0] += 10.0

    backend.before_answer = takes_ten_seconds
    prompts = request_.suite.of(PromptType.CODING, Half.TUNE)
    found = figures(backend, prompts, resident, Budget(total_s, lambda: now[0]))
    assert (found["pairs"], now[0]) == (pairs, 20.0 * pairs)


@pytest.mark.parametrize("idle", [True, False])
def test_a_server_that_dies_of_it_is_launched_again(backend, request_, idle):
    """The proof must not ask a dead server."""

    def die(server, _text):
        if server.drafting.is_off is not idle:
            raise ServerDiedError("It was killed.")

    backend.before_answer = die
    prompts = request_.suite.of(PromptType.CODING, Half.TUNE)
    with Launches(backend, "/main", LaunchSettings(), resident=2) as launches:
        dead = launches.drafted(CHOSEN) if idle else launches.off()
        with pytest.raises(ServerDiedError):
            idle_draft_figures(launches, Asking("p", 32, 0.0, Watch()), CHOSEN, prompts, Budget(1000.0))
        assert dead.stopped
        assert (launches.drafted(CHOSEN) if idle else launches.off()).launch_id != dead.launch_id


def test_the_views_are_what_they_say(backend):
    """The protocol tells them apart."""
    with Launches(backend, "/main", LaunchSettings(), resident=2) as launches:
        assert isinstance(launches.drafted(CHOSEN), Idles)
