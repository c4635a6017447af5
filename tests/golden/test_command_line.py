"""Every `--json` document of the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from autospec.cli import cli
from autospec.hardware import bandwidth
from autospec.hardware.bandwidth import Speeds
from tests.catalog.making import write_gguf
from tests.golden.conftest import RECORD, SYSTEM_PATH, run
from tests.golden.golden import check_json, normalized, shape
from tests.small_suite import questions, write_suite

# The words of a command, the copy's name; on the home that knows what 31c5bcf measured.
DOCUMENTS = {
    "recommend": "recommend --json",
    "recommend-one": "recommend --json --model main --prompt-type coding --backend llama-server",
    "explain": "explain --json --model main",
    "studies-list": "studies list --json",
    "studies-show": "studies show main coding --json",
    "studies-show-record": f"studies show {RECORD} --json",
    "studies-import": f"studies import {RECORD} --json",
    "studies-export-to-a-file": "studies export --json -o {folder}/export.json",
    "models": "models --json",
    "drafts": "drafts --model main --json",
    "config-path": "config path --json",
    "config-check": "config check --json",
    "config-template": "config show --template --json",
}
# Commands whose documents are held elsewhere.
ELSEWHERE = {
    "config show": "test_settings.py",
    "studies export": "test_exports.py",
    "proxy": "test_proxy.py, program.json",
    "studies dashboard": "tests/cli/test_studies_dashboard.py: it serves until Ctrl-C",
    "completion": "tests/cli/test_config_completion.py: the script is click's",
}
STUDY = """
name = "golden"
summary = "For the golden copies."
[measure]
max_tokens = 8
[space]
modes = ["draft-model"]
drafts = 1
n_max = [4, 8]
p_min = [0.0, 0.0]
ngram_n = [3, 6]
ngram_m = [8, 16]
[search]
predict = false
sampler = "random"
trials = 1
patience = 1
prompts = 1
seed = 1
[prove]
prompts = 2
threshold = 0.02
worth_proving = 0.05
error_rate = 0.01
looks = [1]
[budget]
time = "30s"
search_share = 0.5
"""
GIVEN = Speeds(1e10, 1e11, 1e-5, 2e-5, overlaps=False, source="measured", words="In a test.")
# Of the machine's state.
MAY_BE_NULL = (
    "battery_percent",
    "cpu_energy_j",
    "gpu_energy_j",
    "gpu_heat",
    "gpu_other_load",
    "gpu_other_memory_bytes",
    "gpu_power_limit_w",
    "low_power",
    "on_battery",
    "throttles",
)
SYSTEMCTL = """\
#!/bin/sh
unit="$XDG_CONFIG_HOME/systemd/user/autospec.service"
case "$*" in
  *restart*|*" start "*) echo active > "$FAKE";;
  *disable*|*" stop "*) echo inactive > "$FAKE";;
  *show*autospec.service*) [ -e "$unit" ] || { echo LoadState=not-found; exit 0; }
    printf 'LoadState=loaded\\nActiveState=%s\\nMainPID=42\\nUnitFileState=enabled\\n' "$(cat "$FAKE")";;
esac
"""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_what_it_was(known, name):
    """Its keys, and its values where they are no machine's and no sentence."""
    words = DOCUMENTS[name].format(folder=known.folder).split()
    check_json(f"cli/{name}.json", known.document(run(*words)))


@pytest.mark.process
def test_doctor(known, monkeypatch):
    """Keys and kinds of values: all of it is this machine's. One backend that is here, one that never is."""
    monkeypatch.setenv("AUTOSPEC_BACKEND", "nosuch")
    document = json.loads(run("doctor", "--json").stdout)
    backends = {backend["name"]: backend for backend in document["backends"]}
    assert [backends["llama-server"]["ok"], backends["attached"]["ok"]] == [True, False]
    assert document["problems"], "the backend that is asked for is not told as a problem"
    for entry in document["advice"]:
        assert entry.keys() == document["problems"][0].keys()
    held = shape(document) | {
        "backends": {
            name: shape(backends[name]) | {"notes": "<texts>"} for name in ("llama-server", "attached")
        },
        "daemon": _checks(document["daemon"]),
        "advice": "<as problems>",
        "gpus": "<one entry per GPU, whose keys tests/hardware/test_gpu_reading.py holds>",
    }
    held["backends"]["attached"].pop("notes")
    held["models"]["warnings"] = "<texts>"
    for key in MAY_BE_NULL:
        assert key in held["state"]
        held["state"][key] = "<null where it is not known>"
    check_json("cli/doctor.json", held)


@pytest.mark.process  # in a home of its own, Matplotlib asks fontconfig for fonts once
def test_report(known):
    """Where the page is, and what it is of; its size depends on the versions of what draws it."""
    document = known.document(run("report", "--json", "-o", f"{known.folder}/report.html"))
    check_json("cli/report.json", document | {"bytes": shape(document["bytes"])})


@pytest.mark.process
def test_estimate(place, monkeypatch):
    """Keys and kinds of values: all of them are this machine's. Nothing is measured for it."""
    monkeypatch.setattr(bandwidth, "measure", lambda _: GIVEN)
    monkeypatch.setattr("autospec.hardware.gpu.devices_here", lambda _: ())
    document = place.document(run("estimate", "--json", "--model", "main"))
    [model] = document["models"]
    assert [d["mode"] for d in model["drafts"]] == ["ngram-simple", "draft-model"]
    check_json("cli/estimate.json", shape(document))


@pytest.mark.process
def test_drafts_suggest(place, monkeypatch):
    """Keys of a suggestion; the table itself grows and is no part of the copy."""
    write_gguf(place.folder / "Qwen3-32B-F16.gguf", architecture="qwen3", layers=60, width=64)
    monkeypatch.setenv("AUTOSPEC_MODEL_DIRS", str(place.folder))
    document = place.document(run("drafts", "--suggest", "--json", "--model", "qwen3-32b"))
    check_json("cli/drafts-suggest.json", shape(document))


@pytest.mark.process
def test_bench(place):
    """Keys and kinds of values; the command lines as they are."""
    words = "bench --json --model main --draft main-draft --n-max 4 --runs 2 --max-tokens 8 --prompt Hello -- -c 512"
    document = place.document(run(*words.split()))
    check_json("cli/bench.json", _without_speeds(document))


@pytest.mark.process
def test_tune(place):
    """Keys and kinds of values, the evidence's among them; which verdict it is, the stand-in does not decide."""
    (place.folder / "study.toml").write_text(STUDY, encoding="utf-8")
    write_suite(place.folder / "suite.jsonl", questions(), max_tokens=8)
    words = (
        "tune",
        "--json",
        "-m",
        "main",
        "-d",
        "main-draft",
        "-t",
        "qa",
        "--study",
        f"{place.folder}/study.toml",
    )
    result = run(*words, "--suite", f"{place.folder}/suite.jsonl", "--", "-ngl", "99")
    assert result.exit_code == 0, (result.stderr, result.exception)
    document = json.loads(result.stdout)
    [found] = document["recommendations"]
    # Decided by how fast the stand-in happened to answer.
    found["evidence"].pop("likely", None)
    [together] = document["overall"]
    for name in ("slows", "looks"):
        assert isinstance(together["evidence"].pop(name), list)
    for entry in together["evidence"]["types"]:
        entry.pop("own")
    held = shape(document)
    for answer in (held["recommendations"][0], held["overall"][0]):
        answer |= {"drafting": "<drafting>", "speedup_ci": "<two numbers or nulls>"}
    assert len(found["speedup_ci"]) == len(together["speedup_ci"]) == 2
    check_json("cli/tune.json", held)


def test_daemon(known, this_machine, monkeypatch):
    """Its status, what it says at its end, and what it gives to the user's hook (`on_change`)."""
    told = known.folder / "told.json"
    # Told nothing so far: everything is new.
    (known.home / "state" / "announced.json").write_text("[]", encoding="utf-8")
    hook = known.folder / "hook"
    hook.write_text(f'#!/bin/sh\ncat > "{told}.part" && mv "{told}.part" "{told}"\n')
    hook.chmod(0o755)
    monkeypatch.setenv("AUTOSPEC_ON_CHANGE", str(hook))
    # Half a day from now, so that it does not begin to measure.
    hour = (time.localtime().tm_hour + 12) % 24
    monkeypatch.setenv("AUTOSPEC_DAEMON_HOURS", f"{hour:02}:00-{hour:02}:30")
    status: dict[str, Any] = {}
    command = [sys.executable, "-m", "autospec", "daemon", "--no-proxy", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=known.folder) as daemon:
        try:
            deadline = time.monotonic() + 60
            while not (status.get("checks") and status.get("queue") and told.exists()):
                assert daemon.poll() is None, "the daemon ended"
                assert time.monotonic() < deadline, f"not everything was told: {status}"
                time.sleep(0.1)
                status = json.loads(run("daemon", "--status", "--json").stdout or "{}")
            daemon.send_signal(signal.SIGTERM)
            last = json.loads(daemon.communicate(timeout=60)[0])
        finally:
            daemon.kill()
    changes = normalized(json.loads(told.read_text("utf-8")), {**known.names, this_machine["id"]: "<id>"})
    changes["changes"].sort(key=lambda c: (c["model"], c["prompt_type"]))
    held = shape(status) | {"checks": _checks(status["checks"]), "later": "<reason by cell>"}
    held |= {"notes": "<texts>", "trouble": "<texts>"}
    check_json("cli/daemon.json", {"status": held, "last words": shape(last), "on_change": changes})


def _checks(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """The names of the daemon's checks, and the keys that all of them have."""
    [kind] = shape(checks)
    return {"names": [one["name"] for one in checks], "each": kind}


@pytest.fixture
def installed(place, monkeypatch):
    """An installed autospec, programs in place of the system's, and a user who is not root."""
    programs = place.folder / "bin"
    programs.mkdir()
    for name, text in {
        "systemctl": SYSTEMCTL,
        "launchctl": '#!/bin/sh\n[ "$*" = "print gui/501" ] || exit 113\n',
        "journalctl": "#!/bin/sh\necho one; echo two\n",
        "loginctl": "#!/bin/sh\necho yes\n",
        "autospec": "#!/bin/sh\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(place.folder / "active"))
    monkeypatch.setenv("PATH", f"{programs}:{SYSTEM_PATH}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.folder / "config"))
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return place


def test_service_of_linux(installed, monkeypatch):
    """Every action's document, the unit's file among them."""
    monkeypatch.setattr(sys, "platform", "linux")
    said: dict[str, Any] = {}
    for name, words in {
        "status before": "status",
        "install --dry-run": "install --dry-run",
        "install": "install",
        "status": "status",
        "stop": "stop",
        "start": "start",
        "logs": "logs",
        "uninstall": "uninstall",
    }.items():
        said[name] = installed.document(run("service", *words.split(), "--json"))
    lines = said["install --dry-run"]["text"].splitlines()
    said["install --dry-run"]["text"] = [
        re.sub("^Description=.*", "Description=<text>", line)
        for line in lines
        if line and not line.startswith("#")
    ]
    check_json("cli/service-linux.json", said)


def test_service_of_macos(installed, monkeypatch):
    """The launch agent's file and the commands."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "getuid", lambda: 501)
    start, programs = subprocess.run, installed.folder / "bin"
    # It is asked for by its path.
    monkeypatch.setattr(
        subprocess, "run", lambda argv, **more: start([f"{programs}/{Path(argv[0]).name}", *argv[1:]], **more)
    )
    document = installed.document(run("service", "install", "--dry-run", "--json"))
    text = re.sub("<!--.*?-->", "", document["text"], flags=re.DOTALL)
    document["text"] = [line.strip() for line in text.splitlines() if line.strip()]
    check_json("cli/service-macos.json", document)


def test_options():
    """What can be typed: options and arguments of every command."""
    held = {}
    for path, command in _commands(cli, ()):
        held[" ".join(path)] = {
            "options": sorted(
                word
                for parameter in command.params
                if isinstance(parameter, click.Option)
                for word in (*parameter.opts, *parameter.secondary_opts)
            ),
            "arguments": [p.human_readable_name for p in command.params if isinstance(p, click.Argument)],
            "choices": {
                p.opts[0]: list(p.type.choices) for p in command.params if isinstance(p.type, click.Choice)
            },
        }
    check_json("cli/options.json", held)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("config check", 0),
        ("recommend --json", 3),
        ("explain --model main --json", 3),
        ("studies show nosuch --json", 3),
        ("studies export", 3),
        ("daemon --status --json", 3),
        ("drafts --model nosuch --json", 2),
        ("recommend --json --format args", 2),
        ("models --nosuch", 2),
        ("nosuch", 2),
        ("studies export -o {folder}/no/such/file", 3),
    ],
)
def test_exit_codes(place, words, code):
    """Of an empty home; nothing on stdout where it failed."""
    result = run(*words.format(folder=place.folder).split())
    assert result.exit_code == code
    assert code == 0 or not result.stdout


def test_every_command_with_a_document_is_held():
    """A new command gets a copy, or stands in a list with the reason."""
    held = {
        " ".join(words.split()[:2]).removesuffix(" --json").removesuffix(" --model")
        for words in DOCUMENTS.values()
    }
    held |= {"doctor", "report", "bench", "tune", "daemon", "estimate"} | {
        f"service {action}" for action in ("install", "uninstall", "start", "stop", "status", "logs")
    }
    with_json = {
        " ".join(path)
        for path, command in _commands(cli, ())
        if "--json" in {option for parameter in command.params for option in parameter.opts}
    }
    assert with_json == held | ELSEWHERE.keys()


def _commands(command: click.Command, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    found = ((name, command.get_command(context, name)) for name in command.list_commands(context))
    return [inner for name, one in found if one is not None for inner in _commands(one, (*path, name))]


def _without_speeds(bench: dict[str, Any]) -> dict[str, Any]:
    return {
        **bench,
        "results": [
            {**shape(r), "command": r["command"], "drafting": r["drafting"]} for r in bench["results"]
        ],
    }
