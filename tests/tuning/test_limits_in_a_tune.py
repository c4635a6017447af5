"""The checks after a proof, on simulated servers: what a draft that wins alone and loses elsewhere is allowed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from autospec.backends.protocol import Completion
from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.errors import LaunchError, RequestError
from autospec.measure.measurements import Sample
from autospec.recommendations import CONDITIONS, FAILING, LIMITS, Limits, LimitVerdict, Status, Verdict
from autospec.store.database import open_store
from autospec.tuning.budget import Budget
from autospec.tuning.build_recommendation import Cost
from autospec.tuning.definition import LimitsDefinition, load_definition
from autospec.tuning.launches import Memory
from autospec.tuning.request import TuneRequest
from autospec.tuning.run import Tuning
from tests.tuning.simulated import OFF_TPS, SHORT_TOKENS, SimulatedBackend, SimulatedServer
from tests.tuning.test_limits import GIB
from tests.tuning.test_run import MACHINE, Silent, nobody_else_is_at_work, request_with, tune  # noqa: F401 - a fixture

CHECKED = LimitsDefinition(check=True, depth=8192)
LONG_CHARACTERS = 20000


def request_for(folder: Path, limits: LimitsDefinition = CHECKED, **changes: Any) -> TuneRequest:
    """A tune of coding prompts with one draft of a small model, and these checks."""
    request = request_with(folder, "draft", prompt_types=(PromptType.CODING,), **changes)
    small = {"size_bytes": 10**6, "kv_bytes_per_token": 10, "context_length": 65536}
    definition = replace(load_definition("quick"), limits=limits)
    return replace(request, definition=definition, model=replace(request.model, **small))


def wins(drafting: Drafting, text: str) -> float:
    """The draft model is faster by half, whatever is asked; n-grams are slower."""
    del text
    return 1.5 if drafting.mode is Mode.DRAFT_MODEL else 0.9


def found(request: TuneRequest, backend: SimulatedBackend, progress: Silent | None = None) -> Limits:
    """The limits that a tune writes."""
    recommendation = tune(request, backend, progress)[PromptType.CODING]
    assert recommendation.verdict is Verdict.ENABLE
    return Limits.from_json(recommendation.evidence[LIMITS])


def test_a_draft_that_wins_everywhere_has_the_limits_that_were_checked(tmp_path):
    """Every check is faster, and its ratio is the true one."""
    limits = found(request_for(tmp_path), SimulatedBackend(wins))
    assert (limits.most_concurrent, limits.deepest_context, limits.highest_temperature) == (4, 8192, 0.8)
    checks = (*limits.concurrent, *limits.context, *limits.temperature, *limits.second_turn)
    assert [c.at for c in checks] == [2, 4, 8192, 0.8, 2]
    for check in checks:
        assert check.ratio == pytest.approx(1.5, rel=0.02)
        assert check.pairs == 8
        assert check.verdict is LimitVerdict.FASTER
        assert check.answer_tokens == 64


@pytest.mark.parametrize("later", [False, True])
def test_a_prompt_that_fails_without_drafting_is_left_out(tmp_path, later):
    """It would void every check that asks it; the proof was without it, too. A later tune knows it from the evidence."""

    def refuse(_server: SimulatedServer, text: str) -> None:
        if "coding prove 3" in text:
            raise RequestError("status 500: the answer cannot be parsed.")

    backend = SimulatedBackend(wins, before_answer=refuse)
    request = request_for(tmp_path, replace(CHECKED, depth=0))
    if later:
        unchecked = replace(request.definition, limits=LimitsDefinition())
        tune(replace(request, definition=unchecked), backend)
    limits = found(request, backend)
    checks = (*limits.concurrent, *limits.temperature, *limits.second_turn)
    assert [c.verdict for c in checks] == [LimitVerdict.FASTER] * 4


def test_a_draft_that_wins_alone_and_loses_at_four_at_once(tmp_path):
    """The limit is two requests."""
    limits = found(request_for(tmp_path), SimulatedBackend(wins, together=lambda n: 0.5 if n == 4 else 1.0))
    assert limits.most_concurrent == 2
    assert [c.verdict for c in limits.concurrent] == [LimitVerdict.FASTER, LimitVerdict.SLOWER]
    assert limits.concurrent[1].interval[1] < 1.0


def test_a_draft_that_wins_short_and_loses_behind_8k(tmp_path):
    """The limit is the length that the proof itself has shown."""
    backend = SimulatedBackend(lambda d, text: 0.7 if len(text) > LONG_CHARACTERS else wins(d, text))
    limits = found(request_for(tmp_path), backend)
    assert limits.context[0].verdict is LimitVerdict.SLOWER
    assert limits.deepest_context == SHORT_TOKENS + 64
    assert limits.most_concurrent == 4


def test_a_draft_that_loses_when_sampled(tmp_path):
    """The limit is the proof's own temperature."""
    backend = SimulatedBackend(wins)
    complete = SimulatedServer.complete
    backend.before_answer = lambda _server, _text: None

    def sampled(server: SimulatedServer, request: Any) -> Completion:
        server.backend.speedup = (lambda _d, _t: 0.7) if request.temperature else wins
        return complete(server, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedServer, "complete", sampled)
        limits = found(request_for(tmp_path), backend)
    assert limits.highest_temperature == 0.0
    assert limits.temperature[0].verdict is LimitVerdict.SLOWER


def test_at_another_temperature_each_side_has_its_own_prompt_cache(tmp_path):
    """What is measured is short and uncached; drafting gains there, and not with the whole prompt of each request."""
    ratios = []
    for uncached in (False, True):
        backend = SimulatedBackend(lambda d, _: 1.2 if d.mode is Mode.DRAFT_MODEL else 0.9, per_request=True)
        backend.modes, backend.drafts_uncached = frozenset({Mode.OFF, Mode.DRAFT_MODEL}), uncached
        request = request_for(tmp_path / str(uncached), LimitsDefinition(check=True, only_temperature=True))
        (check,) = found(request, backend).temperature
        ratios.append(check.ratio)
    alike, apart = ratios
    assert alike == pytest.approx(1.2, rel=0.02)
    # A prompt takes a tenth of the request: half of it is cached without drafting, none of it with.
    assert apart == pytest.approx((0.9 + 0.05) / (0.9 + 0.1) * 1.2, rel=0.03)


@pytest.mark.parametrize("tells", [False, True])
def test_a_slot_that_does_not_draft_is_a_limit_with_a_reason(tmp_path, tells):
    """A request is put into any slot, so the drafting holds for one at a time; several are not measured."""
    progress = Silent()
    backend = SimulatedBackend(wins, silent_slot=2, tells_silence=tells)
    limits = found(request_for(tmp_path), backend, progress)
    assert limits.most_concurrent == 1
    assert [(c.at, c.pairs) for c in limits.concurrent] == [(2, 0), (4, 0)]
    assert all("Slot 2 of the server does not draft" in c.note for c in limits.concurrent)
    assert any("Slot 2" in sentence for sentence in progress.told)
    assert limits.deepest_context == 8192


def test_fewer_slots_with_drafting_are_a_limit_with_a_reason(tmp_path):
    """Builds around the turn of 2025 have four slots without a draft model and one with it: several requests would wait."""
    progress = Silent()
    limits = found(request_for(tmp_path), SimulatedBackend(wins, drafted_slots=1), progress)
    assert limits.most_concurrent == 1
    note = "The server answers one request at once with drafting, and 4 without."
    assert {c.note for c in limits.concurrent} == {note}
    assert any(note in sentence for sentence in progress.told)
    assert limits.deepest_context == 8192


def test_one_slot_on_both_sides_is_no_limit_of_drafting(tmp_path):
    """Several requests wait for each other with and without drafting."""
    limits = found(request_for(tmp_path), SimulatedBackend(wins, slots=1))
    assert limits.most_concurrent is None
    assert {c.note for c in limits.concurrent} == {"The server answers 1 request at once."}


def test_a_silent_slot_is_remembered(tmp_path):
    """A later tune whose launch has one slot cannot see it."""
    found(request_for(tmp_path), SimulatedBackend(wins, silent_slot=2))
    deeper = LimitsDefinition(check=True, slots=1, depth=16384)
    limits = found(request_for(tmp_path, deeper), SimulatedBackend(wins, silent_slot=2))
    assert (limits.most_concurrent, limits.deepest_context) == (1, 16384)


def test_a_silent_slot_of_an_n_gram_mode_is_found_where_the_slots_tell(tmp_path):
    """It proposes only where text repeats, so a request to each slot would say nothing."""

    def ngrams_win(drafting: Drafting, _text: str) -> float:
        return 1.5 if drafting.mode is Mode.NGRAM_SIMPLE else 0.9

    told = SimulatedBackend(ngrams_win, silent_slot=1, tells_silence=True)
    assert found(request_for(tmp_path), told).most_concurrent == 1
    (tmp_path / "other").mkdir()
    untold = SimulatedBackend(ngrams_win, silent_slot=1)
    assert found(request_for(tmp_path / "other"), untold).most_concurrent == 4


def test_the_temperature_of_the_traffic_is_checked(tmp_path):
    """Requests come at 1.0: the check is there, and the conditions name it."""
    request = request_for(tmp_path)
    store = open_store(request.storage)
    live = Sample(time.time(), "main", "simulated", "b1", None, 10, 10, 1.0, 1.0, temperature=1.0)
    store.add_samples([live] * 40)
    store.close()
    recommendation = tune(request, SimulatedBackend(wins))[PromptType.CODING]
    limits = Limits.from_json(recommendation.evidence[LIMITS])
    assert [c.at for c in limits.temperature] == [1.0]
    assert limits.highest_temperature == 1.0
    assert recommendation.evidence[CONDITIONS]["served_temperature"] == 1.0


def test_new_slots_and_a_new_depth_are_checked_without_the_rest(tmp_path):
    """What is known stays as it is: `--slots 3 --depth 16384` asks only that, and needs no `--again`."""
    first = found(request_for(tmp_path), SimulatedBackend(wins))
    backend = SimulatedBackend(lambda d, text: 0.7 if len(text) > 2 * LONG_CHARACTERS else wins(d, text))
    named = LimitsDefinition(check=True, slots=3, depth=16384)
    second = found(request_for(tmp_path, named), backend)
    assert [(c.at, c.verdict.value) for c in second.context] == [(8192, "faster"), (16384, "slower")]
    assert [c.at for c in second.concurrent] == [2, 3, 4]
    assert (second.most_concurrent, second.deepest_context) == (4, 8192)
    known = {(c.at, c.ratio) for c in (*first.concurrent, *first.context, *first.temperature)}
    assert known <= {(c.at, c.ratio) for c in (*second.concurrent, *second.context, *second.temperature)}
    launches = len(backend.launched)
    found(request_for(tmp_path, named), backend)
    assert len(backend.launched) == launches


def test_a_server_with_one_slot_is_not_asked_for_several(tmp_path):
    """Nothing is measured, so nothing is known."""
    limits = found(request_for(tmp_path), SimulatedBackend(wins, slots=1))
    assert limits.most_concurrent is None
    assert [c.note for c in limits.concurrent] == ["The server answers 1 request at once."] * 2


def test_the_launches_are_those_that_serve(tmp_path):
    """Two of each side, with the server's own slots and cache, and enough context."""
    backend = SimulatedBackend(wins)
    launched: list[Any] = []
    launch = backend.launch
    backend.launch = lambda model, drafting, settings: (launched.append((drafting.is_off, settings)), launch(model, drafting, settings))[1]  # fmt: skip
    found(request_for(tmp_path), backend)
    serving = [(is_off, settings.args) for is_off, settings in launched if settings.serving]
    need = ("-c", str(8192 + SHORT_TOKENS + 64 + 512))
    assert sorted(serving) == sorted([(True, need)] * 2 + [(False, need)] * 2)


def test_a_cache_that_cannot_be_used_is_told_and_counted(tmp_path):
    """What both sides compute again stays in the figure."""
    limits = found(request_for(tmp_path), SimulatedBackend(wins, caches=False))
    assert "computed again for each request, with and without drafting" in limits.context[0].note


def failing(error: Exception, when: Callable[[SimulatedServer, str], bool]) -> Callable[..., None]:
    """Raises for some requests."""

    def before(server: SimulatedServer, text: str) -> None:
        if when(server, text):
            raise error

    return before


def test_requests_that_fail_with_drafting_alone_are_a_limit(tmp_path):
    """Off answers behind 8k, the drafting does not."""
    fails = failing(RequestError("broken"), lambda s, t: len(t) > LONG_CHARACTERS and not s.drafting.is_off)
    limits = found(request_for(tmp_path), SimulatedBackend(wins, before_answer=fails))
    assert limits.deepest_context == SHORT_TOKENS + 64
    assert "broken" in limits.context[0].note
    assert limits.most_concurrent == 4


@pytest.mark.parametrize("later", [False, True])
def test_a_drafting_that_fails_in_every_second_turn_is_not_enabled(tmp_path, later):
    """No limit keeps the turns of a chat from it. The answer for all types knows it, too, and nothing is measured again."""
    fails = failing(RequestError("broken"), lambda s, t: "one more example" in t and not s.drafting.is_off)
    request, backend = request_for(tmp_path), SimulatedBackend(wins, before_answer=fails)
    if later:
        unchecked = replace(request.definition, limits=LimitsDefinition())
        assert (
            tune(replace(request, definition=unchecked), backend)[PromptType.CODING].verdict is Verdict.ENABLE
        )
    coding = tune(request, backend)[PromptType.CODING]
    assert (coding.verdict, coding.drafting.is_off, coding.status) == (
        Verdict.UNDECIDED,
        True,
        Status.PROVEN,
    )
    assert coding.tried.mode is Mode.DRAFT_MODEL
    assert coding.reason == "1 prompt fails with drafting only, in the second turn of a chat."
    assert len(coding.evidence[FAILING]["drafted"]) == 1
    [check] = Limits.from_json(coding.evidence[LIMITS]).second_turn
    assert check.note == "A request failed: broken"
    asked = len(backend.asked)
    tuning = Tuning(request, backend, MACHINE, Silent())
    tuning.run()
    assert tuning.overall().drafting.is_off
    assert len(backend.asked) == asked


def test_a_slower_second_turn_is_told(tmp_path):
    """It is an answer all the same."""
    backend = SimulatedBackend(lambda d, text: 0.7 if "one more example" in text else wins(d, text))
    [check] = found(request_for(tmp_path), backend).second_turn
    assert check.verdict is LimitVerdict.SLOWER


def test_requests_that_fail_on_both_sides_are_none(tmp_path):
    """They say nothing about the drafting."""
    fails = failing(RequestError("too long"), lambda _s, t: len(t) > LONG_CHARACTERS)
    limits = found(request_for(tmp_path), SimulatedBackend(wins, before_answer=fails))
    assert limits.deepest_context is None
    assert "too long" in limits.context[0].note


def test_a_launch_that_fails_leaves_the_proof_as_it_is(tmp_path):
    """The recommendation stays, and its limits say why nothing was measured."""
    backend = SimulatedBackend(wins)
    launch = backend.launch

    def refusing(model: str, drafting: Drafting, settings: Any) -> SimulatedServer:
        if settings.serving:
            raise LaunchError("no memory", permanent=True)
        return launch(model, drafting, settings)

    backend.launch = refusing
    limits = found(request_for(tmp_path), backend)
    assert limits.most_concurrent is None
    assert {c.note for c in limits.concurrent} == {"no memory"}


def test_nothing_is_checked_unless_it_is_asked_for(tmp_path):
    """The study `quick` does not; what was proven, and under which conditions, is told all the same."""
    recommendation = tune(request_for(tmp_path, LimitsDefinition()), SimulatedBackend(wins))[
        PromptType.CODING
    ]
    assert LIMITS not in recommendation.evidence
    assert recommendation.evidence[CONDITIONS] == {
        "temperature": 0.0,
        "served_temperature": 0.8,
        "samplers": "greedy",
        "max_tokens": 64,
        "slots": 1,
        "context_tokens": SHORT_TOKENS + 64,
        "cached_tokens": 0,
        "answer_tokens": 64,
        "cached_share": 0.5,
    }


def test_what_was_proven_before_is_checked_later(tmp_path):
    """The next tune has time for the checks: the proof stays as it is, and gets its limits."""
    first = tune(request_for(tmp_path, LimitsDefinition()), SimulatedBackend(wins))[PromptType.CODING]
    backend = SimulatedBackend(wins)
    second = tune(request_for(tmp_path), backend)[PromptType.CODING]
    limits = Limits.from_json(second.evidence.pop(LIMITS))
    assert limits.most_concurrent == 4
    assert second == first
    launches = len(backend.launched)
    tune(request_for(tmp_path), backend)
    assert len(backend.launched) == launches, "what was checked is not checked again"


@pytest.mark.process
def test_what_the_budget_cut_short_is_checked_by_the_next_tune(tmp_path):
    """After the first launch there is no time for the second one: the pairs are kept, and the checks are marked."""
    tune(request_for(tmp_path, LimitsDefinition()), SimulatedBackend(wins))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autospec.tuning.budget.Budget.allows", lambda *_, to_finish=False: not to_finish)
        cut = found(request_for(tmp_path), SimulatedBackend(wins))
    checks = (*cut.concurrent, *cut.context, *cut.temperature, *cut.second_turn)
    assert [(c.pairs, c.out_of_time) for c in checks] == [(4, True)] * 5
    backend = SimulatedBackend(wins)
    whole = found(request_for(tmp_path), backend)
    checks = (*whole.concurrent, *whole.context, *whole.temperature, *whole.second_turn)
    assert [(c.pairs, c.out_of_time) for c in checks] == [(8, False)] * 5


@pytest.mark.process
@pytest.mark.parametrize("waits_s", [0.0, 60.0])
def test_the_second_launch_is_expected_to_take_what_the_first_took(tmp_path, waits_s):
    """A real tune exceeded its budget of 10 minutes by 1:45: sampled, drafting took 2.5 times as long as off, not half.

    Waits for other programs are not part of it.
    """
    backend, expected_s = SimulatedBackend(wins), []
    complete = SimulatedServer.complete

    def sampled(server: SimulatedServer, request: Any) -> Completion:
        server.backend.speedup = (lambda d, _t: 1.0 if d.is_off else 0.1) if request.temperature else wins
        return complete(server, request)

    def allows(budget: Budget, seconds: float, *, to_finish: bool = False) -> bool:
        if to_finish:
            expected_s.append(seconds)
        return True

    quick = replace(LimitsDefinition(check=True), only_temperature=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autospec.tuning.run.Budget", partial(Budget, clock=backend.clock))
        patch.setattr(SimulatedServer, "complete", sampled)
        patch.setattr(Budget, "allows", allows)
        patch.setattr(
            "autospec.tuning.limit_checks.LoadGuard.after",
            lambda _guard, _state: backend.clock.pass_by(waits_s),
        )
        found(request_for(tmp_path, quick), backend)
    off_s = 64 / OFF_TPS
    # Four pairs; by the pace of the proof it would be 4 × (1 + 1 ÷ 1.5).
    assert expected_s[-1] == pytest.approx(4 * (1 + 1 / 0.1) * off_s, rel=0.1)


@pytest.mark.process
@pytest.mark.parametrize(("per_request", "times"), [(False, 3), (True, 1)])
def test_a_disturbed_pair_is_asked_again_unless_its_server_keeps_every_prompt(tmp_path, per_request, times):
    """MLX's server has the prompt of a repeat in its cache without drafting only, whatever the request says of the cache."""
    hot: Counter[str] = Counter()
    complete = SimulatedServer.complete

    def sampled(server: SimulatedServer, request: Any) -> Completion:
        if request.temperature and server.drafting.is_off:
            hot[request.messages[-1]["content"]] += 1
        return complete(server, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedServer, "complete", sampled)
        patch.setattr("autospec.tuning.limit_checks.disturbance", lambda _pair: "another program")
        limits = found(request_for(tmp_path), SimulatedBackend(wins, per_request=per_request))
    assert set(hot.values()) == {times}
    assert limits.temperature[0].note == "8 of 8 pairs were disturbed."


def test_without_time_nothing_is_checked(tmp_path):
    """The proof comes first; the tune says what was left out."""
    progress = Silent()
    request = replace(request_for(tmp_path), budget_s=1e-3)
    recommendation = tune(request, SimulatedBackend(wins), progress).get(PromptType.CODING)
    assert LIMITS not in recommendation.evidence


@pytest.mark.process
def test_a_later_tune_expects_the_launches_to_take_what_they_took(tmp_path):
    """Two launches of each side, three minutes each: in a tune of five minutes they are not begun."""
    quick = LimitsDefinition(check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cost, "to_json", lambda _: {"seconds": 600.0, "launches": 2, "launch_seconds": 360.0})
        tune(request_for(tmp_path, LimitsDefinition()), SimulatedBackend(wins))
    for budget_s, launched in ((300.0, False), (6000.0, True)):
        backend, progress = SimulatedBackend(wins), Silent()
        tune(replace(request_for(tmp_path, quick), budget_s=budget_s), backend, progress)
        assert bool(backend.launched) is launched
        assert any("no time for" in told for told in progress.told) is not launched


def by_turns_in(
    folder: Path, *, left_s: float, slow: bool = False
) -> tuple[Limits, SimulatedBackend, Silent]:
    """The checks by turns of what an earlier tune has proven, with launches of a minute, and so much time.

    `slow`: drafting takes a hundred times as long as without it where several requests come at once.
    """
    short = replace(CHECKED, depth=1024)
    tune(request_for(folder, LimitsDefinition()), SimulatedBackend(wins))
    backend, progress = SimulatedBackend(wins, launch_s=60.0), Silent()
    if slow:
        backend.together = lambda n: 0.01 if n > 1 else 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autospec.tuning.run.Budget", partial(Budget, clock=backend.clock))
        patch.setattr("autospec.tuning.launches.Launches.launch_s", 60.0)
        patch.setattr("autospec.tuning.run.Tuning._memory", lambda _: Memory(1024 * GIB, None))
        limits = found(replace(request_for(folder, short), budget_s=left_s), backend, progress)
    return limits, backend, progress


@pytest.mark.process
def test_by_turns_the_launches_of_each_check_are_expected(tmp_path):
    """Five checks take twenty launches, where side by side four would do: ten minutes are enough for two checks."""
    limits, backend, progress = by_turns_in(tmp_path, left_s=600.0)
    assert backend.most_running == 1
    checks = (*limits.concurrent, *limits.context, *limits.temperature, *limits.second_turn)
    assert [(c.pairs, c.out_of_time) for c in checks] == [(8, False)] * 2
    assert any("no time for 3 limit checks" in told for told in progress.told)


@pytest.mark.process
def test_what_takes_longer_than_expected_leaves_out_the_checks_after_it(tmp_path):
    """The clock is read before each check of the first launch, too: what was begun is finished, and no more is begun."""
    limits, backend, progress = by_turns_in(tmp_path, left_s=1400.0, slow=True)
    checks = (*limits.concurrent, *limits.context, *limits.temperature, *limits.second_turn)
    assert [(c.pairs, c.out_of_time) for c in checks] == [(8, False)] * 3
    told = [sentence for sentence in progress.told if "no time for 1 limit check" in sentence]
    assert len(told) == 2, "one before the launches, one later"
    assert backend.most_running == 1
