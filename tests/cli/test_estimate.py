"""`autospec estimate` and `autospec drafts --suggest`: stdout, stderr, exit codes, no server and no measurement in the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from autospec.cli import cli
from autospec.hardware import bandwidth
from autospec.hardware.bandwidth import KEPT_FILE, Speeds
from autospec.hardware.gpu import Device
from tests.catalog.making import write_gguf

SPEEDS = Speeds(10e9, 1e11, 1e-6, 2e-6, overlaps=False, source="measured", words="Measured in a test.")


@pytest.fixture
def run(tmp_path: Path, own_models: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command on a machine of the test's own, without an accelerator, whose speeds are given."""
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path / "autospec"))
    monkeypatch.setenv("COLUMNS", "200")
    # No backend is asked, and none is needed.
    monkeypatch.setenv("AUTOSPEC_BACKEND", "nosuch")
    monkeypatch.setattr("autospec.hardware.gpu.devices_here", lambda _hardware: ())
    monkeypatch.setattr(bandwidth, "measure", lambda _hardware: SPEEDS)

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, args)

    return run


class TestEstimate:
    """`autospec estimate`."""

    def test_one_model(self, run, two_models: Path) -> None:
        """Where the figures come from, what a token reads, and a sentence for each draft that fits."""
        result = run("estimate", "--model", "tiny-main")
        assert result.exit_code == 0, result.output
        assert "Measured in a test." in result.stdout
        assert "tok/s without drafting" in result.stdout
        rows = [line for line in result.stdout.splitlines() if line.startswith(("Tiny-Draft", "n-gram"))]
        assert len(rows) == 2
        assert all("Would" in row for row in rows)
        assert "Stranger" not in result.stdout
        assert "verdict" not in result.stdout.casefold()
        assert "This is an estimate." in result.stderr

    def test_a_draft_may_be_on_a_card(self, run, two_models: Path, monkeypatch) -> None:
        """What a card has is room for models, too."""
        monkeypatch.setattr("autospec.catalog.candidates.model_memory_bytes", lambda _hardware: 1_000_000)
        assert "Tiny-Draft" not in run("estimate", "--model", "tiny-main").stdout

    def test_json(self, run, two_models: Path) -> None:
        """One document: the machine's figures, the parts of what a token reads, each draft's break-even."""
        result = run("estimate", "-m", "Tiny-Main-F16", "--depth", "256", "--json")
        document = json.loads(result.stdout)
        assert (document["schema"], document["kind"], document["depth_tokens"]) == (1, "estimate", 256)
        [model] = document["models"]
        assert model["machine"]["source"] == "measured"
        parts = model["weights"]
        read = parts["shared_bytes"] + parts["row_bytes"] + parts["cache_bytes"]
        assert model["without_drafting"]["bytes_per_token"] == read
        assert {d["name"] for d in model["drafts"]} == {"Tiny-Draft-F16", "n-gram modes"}
        assert all(d["break_even"] > 0 for d in model["drafts"] if d["path"])

    def test_a_longer_text_before_makes_a_token_slower(self, run, two_models: Path) -> None:
        """The cache is read for every token."""
        speeds = [
            json.loads(run("estimate", "-m", "Tiny-Main-F16", "--depth", str(depth), "--json").stdout)
            for depth in (0, 2000)
        ]
        short, long = (d["models"][0]["without_drafting"]["token_ms"] for d in speeds)
        assert long > short

    def test_all_models(self, run, two_models: Path) -> None:
        """A row each, with its best draft; heads are no main models."""
        keys: dict[str, Any] = {
            "eagle3.target_layers": [2, 20, 37],
            "eagle3.target_hidden_size": np.uint32(64),
        }
        write_gguf(two_models / "A-Eagle3.gguf", architecture="eagle3", layers=1, keys=keys)
        result = run("estimate")
        assert result.exit_code == 0, result.output
        named = [line.split()[0] for line in result.stdout.splitlines()[2:]]
        assert set(named) == {"Stranger", "Tiny-Draft-F16", "Tiny-Main-F16"}
        head = run("estimate", "-m", "A-Eagle3")
        assert head.exit_code == 2
        assert "is a draft head" in head.stderr

    def test_the_measurement_is_kept_for_the_daemon(self, run, two_models: Path, tmp_path: Path) -> None:
        """It measures nothing for an estimate itself."""
        run("estimate")
        [found] = (tmp_path / "autospec").rglob(KEPT_FILE)
        assert json.loads(found.read_text("utf-8"))["bytes_per_s"] == 10e9

    def test_what_is_unknown_is_said(self, run, two_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A card that is in no table: no number is made up, in words and for programs."""
        card = Device("CUDA0", "Nova 1", 24 << 30, 24 << 30)
        monkeypatch.setattr("autospec.hardware.gpu.devices_here", lambda _hardware: (card,))
        result = run("estimate", "-m", "Tiny-Main-F16")
        assert (
            "No estimate for Tiny-Main-F16. Unknown: autospec knows no memory bandwidth of Nova 1."
            in result.stdout
        )
        [model] = json.loads(run("estimate", "-m", "Tiny-Main-F16", "--json").stdout)["models"]
        assert (model["without_drafting"], model["drafts"]) == (None, [])
        assert model["unknown"].startswith("Unknown: ")

    def test_nothing_found(self, run) -> None:
        """An empty machine gets the sentence of `autospec models`."""
        assert "No models found in" in run("estimate").stdout


class TestSuggest:
    """`autospec drafts --suggest`."""

    def test_drafts_of_a_family(self, run, models_dir: Path) -> None:
        """Repository, file, why, whose word it is, and the command."""
        write_gguf(models_dir / "Qwen3-32B-Q4_K_M.gguf", architecture="qwen3", layers=60, width=64)
        result = run("drafts", "-m", "qwen3-32b", "--suggest")
        assert result.exit_code == 0, result.output
        assert "ggml-org/Qwen3-0.6B-GGUF, Qwen3-0.6B-Q8_0.gguf (draft-model, size unknown)" in result.stdout
        assert "According to https://" in result.stdout
        assert "hf download ggml-org/Qwen3-0.6B-GGUF Qwen3-0.6B-Q8_0.gguf" in result.stdout
        assert "Nothing was downloaded." in result.stderr

    def test_json(self, run, models_dir: Path) -> None:
        """The same for programs."""
        write_gguf(models_dir / "Qwen3-32B-Q4_K_M.gguf", architecture="qwen3", layers=60, width=64)
        document = json.loads(run("drafts", "-m", "qwen3-32b", "--suggest", "--json").stdout)
        assert document["reason"] is None
        [found] = document["suggestions"]
        assert found["download"].startswith("hf download ")
        assert found["date"] == "2026-11-29"

    def test_a_family_that_is_not_in_the_table(self, run, two_models: Path) -> None:
        """It says so, and what to look for."""
        result = run("drafts", "-m", "Tiny-Main-F16", "--suggest")
        assert result.exit_code == 0
        assert "has none for Tiny-Main-F16" in result.stdout
        assert (
            json.loads(run("drafts", "-m", "Tiny-Main-F16", "--suggest", "--json").stdout)["suggestions"]
            == []
        )
