"""`bench` and `tune` on a real llama-server that the user started."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from autospec.cli import cli

DRAFTING = ("--spec-type", "draft-simple", "--spec-draft-n-max", "4", "--model-draft")


def bench(url, model, *args):
    """One short run."""
    short = ("--runs", "1", "--max-tokens", "8", "--prompt", "Hello")
    return CliRunner().invoke(cli, ["bench", "-m", str(model), "--url", url, *short, *args])


def test_bench_measures_it_as_it_runs(by_hand, lab_models):
    """One column that does not call itself off, what is known of its drafting, and the flags to compare with."""
    tiny = lab_models.tiny
    url, process = by_hand(*DRAFTING, str(tiny))
    result = bench(url, tiny, "-d", str(tiny))
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    assert "### Attached Server" in text
    assert "| Model | As It Runs |" in text
    assert "Without Draft" not in text
    assert "drafted tokens accepted" in text
    assert "fixed when it starts" in text
    assert f"--spec-type draft-simple --spec-draft-model {tiny}" in text
    assert process.poll() is None


def test_bench_json_names_the_server(by_hand, lab_models):
    """The address is its command."""
    url, _ = by_hand()
    document = json.loads(bench(url, lab_models.tiny, "--json").stdout)
    assert document["backend"] == "attached"
    assert document["backend_build"].startswith("llama-server ")
    (result,) = document["results"]
    assert result["command"][0] == url
    assert result["runs"][0]["tps"] > 0


def test_tune_says_that_there_is_nothing_to_tune(by_hand, lab_models):
    """One sentence with what to do, before anything is measured."""
    url, _ = by_hand()
    result = CliRunner().invoke(cli, ["tune", "--model", str(lab_models.tiny), "--url", url])
    assert result.exit_code == 1
    assert "A request to llama-server" in result.stderr
    assert "autospec bench --url" in result.stderr


@pytest.mark.parametrize("url", ["http://192.0.2.7:8080", "not-an-address"])
def test_only_this_machine(url, lab_models):
    """Refused before anything is sent; exit 2."""
    assert bench(url, lab_models.tiny).exit_code == 2
