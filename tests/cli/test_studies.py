"""`autospec studies`: list, show, import, export."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

from autospec.cli import cli
from autospec.hardware import identify
from autospec.report.records import find_record
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.report.samples import DRAFTING, measurement, recommendation

KEY = "aaaabbbbcccc"
RECORD = "m2-ultra-2025-12-13"


@pytest.fixture
def tuned():
    """One study with a complete and a failed trial, its measurements and its recommendation."""
    url = load_settings().storage
    store = open_store(url)
    store.save_recommendation(recommendation(), identify(), KEY)
    for half in (False, True):
        store.add_measurement(measurement(with_drafting=half))
    store.close()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"Main-7B | coding | llama-server b11434 | here | {KEY}", storage=url, direction="maximize"
    )
    study.set_user_attr("cell", {"key": KEY, "model": "Main-7B-Q4_K_M", "prompt_type": "coding"})
    trial = study.ask()
    trial.set_user_attr("drafting", DRAFTING.to_json())
    study.tell(trial, 1.25)
    trial = study.ask()
    trial.set_user_attr("drafting", DRAFTING.to_json())
    trial.set_user_attr("reason", "the draft could not be loaded")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)


def run(*args):
    """One call of the command."""
    return CliRunner().invoke(cli, ["studies", *args])


def test_list_shows_studies_and_imports(tuned):
    """Trials by state, the best, the result; an import has a row without a study."""
    run("import", RECORD)
    document = json.loads(run("list", "--json").stdout)
    [study] = document["studies"]
    assert study["trials"] == {"complete": 1, "fail": 1}
    assert study["best"]["value"] == 1.25
    assert study["recommendation"]["verdict"] == "enable"
    assert len(document["recommendations"]) == 3
    assert document["records"] == [RECORD]
    assert "Qwen3-4B" in run("list").stdout


def test_list_of_nothing_is_no_failure(autospec_home):
    """It says how to make a study, and makes no database."""
    result = run("list")
    assert result.exit_code == 0
    assert "autospec tune" in result.stderr
    assert not autospec_home.exists()


def test_show_lists_the_trials(tuned):
    """Every trial with its state, gain and reason; chosen by words of its name."""
    result = run("show", "main-7b", "coding")
    assert result.exit_code == 0
    assert "+25.0 %" in result.stdout
    assert "the draft could not be loaded" in result.stdout
    document = json.loads(run("show", KEY, "--json").stdout)
    assert [t["state"] for t in document["trials"]] == ["complete", "fail"]


def test_show_of_a_record_is_the_founding_document():
    """The shipped record by its name, as Markdown and as JSON."""
    assert (
        "| Qwen3-Coder-30B-A3B | **75.5 tok/s** | 59.0 tok/s (-22%) | 63.2 tok/s (-16%) |"
        in run("show", RECORD).stdout
    )
    assert len(json.loads(run("show", RECORD, "--json").stdout)["groups"]) == 7


def test_show_of_nothing_exits_with_3(tuned):
    """No study answers to the words."""
    assert run("show", "gemma").exit_code == 3


@pytest.mark.parametrize("name", [RECORD, str(find_record(RECORD))])
def test_a_record_is_imported_by_name_or_path(name):
    """Three recommendations the first time, none the second."""
    first = json.loads(run("import", name, "--json").stdout)["imported"][0]
    assert (first["recommendations"], first["known"]) == (3, 0)
    again = json.loads(run("import", name, "--json").stdout)["imported"][0]
    assert (again["recommendations"], again["known"]) == (0, 3)


def test_a_wrong_file_imports_nothing(tmp_path):
    """The right file before it is not half done."""
    bad = tmp_path / "bad.toml"
    bad.write_text('kind = "record"\n', encoding="utf-8")
    result = run("import", RECORD, str(bad))
    assert result.exit_code == 2
    assert "bad.toml" in result.stderr
    assert CliRunner().invoke(cli, ["recommend"]).exit_code == 3


def test_a_study_definition_is_no_record():
    """It says what to do with it."""
    result = run("import", str(find_record(RECORD).parent / "default.toml"))
    assert result.exit_code == 2
    assert "tune --study" in result.stderr


def test_an_unknown_name_exits_with_2():
    """And lists the records there are."""
    result = run("import", "no-such")
    assert result.exit_code == 2
    assert RECORD in result.stderr


def test_an_export_goes_to_another_machine(tuned, tmp_path, monkeypatch):
    """Written there, imported here: status imported, verdict and figures as they were."""
    file = tmp_path / "mine.json"
    assert run("export", "-o", str(file)).exit_code == 0
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path / "another"))
    result = run("import", str(file))
    assert "1 recommendations" in result.stdout
    assert "2 measurements" in result.stdout
    [back] = json.loads(CliRunner().invoke(cli, ["recommend", "--json"]).stdout)["recommendations"]
    assert (back["status"], back["verdict"], back["speedup"]) == ("imported", "enable", 1.306)
    explained = CliRunner().invoke(cli, ["explain", "-m", "main", "--json"])
    assert json.loads(explained.stdout)["explanations"][0]["figures"]["pairs"] == 1


def test_export_prints_json_without_the_home_folder(tuned):
    """One document on stdout."""
    document = json.loads(run("export").stdout)
    assert document["kind"] == "autospec-export"
    assert len(document["studies"][0]["trials"]) == 2
    assert f"{Path.home()}/" not in json.dumps(document)


def test_export_of_one_model(tuned):
    """A model that is not known exits with 3; one that is brings its own only."""
    run("import", RECORD)
    assert run("export", "-m", "llama").exit_code == 3
    document = json.loads(run("export", "-m", "main").stdout)
    assert [r["recommendation"]["model"] for r in document["recommendations"]] == ["Main-7B-Q4_K_M"]


def test_export_of_nothing_exits_with_3():
    """Nothing was tuned."""
    assert run("export").exit_code == 3


def test_an_output_that_cannot_be_written_is_told(tuned, tmp_path):
    """With the reason: no folder is made for a name that may be mistyped; a file in its place is the system's error."""
    result = run("export", "-o", str(tmp_path / "no" / "such.json"))
    assert result.exit_code == 1
    assert f"cannot be written: there is no folder {tmp_path / 'no'}." in result.stderr
    result = run("export", "-o", str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path} cannot be written: Is a directory." in result.stderr


def test_an_export_that_is_nested_too_deeply_is_a_sentence(tmp_path):
    """A hundred thousand brackets, and no traceback; a record likewise."""
    for name, text in (("deep.json", "[" * 100_000), ("deep.toml", "a = " + "[" * 100_000)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        result = run("import", str(tmp_path / name))
        assert result.exit_code == 2
        assert name in result.stderr
        assert "because of a bug" not in result.stderr
