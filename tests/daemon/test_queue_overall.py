"""Pairs that only the overall answer lacks: when they become a step of the daemon, and that the step asks them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autospec.cells import PromptType
from autospec.cli.daemon import status_lines
from autospec.daemon.children import tune_command
from autospec.daemon.queue import KnownCell, Queue, order
from autospec.daemon.work import Effort, LaterReason, Tunable, WorkItem, effort_key
from autospec.drafting import OFF
from autospec.recommendations import OVERALL_MIX, Recommendation, Status, Verdict
from autospec.store.database import open_store
from autospec.tuning.run import Tuning
from tests.daemon.test_queue import BIG, HEAVY_USE, NEW, NOW, TYPES, key
from tests.report.samples import DRAFTING, recommendation
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_overall import gains_little
from tests.tuning.test_run import MACHINE, Silent, nobody_else_is_at_work, request_  # noqa: F401 - fixtures

PROVEN = {key(t): KnownCell(recommendation(prompt_type=t)) for t in TYPES}
ANSWER = effort_key("big", "llama-server", None)


def answer(**evidence) -> Recommendation:
    """The stored answer for coding and chat, which lacks pairs of a drafting that should make the mix 40 % faster."""
    lacking = {"drafting": DRAFTING.to_json(), "ratio": 1.4, "lacks": ["chat"], "verdict": "undecided"}
    told = {
        OVERALL_MIX: {"source": "equal", "requests": 0, "shares": {"coding": 0.5, "chat": 0.5}},
        "candidates": [lacking],
        "lacks": ["chat"],
        "next": DRAFTING.to_json(),
    }
    return recommendation(Verdict.UNDECIDED, prompt_type=None, tried=DRAFTING, evidence=told | evidence)


def queue(stored: Recommendation | None, models=(BIG,), known=PROVEN, used=HEAVY_USE, **changes) -> Queue:
    """The order, with this overall answer of the first model."""
    answers = {} if stored is None else {ANSWER: stored}
    return order(models, TYPES, known, used, {}, step_s=600.0, now=NOW, answers=answers, **changes)


def test_what_only_the_overall_answer_lacks_is_a_step():
    """Of all prompt types of its mix, because later rounds ask all of them; it is worth the use of all."""
    [item] = queue(answer()).items
    assert (item.prompt_type, item.types) == (None, TYPES)
    assert item.use_s_per_day == 4000.0
    assert 0.25 < item.gain < 0.35  # 1 − 1 ÷ 1.4, which is not certain
    assert (item.key, item.label) == (ANSWER, "big, all prompt types")
    assert "each prompt type is proven" in item.why
    assert WorkItem.from_json(item.to_json()) == item


def test_the_step_is_the_tune_that_a_person_would_ask_for():
    """A tune of the mix's types, which are proven and therefore not measured by themselves."""
    [item] = queue(answer()).items
    words = tune_command(item, Path("autospec.toml"))
    assert words[words.index("--model") :] == (
        *("--model", "big", "--prompt-type", "coding", "--prompt-type", "chat"),
        *("--backend", "llama-server", "--budget", "600s", "--config", "autospec.toml"),
    )


def test_it_comes_after_all_cells():
    """Also after those of another model that are worth far less; of a model that was asked for, after its own."""
    other = {("new", PromptType.CODING): 120.0}
    items = queue(answer(), models=(BIG, NEW), used=HEAVY_USE | other).items
    assert [i.label for i in items] == ["new, coding", "new, chat", "big, all prompt types"]
    assert items[2].value_s_per_day > 3 * items[0].value_s_per_day
    items = queue(answer(), models=(BIG, NEW), used=HEAVY_USE | other, asked={"big": ()}).items
    assert [i.label for i in items] == ["big, all prompt types", "new, coding", "new, chat"]
    assert items[0].why.startswith("it was asked for; each prompt type is proven")


@pytest.mark.parametrize(
    "chat",
    [
        None,
        KnownCell(recommendation(prompt_type=PromptType.CHAT, status=Status.PROVISIONAL)),
        KnownCell(recommendation(prompt_type=PromptType.CHAT, status=Status.STALE)),
        KnownCell(recommendation(prompt_type=PromptType.CHAT), borrowed=True),
    ],
)
def test_a_type_that_is_not_proven_is_measured_by_itself_first(chat):
    """Its tune would spend the time on its own proof."""
    known = PROVEN | {key(PromptType.CHAT): chat} if chat else {key(PromptType.CODING): PROVEN[key(TYPES[0])]}
    assert [i.prompt_type for i in queue(answer(), known=known).items] == [PromptType.CHAT]


@pytest.mark.parametrize(
    "stored",
    [
        None,
        answer(next=None),
        answer(next={"mode": "of-a-newer-version"}),
        answer(candidates=[]),
        # A type of the traffic that the suite has no prompts of.
        answer(**{OVERALL_MIX: {"shares": {"coding": 0.4, "chat": 0.4, "math": 0.2}}}),
    ],
)
def test_without_anything_to_ask_there_is_no_step(stored):
    """And nothing is noted, either."""
    found = queue(stored)
    assert found.items == ()
    assert set(found.later) == set(PROVEN)


@pytest.mark.parametrize(("ratio", "lacks", "count"), [(1.4, ["chat"], 1), (1.04, ["chat"], 0), (1.4, [], 0)])
def test_an_answer_of_an_earlier_version_is_understood(ratio, lacks, count):
    """It did not say what would be asked next: what it tried, if a type lacks that and it is worth it."""
    stored = answer(candidates=[{"drafting": DRAFTING.to_json(), "ratio": ratio}], lacks=lacks)
    del stored.evidence["next"]
    assert len(queue(stored).items) == count


def test_only_the_gain_over_what_is_enabled_counts():
    """+40 % over off is +17 % where +20 % is enabled already."""
    served = replace(DRAFTING, n_max=3)
    candidates = [
        {"drafting": DRAFTING.to_json(), "ratio": 1.4},
        {"drafting": served.to_json(), "ratio": 1.2},
    ]
    enabled = replace(answer(candidates=candidates), verdict=Verdict.ENABLE, drafting=served)
    [over_off], [over_enabled] = queue(answer()).items, queue(enabled).items
    assert over_enabled.gain < 0.6 * over_off.gain


def test_steps_in_vain_failures_and_little_use_end_it():
    """As with a cell; another drafting is another question."""
    [item] = queue(answer()).items
    for effort, reason in (
        (Effort(item.basis, steps=4), LaterReason.NO_CLEAR_ANSWER),
        (Effort(item.basis, failures=1, last_at=NOW), LaterReason.FAILED),
    ):
        found = order((BIG,), TYPES, PROVEN, HEAVY_USE, {ANSWER: effort}, step_s=600.0, now=NOW, answers={ANSWER: answer()})  # fmt: skip
        assert (found.items, found.later[ANSWER].reason) == ((), reason)
    other = replace(DRAFTING, n_max=3)
    next_one = answer(next=other.to_json(), candidates=[{"drafting": other.to_json(), "ratio": 1.4}])
    in_vain = {ANSWER: Effort(item.basis, steps=4)}
    assert order((BIG,), TYPES, PROVEN, HEAVY_USE, in_vain, step_s=600.0, now=NOW, answers={ANSWER: next_one}).items  # fmt: skip
    assert queue(answer(), used={("big", PromptType.CODING): 10.0}).later[ANSWER].reason is LaterReason.NOT_WORTH  # fmt: skip


def test_the_status_has_words_for_it():
    """There is no prompt type to name."""
    [item] = queue(answer()).items
    lines = "\n".join(status_lines({"tuning": item.to_json() | {"for_s": 5}, "queue": [item.to_json()]}))
    assert "It measures big on prompts of all prompt types together." in lines
    assert "  big, all prompt types: each prompt type is proven" in lines


@pytest.mark.process
def test_types_that_were_tuned_one_by_one_get_their_overall_answer(request_):  # noqa: F811
    """Each step of the daemon tunes one cell and cannot ask the prompts of the other; the last step asks what is missing."""
    kinds = (PromptType.CODING, PromptType.WRITING)

    def tuned(*types: PromptType) -> tuple[Recommendation, SimulatedBackend]:
        backend = SimulatedBackend(gains_little)
        tuning = Tuning(replace(request_, prompt_types=types), backend, MACHINE, Silent())
        tuning.run()
        found = tuning.overall()
        assert found is not None
        return found, backend

    def next_steps(found: Recommendation) -> list[WorkItem]:
        store = open_store(request_.storage)
        stored = [s.recommendation for s in store.recommendations()]
        store.close()
        model = Tunable("main", "main", "simulated", "f", {"model": "f"}, 1, 1, NOW, 1 << 30)
        known = {effort_key("main", "simulated", r.prompt_type): KnownCell(r) for r in stored}
        answers = {effort_key("main", "simulated", None): found}
        return list(order((model,), kinds, known, {}, {}, step_s=600.0, now=NOW, answers=answers).items)

    for kind in reversed(kinds):
        found, _ = tuned(kind)
    assert (found.verdict, found.evidence["lacks"]) == (Verdict.UNDECIDED, ["writing"])
    [item] = next_steps(found)
    assert item.types == kinds
    found, backend = tuned(*item.types)
    assert found.verdict is Verdict.ENABLE
    assert found.drafting != OFF
    asked = [text for _, drafting, text in backend.asked if drafting == found.drafting]
    assert asked
    assert all("writing" in text for text in asked), "what is proven was measured again"
    assert next_steps(found) == []
