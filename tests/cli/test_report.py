"""`autospec report`: the file that it writes, and those that it leaves alone."""

from __future__ import annotations

import gzip
import importlib.util
import json
import webbrowser
from pathlib import Path

import pytest
from click.testing import CliRunner

from autospec.cells import PromptType
from autospec.cli import cli
from autospec.errors import install_line
from autospec.hardware import identify
from autospec.recommendations import Verdict
from autospec.report.html.page import MOST_BYTES
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.cli.test_recommend_overall import cell, remember
from tests.golden.conftest import OLD
from tests.report.html_samples import Seen, undrawn
from tests.report.samples import DRAFTING, measurement, recommendation

KEY = "aaaabbbbcccc"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, request):
    """The page goes into the current folder. Its figures are drawn in the tests that look at them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("autospec.report.html.page.inline_svg", undrawn)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture
def drawn():
    """With figures."""


@pytest.fixture
def tuned():
    """A recommendation with its proof, and no Optuna study."""
    store = open_store(load_settings().storage)
    store.save_recommendation(recommendation(), identify(), KEY)
    for prompt in ("p1", "p2"):
        for half in (False, True):
            store.add_measurement(measurement(with_drafting=half, prompt=prompt))
    store.close()


def run(*args):
    """One call of the command."""
    return CliRunner().invoke(cli, ["report", *args])


def test_it_writes_the_page(tuned, drawn):
    """Into the default file, and says so; with the founding record, and without a study in Optuna's tables."""
    result = run()
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stdout == ""
    assert "Wrote autospec-report.html." in result.stderr
    seen = Seen.of(Path("autospec-report.html").read_text("utf-8"))
    assert "Main-7B-Q4_K_M" in seen.text
    assert "The founding record" in seen.text
    assert "accepted 61% of the proposed tokens" in seen.text


def test_one_model_alone(tuned):
    """Without the founding record; a model that nothing is known of is an error, and nothing is written."""
    assert run("--model", "main", "-o", "one.html").exit_code == 0
    assert "The founding record" not in Path("one.html").read_text("utf-8")
    unknown = run("--model", "nosuch")
    assert unknown.exit_code == 3
    assert "autospec tune --model nosuch" in unknown.stderr
    assert not Path("autospec-report.html").exists()


def test_one_server_for_all_prompt_types():
    """The overall answer: its row, its words, and the command to run."""
    store = open_store(load_settings().storage)
    remember(
        store,
        (cell(PromptType.CODING, DRAFTING), {DRAFTING: 2.4}),
        (cell(PromptType.WRITING, DRAFTING), {DRAFTING: 1.5}),
    )
    store.close()
    assert run().exit_code == 0
    seen = Seen.of(Path("autospec-report.html").read_text("utf-8"))
    assert "all together" in seen.text
    assert "The mix is equal numbers of requests of every prompt type" in seen.text
    assert "llama-server --model /models/Main-7B-Q4_K_M.gguf" in seen.text
    assert run("--prompt-type", "coding").exit_code == 0
    assert "all together" not in Path("autospec-report.html").read_text("utf-8")


def test_imported_results_of_another_machine_say_so():
    """Where nothing was measured here: the note on the page and on the terminal."""
    imported = CliRunner().invoke(cli, ["studies", "import", "m2-ultra-2025-12-13"])
    assert imported.exit_code == 0
    result = run()
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "no results of this machine match; these come from apple-m2-ultra-64g." in result.stderr
    text = Seen.of(Path("autospec-report.html").read_text("utf-8")).text
    assert "no results of this machine match" in text
    assert "none (3 and 3 runs)" in text
    assert "Imported, not measured here: coding (undecided)." in text


def test_with_an_empty_database_it_says_what_to_do():
    """On the page and on the terminal."""
    result = run()
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "autospec tune --model MODEL" in result.stderr
    assert "Nothing has been measured on this machine yet" in Path("autospec-report.html").read_text("utf-8")


def test_json_tells_the_file(tuned):
    """One document and nothing else on stdout."""
    document = json.loads(run("--json", "-o", "page.html").stdout)
    assert document == {
        "schema": 1,
        "file": "page.html",
        "bytes": Path("page.html").stat().st_size,
        "models": ["Main-7B-Q4_K_M"],
    }


def test_an_earlier_report_is_replaced(tuned):
    """Also one of an earlier version; an empty file is nobody's."""
    Path("autospec-report.html").touch()
    assert run().exit_code == 0
    first = Path("autospec-report.html").read_text("utf-8")
    Path("autospec-report.html").write_text(first.replace("Main-7B", "Old-7B"), "utf-8")
    assert run().exit_code == 0
    assert "Old-7B" not in Path("autospec-report.html").read_text("utf-8")


@pytest.mark.parametrize("text", ["my notes", "<html><body>autospec report</body></html>"])
def test_a_file_that_is_not_ours_stays(tuned, text):
    """Unless the user says so."""
    Path("notes.html").write_text(text, "utf-8")
    refused = run("-o", "notes.html")
    assert refused.exit_code == 2
    assert "is not an autospec report" in refused.stderr
    assert Path("notes.html").read_text("utf-8") == text
    assert run("-o", "notes.html", "--force").exit_code == 0
    assert "Main-7B" in Path("notes.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_without_the_extra_it_says_what_to_install(tuned, monkeypatch, name):
    """In one sentence, before anything is read."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a))
    result = run()
    assert result.exit_code == 1
    assert f"not installed: {name}." in result.stderr
    assert install_line("report") in result.stderr
    assert not Path("autospec-report.html").exists()


@pytest.mark.parametrize("works", [True, False])
def test_open_shows_it(tuned, monkeypatch, works):
    """In the browser; a machine without one is told where the page is."""
    shown = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(shown.append(url)) or works)
    result = run("--open")
    assert result.exit_code == 0
    assert shown == [Path("autospec-report.html").resolve().as_uri()]
    assert ("no browser could be started" in result.stderr) is not works


def test_what_an_older_version_measured(drawn):
    """The database of 31c5bcf: its verdicts, its trials, and no figure without data."""
    database = Path(load_settings().storage.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    database.write_bytes(gzip.decompress((OLD / "autospec.db.gz").read_bytes()))
    result = run("--all-hardware")
    assert result.exit_code == 0, (result.stderr, result.exception)
    text = Path("autospec-report.html").read_text("utf-8")
    known = json.loads(CliRunner().invoke(cli, ["recommend", "--json", "--all-hardware"]).stdout)[
        "recommendations"
    ]
    shown = Seen.of(text).text
    assert known
    for r in known:
        assert r["model"] in shown
        assert r["verdict"] in set(Verdict)
    assert len(text.encode()) < MOST_BYTES


def test_a_missing_folder_is_not_made(tuned, tmp_path):
    """The same sentence as for an export."""
    result = run("-o", str(tmp_path / "no" / "such.html"))
    assert result.exit_code == 1
    assert f"cannot be written: there is no folder {tmp_path / 'no'}." in result.stderr
    assert not (tmp_path / "no").exists()
