"""`autospec explain`: from the stored evidence to words."""

from __future__ import annotations

import json
from dataclasses import replace

import optuna
import pytest
from click.testing import CliRunner

from autospec.cli import cli
from autospec.drafting import Drafting, Mode
from autospec.hardware import identify
from autospec.hardware.state import MachineState
from autospec.measure.measurements import Phase
from autospec.recommendations import Verdict
from autospec.settings import load_settings
from autospec.store.compatibility import DraftFile, DraftFiles
from autospec.store.database import open_store
from tests.report.samples import DRAFTING, measurement, recommendation

KEY = "aaaabbbbcccc"
CALM = MachineState(
    window_s=10.0,
    cores=2,
    other_load=0.0,
    steal=0.0,
    on_battery=False,
    battery_percent=None,
    low_power=None,
    thermal="nominal",
    memory_available_bytes=10**10,
    swap_in_bytes=0,
)
OTHER = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)


@pytest.fixture
def tuned():
    """What a tune leaves behind: a recommendation, its proof, another drafting's search, and the study."""
    url = load_settings().storage
    store = open_store(url)
    store.save_recommendation(recommendation(), identify(), KEY)
    for prompt in ("p1", "p2"):
        for half in (False, True):
            store.add_measurement(measurement(with_drafting=half, prompt=prompt))
            # The search of another drafting is no evidence for this one.
            side = {"drafting": OTHER} if half else {}
            store.add_measurement(
                measurement(with_drafting=half, prompt=prompt, phase=Phase.SEARCH, compared=OTHER, **side)
            )
    store.close()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="Main | coding", storage=url, direction="maximize")
    study.set_user_attr("cell", {"key": KEY, "model": "Main-7B-Q4_K_M"})
    for drafting, value in ((DRAFTING, 1.3), (OTHER, 1.1)):
        trial = study.ask()
        trial.set_user_attr("drafting", drafting.to_json())
        trial.set_user_attr("protocol", "proto")
        study.tell(trial, value)


def run(*args):
    """One call of the command."""
    return CliRunner().invoke(cli, ["explain", *args])


def test_it_says_why_in_words(tuned):
    """Speeds, acceptance, cost of a pass, break-even, prompts, texts and the runner-up."""
    result = run("--model", "main")
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    for words in (
        "Enable: Main-7B-Q4_K_M on llama-server b11434, coding prompts.",
        "Without drafting 14.7 tok/s",
        "accepted 61% of the proposed tokens",
        "as 1.50 tokens without drafting",
        "breaks even at an acceptance rate of about 25%",
        "2 of 2 prompts were faster",
        "All 2 answers were identical",
        "The next best: ngram-simple",
    ):
        assert words in said


def test_json_has_the_figures(tuned):
    """One document with the recommendation, its figures and the sentences."""
    document = json.loads(run("-m", "main", "--json").stdout)
    [explained] = document["explanations"]
    assert explained["recommendation"]["verdict"] == "enable"
    assert explained["figures"]["pairs"] == 2
    assert explained["figures"]["pass_cost_tokens"] == pytest.approx(1.5)
    assert explained["sentences"]


def test_measurements_of_another_suite_are_left_out(tuned):
    """The newest protocol is the one that was concluded from."""
    store = open_store(load_settings().storage)
    store.add_measurement(measurement(with_drafting=False, protocol="newer", prompt="p9", started_at=5000.0))
    store.add_measurement(measurement(with_drafting=True, protocol="newer", prompt="p9", started_at=5001.0))
    store.close()
    figures = json.loads(run("-m", "main", "--json").stdout)["explanations"][0]["figures"]
    assert list(figures["prompts"]) == ["p9"]


def test_disturbed_pairs_are_left_out(tuned):
    """Beside a neighbour that came within the pair, drafting may look twice as fast; the verdict left it out as well."""
    store = open_store(load_settings().storage)
    calm, busy = (replace(CALM, other_load=load).to_json() for load in (0.0, 1.5))
    store.add_measurement(measurement(with_drafting=False, prompt="p9", machine=busy))
    store.add_measurement(measurement(with_drafting=True, prompt="p9", machine=calm))
    store.close()
    figures = json.loads(run("-m", "main", "--json").stdout)["explanations"][0]["figures"]
    assert set(figures["prompts"]) == {"p1", "p2"}


def test_measurements_of_a_replaced_draft_are_left_out(tuned):
    """Of another file under the same path; those of the same file count, also from its old place."""
    store = open_store(load_settings().storage)
    store.save_recommendation(recommendation(evidence={"draft_id": "now"}), identify(), KEY)
    moved = replace(DRAFTING, draft="/old/place/draft.gguf")
    for identity, prompt, drafting in (("before", "p8", DRAFTING), ("now", "p9", moved)):
        store.drafts = DraftFiles({drafting.draft: DraftFile(identity)})
        for half in (False, True):
            side = {"drafting": drafting} if half else {}
            store.add_measurement(measurement(with_drafting=half, prompt=prompt, compared=drafting, **side))
    store.close()
    figures = json.loads(run("-m", "main", "--json").stdout)["explanations"][0]["figures"]
    assert set(figures["prompts"]) == {"p1", "p2", "p9"}


def test_what_is_likely_is_said(tuned):
    """With its chance; the verdict stays undecided."""
    likely = {"speedup": 1.72, "interval": [1.5, 1.9], "chance": 0.987, "about_s": 240}
    store = open_store(load_settings().storage)
    store.save_recommendation(recommendation(Verdict.UNDECIDED, evidence={"likely": likely}), identify(), KEY)
    store.close()
    said = " ".join(run("--model", "main").stdout.split())
    assert (
        "is likely, +72 %, about 4 more minutes would prove it; the chance that its gain exceeds the threshold is 98.7%."
        in said
    )


def test_rows_of_another_version_are_left_out_with_a_warning(tuned):
    """A machine's state that is not a JSON object, and a proven drafting with an unknown mode."""
    store = open_store(load_settings().storage)
    also = [
        {"drafting": {"mode": "mtp-adaptive"}, "speedup": 1.1, "speedup_ci": None, "verdict": "undecided"}
    ]
    store.save_recommendation(recommendation(evidence={"also_proved": also}), identify(), KEY)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE autospec_measurements SET machine = '[' WHERE prompt_id = 'p1'")
    store.close()
    result = run("-m", "main", "--json")
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)["explanations"][0]["figures"]["prompts"]) == {"p2"}
    assert "does not understand 4 measurements in the database" in result.stderr


def test_a_search_speaks_where_nothing_was_proven(tuned):
    """An interrupted tune has search measurements only."""
    store = open_store(load_settings().storage)
    store.save_recommendation(recommendation(Verdict.UNDECIDED, tried=OTHER, pairs=0), identify(), KEY)
    store.close()
    figures = json.loads(run("-m", "main", "--json").stdout)["explanations"][0]["figures"]
    assert figures["pairs"] == 2


def test_nothing_known_exits_with_3():
    """And says what to do."""
    result = run("-m", "main")
    assert result.exit_code == 3
    assert "autospec tune --model main" in result.stderr


def test_the_model_must_be_named():
    """Wrong usage exits with 2."""
    assert run().exit_code == 2


def test_an_imported_record_is_explained():
    """The founding record by its runs, with a warning whose they are."""
    CliRunner().invoke(cli, ["studies", "import", "m2-ultra-2025-12-13"])
    result = run("-m", "qwen3-coder-30b", "--backend", "llama-server")
    assert result.exit_code == 0
    assert "59.0 tok/s (-21.9 %)" in result.stdout
    assert "apple-m2-ultra-64g" in result.stderr
