"""`autospec bench` on real servers: the embedded backend and tiny models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from click.testing import CliRunner

from autospec.cli import cli
from autospec.hardware.processes import machine_lock
from tests.backends.installed import installed

pytest.importorskip("xllamacpp")


def run(*args):
    """One call of the command on the embedded backend."""
    return CliRunner().invoke(cli, ["bench", "--backend", "embedded", *args])


@pytest.fixture
def tiny(lab_models):
    """A model that answers at once, and is its own draft; without sense, so that only a p-min of 0 proposes."""
    return str(lab_models.tiny)


@pytest.fixture
def smollm2(lab_models):
    """A small model whose answers are long enough to draft for."""
    return str(lab_models.smollm2)


def test_json_has_every_run(tiny):
    """Off and one drafting, two runs each: raw speeds, counts, command lines, the ratio with its interval."""
    result = run(
        "-m", tiny, "-d", tiny, "--n-max", "4", "--p-min", "0", "--runs", "2", "--max-tokens", "16", "--json",
        "--", "-c", "512",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    off, drafted = document["results"]
    assert document["prompt"] == "Escreva um Palindromo em Kotlin"
    assert document["backend"] == "embedded"
    assert off["drafting"] == {"mode": "off"}
    assert (drafted["drafting"]["n_max"], drafted["drafting"]["p_min"]) == (4, 0.0)
    assert [len(r["runs"]) for r in document["results"]] == [2, 2]
    assert len({run["launch_id"] for r in document["results"] for run in r["runs"]}) == 4
    assert all(run["tps"] > 0 for r in document["results"] for run in r["runs"])
    assert not any(run["drafted"] for run in off["runs"])
    assert all(run["drafted"] > 0 for run in drafted["runs"])
    low, high = drafted["speedup_ci"]
    assert low < drafted["speedup"] < high
    assert "512" in " ".join(off["command"])
    assert not psutil.Process().children(recursive=True)


def test_the_tables_are_the_reference_benchmarks(tiny):
    """Results, raw runs, command lines and methodology on stdout; progress on stderr."""
    result = run(
        "-m", tiny, "-d", tiny, "--n-max", "2", "--p-min", "0", "--runs", "1", "--max-tokens", "8",
        "--prompt", "Hello",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    assert text.startswith("# Speculative Decoding Benchmark\n\n**Date:** ")
    assert '**Prompt:** "Hello"\n**Max Tokens:** 8\n' in text
    assert "| Model | Without Draft | With Draft | Difference |" in text
    assert len(re.findall(r"^- Run 1: \d+\.\d tok/s \(8 tokens, ", text, re.MULTILINE)) == 2
    assert text.count("```") == 4
    assert "## Methodology" in text
    assert "run 1 of 1: off" in result.stderr


def test_several_modes_in_one_launch_are_measured(tiny):
    """As a table names them; what the text leaves out is that of the other options, and equal draftings run once."""
    result = run(
        "-m", tiny, "-d", tiny, "--p-min", "0", "--runs", "1", "--max-tokens", "8", "--json",
        "--drafting", "draft-model n_max=2 + ngram-simple 4/8", "--drafting", "ngram-mod 4/8",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    off, several, single = json.loads(result.stdout)["results"]
    assert off["drafting"] == {"mode": "off"}
    assert several["drafting"] == {
        "mode": "draft-model", "draft": tiny, "n_max": 2, "n_min": 0, "p_min": 0.0,
        "parts": [
            {"mode": "draft-model", "draft": tiny, "n_max": 2, "n_min": 0, "p_min": 0.0},
            {"mode": "ngram-simple", "ngram_n": 4, "ngram_m": 8, "min_hits": 1},
        ],
    }  # fmt: skip
    assert several["runs"][0]["drafted"] > 0
    assert single["drafting"] == {"mode": "ngram-mod", "ngram_n": 4, "n_max": 8, "n_min": 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ngram", "is not a drafting mode"),
        ("ngram-simple + draft-model", "has no modes beside it"),
        ("prompt-lookup", "has no mode prompt-lookup"),
    ],
)
def test_a_drafting_that_cannot_be_is_told_before_anything_starts(tiny, text, words):
    """Neither by a mistake in its words nor by what the build has."""
    result = run("-m", tiny, "-d", tiny, "--drafting", text, "--runs", "1")
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert "run 1 of 1" not in result.stderr


def test_a_draft_that_cannot_work_is_told(smollm2, lab_models):
    """A vocabulary of another kind: one sentence, exit 1, no table."""
    result = run("-m", smollm2, "-d", str(lab_models.other_tokenizer), "--runs", "1", "--max-tokens", "8")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_without_a_draft_that_fits_nothing_starts(smollm2):
    """Exit 2, and the command that says why none fits."""
    result = run("-m", smollm2, "--runs", "1")
    assert result.exit_code == 2
    assert "autospec drafts" in result.stderr


@pytest.mark.parametrize("args", [(), ("-m", "x", "--runs", "0"), ("-m", "x", "--p-min", "2")])
def test_wrong_usage_exits_with_2(args):
    """No model, no runs, no probability."""
    assert run(*args).exit_code == 2


def test_a_machine_that_is_measured_already_is_left_alone(tiny):
    """Beside a tune it would measure that, and disturb it: exit 4 with who holds the machine."""
    with machine_lock("tune some-model"):
        result = run("-m", tiny, "-d", tiny, "--p-min", "0", "--runs", "1", "--max-tokens", "8")
    assert result.exit_code == 4
    assert "tune some-model" in result.stderr


def test_ctrl_c_stops_the_server(smollm2, tmp_path):
    """Exit 130, and no process is left."""
    command = [
        sys.executable,
        "-m",
        "autospec",
        "bench",
        "--backend",
        "embedded",
        "-m",
        smollm2,
        "-d",
        smollm2,
    ]
    with (tmp_path / "err").open("w") as err:
        bench = subprocess.Popen(
            [*command, "--max-tokens", "4000", "--", "-c", "8192"], stdout=err, stderr=err
        )
    process = psutil.Process(bench.pid)
    deadline = time.monotonic() + 60
    children = []
    while not children and time.monotonic() < deadline:
        assert bench.poll() is None, (tmp_path / "err").read_text()
        children = process.children(recursive=True)
        time.sleep(0.05)  # nothing tells when the child appears
    os.kill(bench.pid, signal.SIGINT)
    assert bench.wait(60) == 130, (tmp_path / "err").read_text()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_mlx_is_measured_by_its_own_generator(lab_models):
    """`stream_generate` without a server: its speeds, its counts, a command line that a person can repeat."""
    from autospec.backends.mlx.backend import Mlx
    from autospec.settings import load_settings

    installed(Mlx(load_settings().state_dir))
    main, draft = str(lab_models.mlx_slow_tiny), str(lab_models.mlx_tiny)
    few = ("--n-max", "3", "--runs", "1", "--max-tokens", "8", "--json")
    result = CliRunner().invoke(cli, ["bench", "-m", main, "-d", draft, *few])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    off, drafted = document["results"]
    assert document["backend"] == "mlx"
    assert drafted["drafting"] == {"mode": "draft-model", "draft": draft, "n_max": 3}
    assert drafted["command"][1:4] == ["-m", "mlx_lm", "generate"]
    assert drafted["command"][-2:] == ["--num-draft-tokens", "3"]
    (run_off,), (run_drafted,) = off["runs"], drafted["runs"]
    assert run_off["tps"] > 0
    assert (run_off["drafted"], run_off["tokens"]) == (0, 8)
    # Eight tokens in cycles of three proposals, all right, and one of the main model's.
    assert (run_drafted["drafted"], run_drafted["accepted"], run_drafted["same_text"]) == (6, 6, True)
    assert not psutil.Process().children(recursive=True)


@pytest.mark.parametrize("mlx_first", [True, False])
def test_a_draft_of_another_format_is_one_sentence(lab_models, mlx_first):
    """An MLX folder drafts for no GGUF file, nor the other way round; nothing starts."""
    models = [str(lab_models.mlx_tiny), str(lab_models.tiny)]
    main, draft = models if mlx_first else reversed(models)
    result = CliRunner().invoke(cli, ["bench", "-m", main, "-d", draft, "--runs", "1"])
    assert result.exit_code == 2
    assert "no backend runs both together" in result.stderr
    assert "Traceback" not in result.stderr
