"""`autospec recommend`: the contract, the formats and the exit codes."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from autospec.cells import PromptType
from autospec.cli import cli
from autospec.hardware import identify
from autospec.recommendations import SCHEMA, Status, Verdict
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.report.samples import ARGS, ELSEWHERE, recommendation


@pytest.fixture
def remember():
    """Store recommendations as a tune would, of this machine unless told otherwise."""

    def save(*recommendations, hardware=None):
        store = open_store(load_settings().storage)
        for r in recommendations:
            machine = hardware or identify()
            store.save_recommendation(r, machine, f"{r.model[:20]}{r.prompt_type}{r.backend}{machine.id[:6]}")
        store.close()

    return save


def run(*args):
    """One call of the command."""
    return CliRunner().invoke(cli, ["recommend", *args])


@pytest.mark.parametrize("flag", [("--json",), ("--format", "json")])
def test_json_is_the_contracts_document(remember, flag):
    """Valid against the schema, with this machine's hardware, and nothing else on stdout."""
    remember(recommendation(), recommendation(Verdict.DISABLE, prompt_type=PromptType.WRITING))
    result = run(*flag)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["hardware"]["id"] == identify().id
    assert [(r["prompt_type"], r["drafting"]["mode"]) for r in document["recommendations"]] == [
        ("coding", "draft-model"),
        ("writing", "off"),
    ]
    assert document["recommendations"][1]["tried"]["n_max"] == 8


def test_nothing_known_exits_with_3(autospec_home):
    """One sentence, the command that would find out, an empty stdout, and no database made by asking."""
    result = run("--json")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "autospec tune --model MODEL" in result.stderr
    assert not autospec_home.exists()


def test_an_unknown_model_exits_with_3(remember):
    """The hint has the name that was asked for."""
    remember(recommendation())
    result = run("--model", "llama-70b")
    assert result.exit_code == 3
    assert "autospec tune --model llama-70b" in result.stderr


def test_an_ambiguous_model_exits_with_2(remember):
    """It lists what it could be."""
    remember(recommendation(model="Qwen-4B"), recommendation(model="Qwen-8B"))
    result = run("--model", "qwen")
    assert result.exit_code == 2
    assert "qwen could be any of 2 models:\n  Qwen-4B\n  Qwen-8B\n" in result.stderr


@pytest.mark.parametrize(
    "args", [("--prompt-type", "poems"), ("--format", "xml"), ("--json", "--format", "args")]
)
def test_wrong_usage_exits_with_2(remember, args):
    """Prompt types and formats that do not exist, and two formats at once."""
    remember(recommendation())
    assert run(*args).exit_code == 2


def test_the_table_is_for_people(remember):
    """It is the default."""
    remember(recommendation())
    result = run()
    assert result.exit_code == 0
    assert "+30.6 %" in result.stdout


def test_args_are_ready_to_paste(remember):
    """A shell splits them into the flags of the tuned build."""
    remember(recommendation(evidence={"args": [*ARGS, "--name", "two words"]}))
    result = run("-m", "main", "-f", "args")
    assert shlex.split(result.stdout) == [*ARGS, "--name", "two words"]


def test_args_of_off_are_an_empty_line(remember):
    """Nothing to paste; the note goes to stderr."""
    remember(recommendation(Verdict.DISABLE))
    result = run("-f", "args")
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert "off: start the server without drafting flags" in result.stderr


def test_args_of_what_is_likely_are_off_and_say_so(remember):
    """Nothing is piped into a server that is not proven; the line for people is on stderr."""
    likely = {"speedup": 1.72, "interval": [1.5, 1.9], "chance": 0.99, "about_s": 240}
    remember(recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, evidence={"likely": likely}))
    result = run("--format", "args")
    assert result.stdout == "\n"
    assert "is likely, +72 %, about 4 more minutes would prove it" in result.stderr
    found = json.loads(run("--json").stdout)["recommendations"][0]
    assert (found["verdict"], found["drafting"], found["tried"]["mode"]) == (
        "undecided",
        {"mode": "off"},
        "draft-model",
    )
    assert found["evidence"]["likely"] == likely


def test_one_row_of_a_newer_version_leaves_the_others(remember):
    """It is left out with a warning; before, the command ended with a traceback."""
    remember(recommendation(), recommendation(prompt_type=PromptType.WRITING))
    store = open_store(load_settings().storage)
    newer = recommendation(Verdict.DISABLE, prompt_type=PromptType.MATH)
    store.save_recommendation(newer, identify(), "newer")
    with store._engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE autospec_recommendations SET recommendation = replace(recommendation, 'draft-model', 'mtp-adaptive')"
            " WHERE cell_key = 'newer'"
        )
    store.close()
    result = run("--json")
    assert result.exit_code == 0
    assert [r["prompt_type"] for r in json.loads(result.stdout)["recommendations"]] == ["coding", "writing"]
    assert "does not understand 1 recommendation in the database" in result.stderr


def test_args_that_differ_ask_for_the_prompt_type(remember):
    """Exit 2 with what each kind of prompt wants; with the choice made, its flags."""
    remember(recommendation(), recommendation(Verdict.DISABLE, prompt_type=PromptType.WRITING))
    result = run("-f", "args")
    assert result.exit_code == 2
    assert "writing: off" in result.stderr
    assert run("-f", "args", "-t", "coding").stdout == shlex.join(ARGS) + "\n"


def test_llama_swap_is_yaml(remember):
    """With a command for each kind of prompt."""
    remember(recommendation())
    models = yaml.safe_load(run("-f", "llama-swap").stdout)["models"]
    assert "--spec-draft-n-max 8" in models["Main-7B-Q4_K_M-coding"]["cmd"]


def test_what_is_left_out_of_a_preset_is_a_warning(remember):
    """On stderr, and the rest is printed."""
    remember(recommendation(), recommendation(Verdict.DISABLE, model="Other", backend="mlx"))
    result = run("-f", "preset")
    assert result.exit_code == 0
    assert "[Main-7B-Q4_K_M-coding]" in result.stdout
    assert "Other (coding on mlx) is left out" in result.stderr


def test_another_machines_record_is_labelled(remember):
    """Nothing known here: what was imported answers, and a warning says whose it is."""
    remember(recommendation(Verdict.DISABLE, status=Status.IMPORTED), hardware=ELSEWHERE)
    result = run("--json")
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["hardware"]["id"] == ELSEWHERE.id
    assert ELSEWHERE.id in result.stderr


def test_another_machines_drafting_is_not_piped_into_a_server(remember):
    """Its flags are given only when that machine is named."""
    remember(recommendation(status=Status.IMPORTED), hardware=ELSEWHERE)
    result = run("-f", "args")
    assert (result.exit_code, result.stdout) == (3, "")
    assert run("-f", "args", "--hardware", ELSEWHERE.id).stdout == shlex.join(ARGS) + "\n"


def test_the_founding_record_says_off_for_all_its_pairs():
    """Import it and ask: off everywhere, valid against the contract."""
    assert CliRunner().invoke(cli, ["studies", "import", "m2-ultra-2025-12-13"]).exit_code == 0
    document = json.loads(run("--json", "--all-hardware").stdout)
    jsonschema.validate(document, SCHEMA)
    assert [r["drafting"] for r in document["recommendations"]] == [{"mode": "off"}] * 3
    assert {r["status"] for r in document["recommendations"]} == {"imported"}
    assert run("--model", "Qwen3-Coder-30B-A3B").exit_code == 0


def test_a_damaged_database_is_one_sentence(autospec_home):
    """Exit 1, without a traceback."""
    path = autospec_home / "state" / "autospec.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 200)
    result = run()
    assert result.exit_code == 1
    assert "damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_preset_is_written_into_a_file_and_written_once(remember, tmp_path):
    """What it did goes to stderr; saying the same again touches nothing."""
    remember(recommendation())
    file = tmp_path / "new folder" / "models.ini"
    first = run("-f", "preset", "-o", str(file))
    assert (first.exit_code, first.stdout) == (0, "")
    assert "Wrote 1 entry" in first.stderr
    written = file.stat().st_mtime_ns
    assert "is up to date" in run("-f", "preset", "-o", str(file)).stderr
    assert file.stat().st_mtime_ns == written


def test_only_files_that_others_read_are_written(remember, tmp_path):
    """Flags and JSON go through the shell's >."""
    remember(recommendation())
    assert run("-f", "args", "-o", str(tmp_path / "x")).exit_code == 2


def test_a_file_that_cannot_be_changed_safely_stays(remember, tmp_path):
    """Exit 1 with the reason, and not a byte of it changed."""
    remember(recommendation())
    file = tmp_path / "config.yaml"
    file.write_text("models: [not, a, mapping]\n")
    result = run("-f", "llama-swap", "-o", str(file))
    assert result.exit_code == 1
    assert "is unchanged" in result.stderr
    assert file.read_text() == "models: [not, a, mapping]\n"


def test_mlx_is_a_command_line(remember):
    """Ready for a shell."""
    args = ["--draft-model", "/m/a draft", "--num-draft-tokens", "4"]
    remember(recommendation(backend="mlx", model_path="/m/main", evidence={"args": args, "settings": []}))
    words = shlex.split(run("-f", "mlx").stdout)
    assert words == ["mlx_lm.server", "--model", "/m/main", *args]


@pytest.mark.parametrize("form", ["json", "args", "preset", "llama-swap"])
def test_nothing_heavy_is_imported(remember, form):
    """No SQLAlchemy, Optuna, NumPy, httpx or rich for what programs read."""
    remember(recommendation())
    code = (
        "import sys; from autospec.cli import cli\n"
        f"try: cli.main(['recommend', '--format', {form!r}])\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'sqlalchemy', 'optuna', 'numpy', 'scipy', 'httpx', 'rich', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_router_accepts_the_preset(remember, tmp_path, llama_server_binary, lab_models):
    """llama-server lists every section as a model, with the flags of its drafting."""
    path = str(lab_models.smollm2)
    args = ["--spec-type", "draft-simple", "--spec-draft-model", path, "--spec-draft-n-max", "4"]
    args += ["--spec-draft-n-min", "0", "--spec-draft-p-min", "0.6"]
    evidence = {"args": args, "settings": ["-c", "512", "--no-warmup", "--jinja", "--temp", "0.0"]}
    remember(
        recommendation(model="SmolLM2", model_path=path, evidence=evidence),
        recommendation(
            Verdict.DISABLE, model="SmolLM2", model_path=path, prompt_type=PromptType.MATH, evidence=evidence
        ),
    )
    preset = tmp_path / "models.ini"
    # Somebody else's file, without the reserved key, with Windows' line ends and a section of its own.
    preset.write_bytes(f"; mine\r\n[mine]\r\nmodel = {path}\r\nc = 256\r\n".encode())
    assert run("-f", "preset", "-o", str(preset)).exit_code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "router.log"
    with log.open("w") as out:
        router = subprocess.Popen(
            [llama_server_binary, "--models-preset", preset, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            models = _models(router, port, log)
        finally:
            router.terminate()
            router.wait(10)
    listed = {m["id"]: m["status"]["args"] for m in models if m["id"].startswith(("SmolLM2", "mine"))}
    assert set(listed) == {"SmolLM2-coding", "SmolLM2-math", "mine"}
    assert listed["mine"][listed["mine"].index("--ctx-size") + 1] == "256"
    coding = listed["SmolLM2-coding"]
    assert coding[coding.index("--spec-draft-n-max") + 1] == "4"
    assert {"--no-warmup", "--jinja"} <= set(coding)
    assert "--spec-type" not in listed["SmolLM2-math"]


def _models(router, port, log):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert router.poll() is None, log.read_text()
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/models", timeout=5) as answer,
        ):
            return json.load(answer)["data"]
        time.sleep(0.1)  # the router has no other sign of being ready
    raise AssertionError(log.read_text())
