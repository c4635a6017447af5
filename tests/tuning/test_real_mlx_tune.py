"""`autospec tune` and `explain` on an MLX folder, as processes: predicted, proven, explained, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autospec.backends.mlx.backend import Mlx
from tests.backends.installed import installed
from tests.small_suite import questions, write_suite
from tests.tuning.test_real_tune import servers

STUDY = """
name = "test"
summary = "For tests."
[measure]
max_tokens = 12
[space]
modes = ["draft-model"]
drafts = 2
n_max = [1, 8]
p_min = [0.0, 0.9]
ngram_n = [3, 6]
ngram_m = [8, 16]
[search]
predict = true
sampler = "tpe"
trials = 2
patience = 2
prompts = 1
seed = 1
[prove]
threshold = 0.02
worth_proving = 0.05
error_rate = 0.01
looks = [1, 2, 4]
[budget]
time = "3m"
search_share = 0.5
"""
DEADLINE_S = 400.0


@pytest.fixture
def arguments(tmp_path: Path, lab_models) -> list[str]:
    """Main model, two drafts, study and suite; skips where there is no MLX."""
    installed(Mlx(tmp_path / "state"))
    (tmp_path / "test.toml").write_text(STUDY, encoding="utf-8")
    write_suite(tmp_path / "suite.jsonl", questions(), max_tokens=12)
    drafts = ("--draft", str(lab_models.mlx_tiny), "--draft", str(lab_models.mlx_noisy_draft))
    files = ("--study", str(tmp_path / "test.toml"), "--suite", str(tmp_path / "suite.jsonl"))
    return ["--model", str(lab_models.mlx_slow_tiny), *drafts, *files]


def autospec(*arguments: str) -> dict:
    """One command's document."""
    done = subprocess.run(
        [sys.executable, "-m", "autospec", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_tune_on_an_mlx_folder_is_predicted_and_proven(arguments):
    """Every number of tokens is predicted from one reading of each draft, and the verdict rests on launches."""
    (entry,) = autospec("tune", *arguments)["recommendations"]
    assert entry["backend"] == "mlx"
    assert entry["verdict"] in {"enable", "disable", "undecided"}
    assert entry["pairs"] >= 2
    evidence = entry["evidence"]
    # The same text, whatever drafts.
    assert evidence["compared_texts"] == evidence["same_text"] == entry["pairs"]
    prediction = evidence["prediction"]
    checks = [c for c in prediction["checks"] if c["drafting"]["draft"] == entry["tried"]["draft"]]
    assert prediction["trusted"] is all(c["agrees"] for c in checks)
    assert prediction["expected"] > 0
    assert len(prediction["verify_ms"]) >= 2
    assert prediction["step_ms"] > 0
    assert prediction["acceptance_by_position"]
    assert evidence["idle_draft"]["pairs"] >= 1
    assert servers(os.environ["AUTOSPEC_HOME"]) == []
    model = arguments[arguments.index("--model") + 1]
    words = json.dumps(autospec("explain", "--model", model))
    assert "Keeping the draft model loaded but unused" in words
    assert "p_min" not in json.dumps(entry["drafting"])
