"""A second turn that fails with drafting only: the cell's other drafting is enabled, or proved, and nothing more is asked."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest

from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.errors import LateAnswerError, NoAnswerError, RequestError, ServerDiedError
from autospec.hardware.state import MachineState, StateWatch
from autospec.measure import disturbances
from autospec.recommendations import (
    FAILING,
    LIMITS,
    NO_LIMITS,
    LimitCheck,
    Limits,
    LimitVerdict,
    Status,
    Verdict,
)
from autospec.tuning import load_guard
from autospec.tuning import run as run_module
from autospec.tuning.definition import LimitsDefinition
from autospec.tuning.limit_checks import LimitChecks
from autospec.tuning.proof import Proof
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_contest import MODES, calm, machine  # noqa: F401 - a fixture
from tests.tuning.test_contest import request_ as contest_request
from tests.tuning.test_contest import tune as tune_machine
from tests.tuning.test_limits_in_a_tune import LONG_CHARACTERS, request_for
from tests.tuning.test_paired_runner import CALM
from tests.tuning.test_run import Silent, nobody_else_is_at_work, tune

__all__ = ["contest_request", "nobody_else_is_at_work"]  # fixtures

CODING = PromptType.CODING
CHECKED = LimitsDefinition(check=True)
SECOND_TURN = "one more example"


def both_win(drafting: Drafting, _text: str) -> float:
    """The draft model is faster by half, n-grams by a quarter."""
    return 1.5 if drafting.mode is Mode.DRAFT_MODEL else 1.25


def failing(*modes: Mode):
    """Refuses every second turn in these modes."""

    def refuse(server: SimulatedServer, text: str) -> None:
        if SECOND_TURN in text and server.drafting.mode in modes:
            raise RequestError("broken")

    return refuse


def backend(*modes: Mode) -> SimulatedBackend:
    """Both draftings win, and the second turns of these modes fail."""
    return SimulatedBackend(both_win, before_answer=failing(*modes))


def is_left_to_the_next_tune(found) -> bool:
    """Whether nothing is served and the proof goes on."""
    assert found.drafting.is_off
    assert found.reason.startswith("1 prompt fails with drafting only, in the second turn of a chat")
    assert found.reason.endswith("run tune again to continue.")
    return (found.verdict, found.status) == (Verdict.UNDECIDED, Status.PROVISIONAL)


def is_the_runner_up(found) -> bool:
    """Whether n-grams are enabled, with limits of their own, after the draft model was refused."""
    [other] = found.evidence["also_proved"]
    assert (other["drafting"]["mode"], other["verdict"]) == ("draft-model", "undecided")
    assert [told["drafting"]["mode"] for told in found.evidence[FAILING]["others"]] == ["draft-model"]
    [check] = Limits.from_json(found.evidence[LIMITS]).second_turn
    assert check.verdict is LimitVerdict.FASTER
    return (found.verdict, found.status, found.drafting.mode) == (
        Verdict.ENABLE,
        Status.PROVEN,
        Mode.NGRAM_SIMPLE,
    )


@pytest.mark.process
def test_the_runner_up_is_proved_and_checked(tmp_path):
    """In the same tune, where there is time. Of the refused drafting nothing more is asked, and it is not launched again."""
    simulated, progress, serving = backend(Mode.DRAFT_MODEL), Silent(), []
    launch = simulated.launch
    simulated.launch = lambda model, drafting, settings: (serving.append(drafting.mode) if settings.serving else None, launch(model, drafting, settings))[1]  # fmt: skip
    request = request_for(tmp_path, CHECKED)
    assert is_the_runner_up(tune(request, simulated, progress)[CODING])
    assert serving[:3] == [Mode.DRAFT_MODEL, Mode.OFF, Mode.NGRAM_SIMPLE]
    assert serving.count(Mode.DRAFT_MODEL) == 1
    drafted = [text for _, d, text in simulated.asked if d.mode is Mode.DRAFT_MODEL]
    assert [SECOND_TURN in text for text in drafted].index(True) == len(drafted) - 1
    assert any("Proving ngram-simple" in told and "instead" in told for told in progress.told)
    asked = len(simulated.asked)
    assert is_the_runner_up(tune(request, simulated)[CODING])
    assert len(simulated.asked) == asked


@pytest.mark.process
def test_without_time_the_next_tune_proves_the_runner_up(tmp_path, monkeypatch):
    """Earlier the cell was closed for good, and off was served."""
    request, simulated = request_for(tmp_path, CHECKED), backend(Mode.DRAFT_MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(Proof, "_turns_to_runner_up", lambda *_: False)
        assert is_left_to_the_next_tune(tune(request, simulated)[CODING])
    assert is_the_runner_up(tune(request, simulated)[CODING])


@pytest.mark.process
def test_what_a_later_tune_finds_leaves_the_runner_up_to_the_next(tmp_path):
    """It was proven without the checks."""
    request, simulated = request_for(tmp_path, CHECKED), backend(Mode.DRAFT_MODEL)
    unchecked = replace(request, definition=replace(request.definition, limits=LimitsDefinition()))
    assert tune(unchecked, simulated)[CODING].verdict is Verdict.ENABLE
    assert is_left_to_the_next_tune(tune(request, simulated)[CODING])
    assert is_the_runner_up(tune(request, simulated)[CODING])


@pytest.mark.process
def test_where_both_fail_the_answer_is_final(tmp_path):
    """No tune measures it again."""
    request, simulated = request_for(tmp_path, CHECKED), backend(Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE)
    found = tune(request, simulated)[CODING]
    assert (found.verdict, found.status, found.drafting.is_off) == (Verdict.UNDECIDED, Status.PROVEN, True)
    asked = len(simulated.asked)
    assert tune(request, simulated)[CODING] == found
    assert len(simulated.asked) == asked


@pytest.mark.process
def test_the_other_drafting_of_a_contest_is_enabled_instead(contest_request, monkeypatch):
    """It was enabled in the same tune: nothing is left to prove, and its limits are checked likewise."""
    checked: list[Mode] = []
    broken_turn = replace(NO_LIMITS, second_turn=(LimitCheck(2.0),))

    def check(self: LimitChecks, subjects) -> None:
        for subject in subjects:
            checked.append(subject.drafting.mode)
            assert subject.known == NO_LIMITS
            if subject.drafting.mode is Mode.NGRAM_SIMPLE:
                self.keep(subject, broken_turn, {"p1": "broken"})

    monkeypatch.setattr(LimitChecks, "run", check)
    request = replace(contest_request, definition=replace(contest_request.definition, limits=CHECKED))
    found, progress = tune_machine(request, machine(request))
    assert checked == [Mode.NGRAM_SIMPLE, Mode.DRAFT_MODEL]
    assert (found.verdict, found.status) == (Verdict.ENABLE, Status.PROVEN)
    assert found.drafting.mode is Mode.DRAFT_MODEL
    [other] = found.evidence["also_proved"]
    assert (other["drafting"]["mode"], other["verdict"]) == ("ngram-simple", "undecided")
    assert LIMITS not in found.evidence, "those of the other drafting"
    assert any("is enabled instead" in line for line in progress.told)


@pytest.mark.process
@pytest.mark.parametrize("deep", [False, True])
def test_a_server_that_dies_once_refuses_nothing(tmp_path, deep):
    """Another program may have taken its memory. It is launched once more, and the answer is that of a whole check."""
    died: list[str] = []

    def die_once(server: SimulatedServer, text: str) -> None:
        there = len(text) > LONG_CHARACTERS if deep else SECOND_TURN in text
        if there and server.drafting.mode is Mode.DRAFT_MODEL and not died:
            died.append(server.launch_id)
            raise ServerDiedError("It was killed.")

    found = tune(request_for(tmp_path, CHECKED), SimulatedBackend(both_win, before_answer=die_once))[CODING]
    assert died
    assert (found.verdict, found.status, found.drafting.mode) == (
        Verdict.ENABLE,
        Status.PROVEN,
        Mode.DRAFT_MODEL,
    )
    limits = Limits.from_json(found.evidence[LIMITS])
    checks = (*limits.concurrent, *limits.context, *limits.temperature, *limits.second_turn)
    assert {(check.pairs, check.verdict) for check in checks} == {(8, LimitVerdict.FASTER)}


@pytest.mark.process
def test_a_server_that_dies_in_every_second_turn_is_refused(tmp_path):
    """It died on a new launch, too."""

    def die(server: SimulatedServer, text: str) -> None:
        if SECOND_TURN in text and server.drafting.mode is Mode.DRAFT_MODEL:
            raise ServerDiedError("It was killed.")

    simulated = SimulatedBackend(both_win, before_answer=die)
    assert is_the_runner_up(tune(request_for(tmp_path, CHECKED), simulated)[CODING])


@pytest.mark.process
def test_a_connection_that_breaks_refuses_nothing(tmp_path):
    """It is no fault of the prompt: the second turn is not measured, and the next tune checks it again."""

    def hang_up(server: SimulatedServer, text: str) -> None:
        if SECOND_TURN in text and server.drafting.mode is Mode.DRAFT_MODEL:
            raise NoAnswerError("The connection broke.")

    request = request_for(tmp_path, CHECKED)
    found = tune(request, SimulatedBackend(both_win, before_answer=hang_up))[CODING]
    assert (found.verdict, found.drafting.mode) == (Verdict.ENABLE, Mode.DRAFT_MODEL)
    assert FAILING not in found.evidence
    [check] = Limits.from_json(found.evidence[LIMITS]).second_turn
    assert (check.pairs, check.verdict) == (0, LimitVerdict.OPEN)
    assert check.note == "A request failed: The connection broke."
    [check] = Limits.from_json(tune(request, backend())[CODING].evidence[LIMITS]).second_turn
    assert (check.pairs, check.verdict) == (8, LimitVerdict.FASTER)


class Scripted(StateWatch):
    """The machine as a script says; calm once the script is over."""

    script: ClassVar[list[MachineState]] = []

    def finish(self, *, at_rest: bool = False) -> MachineState:
        """The script's next state."""
        super().finish(at_rest=at_rest)
        return self.script.pop(0) if self.script else CALM


@pytest.mark.process
@pytest.mark.parametrize("busy", [True, False])
def test_a_late_second_turn_refuses_only_where_no_other_program_is_to_blame(tmp_path, monkeypatch, busy):
    """Another program used the machine for ten minutes and ended: the second turn is asked once more."""
    hung: list[str] = []
    monkeypatch.setattr(run_module, "LimitChecks", partial(LimitChecks, watch=Scripted))

    def hang(server: SimulatedServer, text: str) -> None:
        if SECOND_TURN in text and server.drafting.mode is Mode.DRAFT_MODEL and not (busy and hung):
            hung.append(server.launch_id)
            Scripted.script = [replace(CALM, other_load=float(CALM.cores))] * busy
            raise LateAnswerError("It did not answer within 600 s.")

    monkeypatch.setattr(load_guard, "busy", disturbances.busy)
    found = tune(request_for(tmp_path, CHECKED), SimulatedBackend(both_win, before_answer=hang))[CODING]
    assert hung
    assert (found.drafting.mode is Mode.DRAFT_MODEL) is busy
    [check] = Limits.from_json(found.evidence[LIMITS]).second_turn
    assert (check.pairs, check.verdict) == (8, LimitVerdict.FASTER)


@pytest.mark.process
@pytest.mark.parametrize("sides", [(True,), (True, False)])
def test_where_off_is_late_the_next_tune_checks_again(tmp_path, sides):
    """A check that ended without a pair counted as done, and was never asked again."""

    def hang(server: SimulatedServer, text: str) -> None:
        if SECOND_TURN in text and server.drafting.is_off in sides:
            raise LateAnswerError("It did not answer within 600 s.")

    request = request_for(tmp_path, CHECKED)
    found = tune(request, SimulatedBackend(both_win, before_answer=hang))[CODING]
    assert (found.verdict, found.drafting.mode) == (Verdict.ENABLE, Mode.DRAFT_MODEL)
    assert FAILING not in found.evidence
    [check] = Limits.from_json(found.evidence[LIMITS]).second_turn
    assert (check.pairs, check.verdict) == (0, LimitVerdict.OPEN)
    [check] = Limits.from_json(tune(request, backend())[CODING].evidence[LIMITS]).second_turn
    assert (check.pairs, check.verdict) == (8, LimitVerdict.FASTER)
