"""`autospec models`, `autospec drafts`, and model names in `autospec tune`: stdout, stderr, exit codes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from autospec.catalog.scan import scan
from autospec.cells import Hardware
from autospec.cli.bench import _best_draft
from autospec.cli.models import command as models
from autospec.cli.models import drafts_command as drafts
from autospec.cli.tune import command as tune
from autospec.hardware import gpu
from autospec.prompts.suite import load_suite
from autospec.settings import load_settings
from autospec.tuning.definition import load_definition
from autospec.tuning.request import TuneRequest, judged_drafts
from tests.catalog.making import write_gguf
from tests.hardware.fake_gpus import Card, FakeNvml


@pytest.fixture
def run(tmp_path: Path, own_models: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command on a machine of the test's own."""
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path / "autospec"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(command: Any, *args: str) -> Result:
        return CliRunner().invoke(command, args)

    return run


@pytest.mark.parametrize(("library", "fitting"), [(FakeNvml(Card()), 1), (None, 0)])
def test_a_draft_fits_into_the_memory_of_a_card(run, two_models: Path, monkeypatch, library, fitting) -> None:
    """Beside a card that is larger than the system's memory every draft was refused."""
    here = Hardware("id", "chip", 1_000_000, 8, "linux 6.8", "NVIDIA GeForce RTX 4090")
    monkeypatch.setattr("autospec.hardware.identify", lambda: here)
    monkeypatch.setattr("autospec.catalog.candidates.identify", lambda: here)
    monkeypatch.setattr(gpu.nvidia, "library", lambda: library)
    monkeypatch.setattr(gpu.amd, "library", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    shown = {m["name"]: m["fitting_drafts"] for m in json.loads(run(models, "--json").stdout)["models"]}
    assert shown["Tiny-Main-F16"] == fitting
    judged = json.loads(run(drafts, "--model", "tiny-main", "--json").stdout)["drafts"]
    assert [d["fits"] for d in judged if d["name"] == "Tiny-Draft-F16"] == [bool(fitting)]
    catalog = scan(load_settings())
    main = catalog.find("tiny-main")
    assert (_best_draft(catalog, main, 1024) is not None) is bool(fitting)
    request = TuneRequest(main, catalog.models, load_definition("quick"), load_suite(), "sqlite://")
    assert sum(c.fits for c in judged_drafts(request, here)) == fitting


class TestModels:
    """`autospec models`."""

    def test_table(self, run, two_models: Path) -> None:
        """Name, size, architecture, dense or MoE, quantization, context, drafts, place."""
        result = run(models)
        assert result.exit_code == 0
        line = next(li for li in result.stdout.splitlines() if li.startswith("Tiny-Main-F16"))
        assert line.split() == [
            "Tiny-Main-F16",
            "1.1",
            "MB",
            "llama",
            "530K",
            "dense",
            "F16",
            "2048",
            "1",
            str(two_models),
        ]
        assert result.stderr == ""

    def test_moe_shows_its_active_experts(self, run, models_dir: Path) -> None:
        """A sparse model shows what is active of how much."""
        keys = {"qwen3moe.expert_count": np.uint32(8), "qwen3moe.expert_used_count": np.uint32(2)}
        tensors = {"blk.0.ffn_up_exps.weight": np.ones((8, 500, 250), np.float16)}
        write_gguf(models_dir / "m.gguf", architecture="qwen3moe", keys=keys, tensors=tensors)
        assert "1M MoE (250K active, 2 of 8)" in run(models).stdout

    def test_json(self, run, two_models: Path) -> None:
        """One document on stdout with schema, models and warnings; warnings on stderr as well."""
        (two_models / "bad.gguf").write_bytes(b"GGUF")
        result = run(models, "--json")
        assert result.exit_code == 0
        document = json.loads(result.stdout)
        assert document["schema"] == 1
        assert [(m["name"], m["fitting_drafts"]) for m in document["models"]] == [
            ("Stranger", 0),
            ("Tiny-Draft-F16", 0),
            ("Tiny-Main-F16", 1),
        ]
        assert document["models"][2]["architecture"] == "llama"
        assert len(document["warnings"]) == 1
        assert result.stderr == f"warning: {document['warnings'][0]}\n"

    def test_heads_are_no_main_models(self, run, two_models: Path) -> None:
        """A draft head is shown as what it is, behind the main models."""
        keys = {"eagle3.target_layers": [2, 20, 37], "eagle3.target_hidden_size": np.uint32(64)}
        write_gguf(two_models / "A-Eagle3.gguf", architecture="eagle3", layers=1, keys=keys)
        lines = run(models).stdout.splitlines()
        assert lines[-1].startswith("A-Eagle3")
        assert "eagle3 head" in lines[-1]
        by_name = {m["name"]: m for m in json.loads(run(models, "--json").stdout)["models"]}
        assert by_name["A-Eagle3"]["fitting_drafts"] is None
        assert by_name["Tiny-Main-F16"]["fitting_drafts"] == 2

    def test_nothing_found(self, run, models_dir: Path, home: Path) -> None:
        """An empty machine gets one sentence: where was looked, and how to add a folder."""
        result = run(models)
        assert result.exit_code == 0
        assert str(models_dir) in result.stdout
        assert str(home / ".lmstudio/models") in result.stdout
        assert "model_dirs" in result.stdout
        assert result.stdout.count("\n") == 1
        assert json.loads(run(models, "--json").stdout) == {"schema": 1, "models": [], "warnings": []}

    @pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses names that are no UTF-8")
    def test_a_name_that_is_no_utf8(self, run, models_dir: Path) -> None:
        """Table and JSON have the escaped name, and `drafts` takes it."""
        write_gguf(models_dir / os.fsdecode(b"mod\xe9le.gguf"))
        assert r"mod\xe9le" in run(models).stdout
        (model,) = json.loads(run(models, "--json").stdout)["models"]
        assert model["name"] == r"mod\xe9le"
        assert json.dumps(model, ensure_ascii=False).encode()
        done = run(drafts, "--model", model["name"], "--json")
        assert json.loads(done.stdout)["model_path"] == model["path"]

    def test_brackets_in_a_name_are_no_markup(self, run, models_dir: Path) -> None:
        """A file may be called anything."""
        write_gguf(models_dir / "[bold]x[red].gguf")
        assert "[bold]x[red]" in run(models).stdout


class TestDrafts:
    """`autospec drafts --model M`."""

    def test_shows_fits_and_refusals(self, run, two_models: Path) -> None:
        """Both, each with its sentence."""
        result = run(drafts, "--model", "tiny-main")
        assert result.exit_code == 0
        fits, refused = result.stdout.split("Models that do not fit")
        assert "Tiny-Draft-F16" in fits
        assert "Same vocabulary" in fits
        assert "Stranger" in refused
        assert "has another vocabulary: its tokens differ from id 9 on" in refused

    def test_json(self, run, two_models: Path) -> None:
        """Schema, model and drafts with fits and reason."""
        result = run(drafts, "--model", "tiny-main", "--json")
        document = json.loads(result.stdout)
        assert (document["schema"], document["model"]) == (1, "Tiny-Main-F16")
        assert [(d["name"], d["fits"]) for d in document["drafts"]] == [
            ("Tiny-Draft-F16", True),
            ("Stranger", False),
        ]
        assert all(d["reason"].endswith(".") for d in document["drafts"])
        assert document["context_tokens"] == 4096

    def test_context_option_and_setting(self, run, two_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """--context goes before -c among the launch settings, and that before context_tokens."""

        def context(*args: str) -> int:
            return json.loads(run(drafts, "--model", "tiny-main", "--json", *args).stdout)["context_tokens"]

        monkeypatch.setenv("AUTOSPEC_CONTEXT_TOKENS", "8192")
        assert context() == 8192
        monkeypatch.setenv("AUTOSPEC_SERVER_ARGS", "-ngl 99 -c 16384")
        assert context() == 16384
        assert context("--context", "1024") == 1024
        monkeypatch.setenv("AUTOSPEC_SERVER_ARGS", "--ctx-size 0")
        assert context() == 2048, "the model's own"

    def test_a_context_too_long_for_the_machine(self, run, two_models: Path) -> None:
        """The refusal is about memory and names the context."""
        result = run(drafts, "--model", "tiny-main", "--context", str(10**12), "--json")
        (draft, _) = sorted(json.loads(result.stdout)["drafts"], key=lambda d: "memory" not in d["reason"])
        assert not draft["fits"]
        assert f"with its KV cache for {10**12} tokens" in draft["reason"]

    def test_model_outside_of_all_places(self, run, tmp_path: Path) -> None:
        """A path outside brings the drafts beside it."""
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        main = write_gguf(folder / "big.gguf", layers=40, width=64)
        write_gguf(folder / "small.gguf", layers=1)
        document = json.loads(run(drafts, "--model", str(main), "--json").stdout)
        assert [(d["name"], d["fits"]) for d in document["drafts"]] == [("small", True)]

    def test_none_fits(self, run, two_models: Path) -> None:
        """A sentence says so, and the refusals follow."""
        result = run(drafts, "--model", "tiny-draft")
        assert result.exit_code == 0
        assert result.stdout.startswith("No draft model fits Tiny-Draft-F16.")
        assert "is not smaller than the main model" in result.stdout

    def test_nothing_else_there(self, run, models_dir: Path) -> None:
        """A single model on the machine."""
        write_gguf(models_dir / "alone.gguf")
        result = run(drafts, "--model", "alone")
        assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
        assert "there is no draft model for it" in result.stdout

    @pytest.mark.parametrize(
        ("typed", "says"), [("tiny", "could be any of 2"), ("none", "No model matches none")]
    )
    def test_ambiguous_or_unknown(self, run, two_models: Path, typed: str, says: str) -> None:
        """Exit code 2, the sentence on stderr, nothing on stdout."""
        result = run(drafts, "--model", typed, "--json")
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr

    def test_a_head_is_no_main_model(self, run, models_dir: Path) -> None:
        """Exit code 2."""
        write_gguf(models_dir / "h.gguf", architecture="eagle3", keys={"eagle3.target_layers": [1, 2, 3]})
        result = run(drafts, "--model", "h")
        assert result.exit_code == 2
        assert "is a draft head (eagle3), not a main model" in result.stderr

    def test_damaged_model(self, run, models_dir: Path) -> None:
        """Exit code 1, one sentence and what to do."""
        (models_dir / "bad.gguf").write_bytes(b"GGUF")
        result = run(drafts, "--model", str(models_dir / "bad.gguf"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert "Download it again." in result.stderr

    def test_model_is_required(self, run) -> None:
        """Wrong usage is exit code 2."""
        assert run(drafts).exit_code == 2


class TestTune:
    """`autospec tune`, as far as it comes without a server."""

    def test_the_main_model_is_no_draft_for_itself(self, run, two_models: Path) -> None:
        """Said at once: a study of everything else is not what was asked for."""
        result = run(tune, "-m", "Tiny-Main", "-d", "Tiny-Main")
        assert result.exit_code == 2
        assert "is the main model itself" in result.stderr
        assert "autospec drafts" in result.stderr

    def test_a_damaged_file_is_told_once(self, run, two_models: Path) -> None:
        """The sentence about the file that was asked for, and no warning that says the same."""
        broken = two_models / "Broken.gguf"
        broken.write_bytes((two_models / "Tiny-Main-F16.gguf").read_bytes()[:2000])
        result = run(tune, "-m", str(broken))
        assert result.exit_code == 1
        assert result.stderr.count("Download it again") == 1

    def test_a_study_file_that_is_not_there(self, run, tmp_path: Path) -> None:
        """The reason in words, and what else may be given."""
        result = run(tune, "-m", "x", "--study", str(tmp_path / "none.toml"))
        assert result.exit_code == 2
        assert "Errno" not in result.stderr
        assert "quick" in result.stderr
