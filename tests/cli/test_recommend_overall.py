"""`autospec recommend` and `explain` without a prompt type: one drafting for one server."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import jsonschema
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from autospec.cells import PromptType
from autospec.cli import cli
from autospec.drafting import OFF, Drafting, Mode
from autospec.hardware import identify
from autospec.measure.measurements import AS_MEASURED, DepthCosts, DepthRise, Shapes
from autospec.recommendations import SCHEMA, Recommendation, Status, StoredRecommendation, Verdict
from autospec.report.server_config import what_to_run
from autospec.settings import load_settings
from autospec.store.compatibility import DraftFile, DraftFiles
from autospec.store.database import Store, open_store
from autospec.tuning.overall import choose, mix_of
from autospec.tuning.overall_answer import for_mix, known_types, rule_of, to_recommendation
from tests.report.samples import ARGS, DRAFTING, recommendation
from tests.tuning.test_overall import pairs

CODING, WRITING = PromptType.CODING, PromptType.WRITING
NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)


def run(*args: str):
    """One call of the command line."""
    return CliRunner().invoke(cli, args)


def cell(kind: PromptType, tried: Drafting, verdict: Verdict = Verdict.ENABLE) -> Recommendation:
    """A proven recommendation whose measurements can be read again."""
    base = recommendation(verdict)
    return replace(
        base,
        prompt_type=kind,
        tried=tried,
        drafting=tried if verdict is Verdict.ENABLE else OFF,
        baseline_tps=10.0,
        evidence={
            **base.evidence,
            "args": ARGS if tried == DRAFTING else ["--spec-type", "ngram-simple"],
            "cell": f"cell-{kind}",
            "protocol": "proto",
            "requests": AS_MEASURED.to_json(),
            "request": {"answer_tokens": 100.0},
            "threshold": 0.02,
            "error_rate": 0.01,
        },
    )


def remember(store: Store, *cells: tuple[Recommendation, dict[Drafting, float]]) -> None:
    """Store cells with their pairs, and the answer for equal shares of them."""
    for r, measured in cells:
        key = r.evidence["cell"]
        store.save_recommendation(r, identify(), key)
        for drafting, ratio in measured.items():
            for pair in pairs(r.prompt_type, ratio, drafting=drafting, rounds=2):
                for half in (pair.off, pair.drafted):
                    store.add_measurement(replace(half, cell_key=key))
    known = known_types(store, store.recommendations(), {CODING: 8, WRITING: 8})
    rule = rule_of(k.recommendation for k in known.values())
    answer = to_recommendation(choose(known, mix_of(known, ()), rule), rule, args=ARGS)
    store.save_overall(answer, identify(), "launch-key")


@pytest.fixture
def tuned():
    """The draft model is proven for coding; for writing n-grams are, and the draft model loses a quarter there."""
    store = open_store(load_settings().storage)
    remember(
        store,
        (cell(CODING, DRAFTING), {DRAFTING: 2.4}),
        (cell(WRITING, NGRAM), {NGRAM: 1.3, DRAFTING: 0.75}),
    )
    yield store
    store.close()


def test_args_without_a_type_are_those_of_the_answer(tuned):
    """Before, the command refused as soon as two types differed."""
    result = run("recommend", "-m", "main", "-f", "args")
    assert result.exit_code == 0, result.stderr
    assert shlex.split(result.stdout) == ARGS
    with_type = run("recommend", "-m", "main", "-t", "writing", "-f", "args")
    assert with_type.exit_code == 0


def test_json_has_a_key_for_it(tuned):
    """Beside the recommendations, which stay as they were."""
    document = json.loads(run("recommend", "--json").stdout)
    jsonschema.validate(document, SCHEMA)
    assert [r["prompt_type"] for r in document["recommendations"]] == ["coding", "writing"]
    [answer] = document["overall"]
    assert (answer["prompt_type"], answer["verdict"], answer["drafting"]) == (
        None,
        "enable",
        DRAFTING.to_json(),
    )
    assert answer["speedup"] == pytest.approx(2.0 / (1 / 2.4 + 1 / 0.75), rel=0.01)
    assert answer["evidence"]["slows"] == ["writing"]
    assert answer["evidence"]["mix"] == {
        "source": "equal",
        "requests": 0,
        "shares": {"coding": 0.5, "writing": 0.5},
    }
    assert json.loads(run("recommend", "--json", "-t", "coding").stdout)["overall"] == []


def test_the_table_has_a_line_for_it(tuned):
    """The last one of its model."""
    lines = run("recommend").stdout.splitlines()
    assert any(line.split()[:2] == ["overall", "enable"] for line in lines)


def test_a_preset_has_an_entry_with_the_models_name(tuned):
    """Besides those for each prompt type, whose names clients know."""
    names = [
        line.strip("[]")
        for line in run("recommend", "-f", "preset").stdout.splitlines()
        if line.startswith("[")
    ]
    assert names == ["Main-7B-Q4_K_M", "Main-7B-Q4_K_M-coding", "Main-7B-Q4_K_M-writing"]


def test_another_mix_has_another_answer(tuned):
    """Mostly writing: the draft model would cost more than it gives, n-grams lack pairs of coding."""
    result = run("recommend", "--json", "--mix", "coding=1,writing=9")
    [answer] = json.loads(result.stdout)["overall"]
    assert answer["evidence"]["mix"]["source"] == "asked"
    assert answer["tried"] == NGRAM.to_json()
    assert (answer["verdict"], answer["evidence"]["lacks"]) == ("undecided", ["coding"])
    [answer] = json.loads(run("recommend", "--json", "--mix", "coding=9,writing=1").stdout)["overall"]
    assert (answer["verdict"], answer["drafting"]) == ("enable", DRAFTING.to_json())
    assert run("recommend", "--mix", "coding=1", "-t", "coding").exit_code == 2
    assert run("recommend", "--mix", "poems=1").exit_code == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"build": "b200"},
        {"build_fingerprint": "another"},
        {"model": "another"},
        {"settings": ["-ngl", "99", "--threads", "4"]},
    ],
)
def test_a_mix_is_of_one_server(tuned, changed):
    """Writing was tuned later with another build, file or settings: its pairs and coding's are of no one server."""
    basis = {"model": "file", "build": "b11434", "build_fingerprint": "fp", "settings": ["-ngl", "99"]}
    for kind, own, day in ((CODING, basis, 20), (WRITING, {**basis, **changed}, 21)):
        r = cell(kind, DRAFTING)
        r = replace(
            r,
            backend_build=own["build"],
            evidence={**r.evidence, "basis": own},
            created_at=f"2026-11-{day}T10:00:00+00:00",
        )
        tuned.save_recommendation(r, identify(), f"cell-{kind}")
    [answer] = json.loads(run("recommend", "--json", "--mix", "coding=9,writing=1").stdout)["overall"]
    assert (answer["verdict"], answer["evidence"]["lacks"]) == ("undecided", ["coding"])
    assert answer["evidence"]["basis"] == {**basis, **changed}
    assert answer["evidence"]["types"][0]["cell"] is None
    [alone] = json.loads(run("recommend", "--json", "--mix", "coding=1").stdout)["overall"]
    assert (alone["verdict"], alone["evidence"]["basis"]) == ("enable", basis)


def test_a_mix_takes_the_number_of_prompts_from_the_cells_own_answer(tuned):
    """An answer for another machine's cells of the same model asked 16."""
    [answer] = [s.recommendation for s in tuned.overall_answers()]
    types = [{**e, "cell": f"elsewhere-{e['prompt_type']}", "prompts": 16} for e in answer.evidence["types"]]
    other = replace(answer, evidence={**answer.evidence, "types": types})
    weights = {CODING: 9.0, WRITING: 1.0}
    for answers in ([answer, other], [other, answer]):
        [found] = for_mix(tuned, tuned.recommendations(), answers, weights)
        assert [e["prompts"] for e in found.evidence["types"]] == [8, 8]


def test_a_mix_is_not_enabled_at_a_look_that_a_tune_has_taken(tuned):
    """As the tune refuses it; looks at earlier measurements, and those of another server, do not count."""
    [answer] = [s.recommendation for s in tuned.overall_answers()]
    stored, weights = tuned.recommendations(), {CODING: 9.0, WRITING: 1.0}

    def mixed(since: float, cell_key: str = "") -> Recommendation:
        looks = [{"drafting": DRAFTING.to_json(), "rounds": 2, "since": since}]
        types = [{**e, "cell": cell_key or e["cell"]} for e in answer.evidence["types"]]
        told = replace(answer, evidence={**answer.evidence, "types": types, "looks": looks})
        [found] = for_mix(tuned, stored, [told], weights)
        return found

    refused = mixed(0.0)
    assert (refused.verdict, refused.drafting) == (Verdict.UNDECIDED, OFF)
    assert "at a look that was taken before" in refused.reason
    assert mixed(-1.0).verdict is mixed(0.0, "elsewhere").verdict is Verdict.ENABLE


def test_a_mix_knows_the_looks_of_every_stored_answer(tuned):
    """The newest answer of the model is of other settings; it hid the looks at these, so one of them could be taken again."""
    [answer] = [s.recommendation for s in tuned.overall_answers()]
    looks = [{"drafting": DRAFTING.to_json(), "rounds": 2, "since": 0.0}]
    told = replace(answer, evidence={**answer.evidence, "looks": looks})
    tuned.save_overall(told, identify(), "launch-key")
    asked = ("recommend", "--json", "--mix", "coding=9,writing=1")
    for _ in range(2):
        [found] = json.loads(run(*asked).stdout)["overall"]
        assert (found["verdict"], found["drafting"]) == ("undecided", OFF.to_json())
        types = [{**e, "cell": f"elsewhere-{e['prompt_type']}"} for e in answer.evidence["types"]]
        later = replace(
            answer, evidence={**answer.evidence, "types": types}, created_at="2099-01-01T10:00:00"
        )
        tuned.save_overall(later, identify(), "another-key")


def test_a_mix_counts_the_pairs_and_looks_of_a_moved_draft_and_none_of_a_replaced_one(tuned):
    """`recommend` sees no files: the results tell which contents a path has."""
    [answer], weights = [s.recommendation for s in tuned.overall_answers()], {CODING: 9.0, WRITING: 1.0}
    moved = replace(DRAFTING, draft="/moved/draft.gguf")
    looks = [{"drafting": DRAFTING.to_json(), "draft_id": "same", "rounds": 2, "since": 0.0}]
    answers = [replace(answer, evidence={**answer.evidence, "looks": looks})]
    engine = sa.create_engine(load_settings().storage)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE autospec_measurements SET draft_id = 'same'"))
    engine.dispose()

    def named(drafting: Drafting, identity: str) -> list[StoredRecommendation]:
        def today(r: Recommendation) -> Recommendation:
            if r.tried.draft is None:
                return r
            return replace(
                r, tried=drafting, drafting=drafting, evidence={**r.evidence, "draft_id": identity}
            )

        return [replace(s, recommendation=today(s.recommendation)) for s in tuned.recommendations()]

    [found] = for_mix(tuned, named(moved, "same"), answers, weights)
    assert (found.tried, found.verdict, found.pairs) == (moved, Verdict.UNDECIDED, 32)
    assert "at a look that was taken before" in found.reason
    [found] = for_mix(tuned, named(moved, "same"), [answer], weights)
    assert (found.drafting, found.verdict) == (moved, Verdict.ENABLE)
    [found] = for_mix(tuned, named(DRAFTING, "another"), [answer], weights)
    assert (found.tried, found.verdict, found.pairs) != (DRAFTING, Verdict.ENABLE, 32)


def test_every_type_has_the_prompt_cache_of_the_build(tuned):
    """An earlier version proved coding with a cache on both sides, and a newer one writing with drafting without one."""
    requests = {CODING: Shapes(0.9), WRITING: Shapes(0.9, drafts_uncached=True)}
    found = [
        replace(
            s,
            recommendation=replace(r, evidence={**r.evidence, "requests": requests[r.prompt_type].to_json()}),
        )
        for s in tuned.recommendations()
        if (r := s.recommendation).prompt_type is not None
    ]
    both, alone = known_types(tuned, found, {}), known_types(tuned, found[:1], {})
    for known, whole in (
        (both, 50.0),
        (alone, None if found[0].recommendation.prompt_type is CODING else 50.0),
    ):
        for own in known.values():
            shapes = {p.shape.drafted_prompt_tokens for made in own.pairs.values() for p in made if p.shape}
            assert shapes == {whole}


def test_a_moved_draft_keeps_what_context_costs_it(tuned):
    """The pairs have its path of today, the requests of the proof the one it had then; another file there has no costs."""
    assert DRAFTING.draft is not None
    rises = {"": DepthRise(0.1, 0.1), "/old.gguf": DepthRise(0.2, 0.3)}
    shapes = Shapes(depth=DepthCosts(100.0, 1000, rises, {"/old.gguf": "the draft"}))
    found = [
        replace(s, recommendation=replace(r, evidence={**r.evidence, "requests": shapes.to_json()}))
        for s in tuned.recommendations()
        if (r := s.recommendation).prompt_type is not None
    ]
    for identity, expected in (("the draft", rises["/old.gguf"]), ("another", None)):
        tuned.drafts = DraftFiles({DRAFTING.draft: DraftFile(identity)})
        known = known_types(tuned, found, {})
        pairs = [p for own in known.values() for p in own.pairs[DRAFTING]]
        assert pairs
        assert {p.shape.depth.rises.get(DRAFTING.draft) for p in pairs} == {expected}


def test_it_is_stale_where_a_type_is(tuned):
    """It is served with a mark, like the recommendation it rests on."""
    stale = replace(cell(CODING, DRAFTING), status=Status.STALE)
    tuned.save_recommendation(
        replace(stale, evidence={**stale.evidence, "stale_reason": "the model file changed"}),
        identify(),
        "cell-coding",
    )
    [answer] = json.loads(run("recommend", "--json").stdout)["overall"]
    assert (answer["status"], answer["evidence"]["stale_reason"]) == ("stale", "the model file changed")
    result = run("recommend", "-f", "args")
    assert shlex.split(result.stdout) == ARGS
    assert "stale" in result.stderr


def test_it_is_stale_after_a_type_was_measured_again(tuned):
    """A tune that was killed stores no new answer."""
    tuned.save_recommendation(
        replace(cell(CODING, DRAFTING), created_at="2026-11-28T10:00:00+00:00"), identify(), "cell-coding"
    )
    [answer] = json.loads(run("recommend", "--json").stdout)["overall"]
    assert (answer["status"], answer["evidence"]["stale_reason"]) == (
        "stale",
        "coding was measured again since",
    )


def test_without_an_answer_types_that_differ_are_refused(tuned):
    """As before, with the way to an answer."""
    with tuned._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM autospec_overall")
    result = run("recommend", "-f", "args")
    assert result.exit_code == 2
    assert "autospec tune --model Main-7B-Q4_K_M" in result.stderr


def test_args_of_an_undecided_answer_are_off():
    """Nothing rests on predictions alone: what lacks pairs is said on stderr."""
    store = open_store(load_settings().storage)
    remember(
        store,
        (cell(CODING, DRAFTING), {DRAFTING: 2.4}),
        (cell(WRITING, NGRAM, Verdict.DISABLE), {NGRAM: 0.9}),
    )
    store.close()
    result = run("recommend", "-f", "args")
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert "was not measured for writing prompts" in result.stderr


def test_explain_says_why(tuned):
    """The mix, each type's part, and what is lost against one drafting for each type."""
    text = " ".join(run("explain", "-m", "main").stdout.split())
    assert "one server for all prompt types" in text
    assert "equal numbers of requests of every prompt type: coding 50%, writing 50%" in text
    assert "It slows down writing prompts." in text
    assert "One drafting for each prompt type" in text
    [answer] = json.loads(run("explain", "-m", "main", "--json").stdout)["overall"]
    assert answer["figures"]["slows"] == ["writing"]


def test_the_last_line_of_a_tune_says_what_to_run(tuned):
    """One command line, with the user's own settings and without those of measuring."""
    [answer] = [s.recommendation for s in tuned.overall_answers()]
    line = what_to_run(answer)
    command = shlex.split(line.partition("Run: ")[2])
    assert command == ["llama-server", "--model", answer.model_path, "-ngl", "99", *ARGS]
    off = replace(answer, verdict=Verdict.DISABLE, drafting=OFF)
    assert "one server for all prompt types: off" in what_to_run(off).lower()
    assert shlex.split(what_to_run(off).partition("Run: ")[2])[1:] == [
        "--model",
        answer.model_path,
        "-ngl",
        "99",
    ]


def test_a_mix_of_types_that_were_not_measured_says_so(tuned):
    """The table has no answer then; words for one server would be those of another mix."""
    result = run("recommend", "--mix", "chat=1,qa=2")
    assert result.exit_code == 0
    assert "Main-7B-Q4_K_M on llama-server has no results for chat, qa." in result.stderr
    assert "autospec tune --model Main-7B-Q4_K_M --backend llama-server -t chat -t qa" in result.stderr
    assert json.loads(run("recommend", "--json", "--mix", "chat=1").stdout)["overall"] == []
    result = run("recommend", "-f", "args", "--mix", "chat=1")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no results for chat" in result.stderr
    assert "There is no answer for the mix" not in run("recommend", "--mix", "coding=1").stderr
