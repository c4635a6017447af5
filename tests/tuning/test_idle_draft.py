"""A draft that is loaded and not used, against off."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from autospec.backends.protocol import Idles, LaunchSettings
from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.errors import RequestError
from autospec.measure.asking import Asking
from autospec.prompts.suite import Half
from autospec.tuning.budget import Budget
from autospec.tuning.idle_draft import idle_draft_figures
from autospec.tuning.launches import Launches
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_loop import pays_for_coding, request_, tune
from tests.tuning.test_pairing import Watch

__all__ = ["request_"]

MODES = frozenset({Mode.OFF, Mode.DRAFT_MODEL})
SLOWER = 0.8
CHOSEN = Drafting(Mode.DRAFT_MODEL, draft="/draft", n_max=4)


@dataclass
class _Idling(SimulatedServer):
    """A server that is slower with its draft loaded."""

    unused: bool = False

    def complete(self, request):
        """Without speedup, and slower, where nothing is drafted."""
        done = super().complete(request)
        if not self.unused:
            return done
        ratio = SLOWER / self.backend.speedup(self.drafting, str(request.messages))
        return replace(done, wall_ms=done.wall_ms / ratio, predicted_ms=done.predicted_ms / ratio)

    def idle(self):
        """A view on itself."""
        return replace(self, unused=True)


@dataclass
class _Backend(SimulatedBackend):
    """Launches them."""

    def launch(self, model_path, drafting, settings):
        """As ever, but the server can be asked without drafting."""
        server = super().launch(model_path, drafting, settings)
        fields = {name: getattr(server, name) for name in server.__dataclass_fields__}
        return _Idling(**fields)


@pytest.fixture
def backend() -> _Backend:
    """Drafting doubles the speed of everything; loading the draft costs a fifth."""
    return _Backend(lambda _drafting, _text: 2.0, modes=MODES, per_request=True, noise=0.0)


def figures(backend, prompts, resident=2):
    """One comparison."""
    asking = Asking("p", 32, 0.0, Watch())
    with Launches(backend, "/main", LaunchSettings(), resident=resident) as launches:
        return idle_draft_figures(launches, asking, CHOSEN, prompts, Budget(1000.0))


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
    """Once for the draft, in every cell's evidence."""
    result = tune(request_, backend)
    assert len(backend.launched) == 2
    for recommendation in result.values():
        assert recommendation.evidence["idle_draft"]["ratio"] == pytest.approx(SLOWER, rel=0.02)


def test_its_failure_ends_no_tune(request_, backend, monkeypatch):
    """The proof goes on without it."""

    def fail(self, request):
        raise RequestError("No.")

    real = _Idling.complete
    monkeypatch.setattr(_Idling, "complete", lambda self, r: fail(self, r) if self.unused else real(self, r))
    result = tune(request_, backend)
    assert "idle_draft" not in result[PromptType.CODING].evidence
    assert result[PromptType.CODING].pairs > 0


def test_the_views_are_what_they_say(backend):
    """The protocol tells them apart."""
    with Launches(backend, "/main", LaunchSettings(), resident=2) as launches:
        assert isinstance(launches.drafted(CHOSEN), Idles)
