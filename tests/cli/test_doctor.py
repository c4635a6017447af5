"""`autospec doctor` reports what is present, what is missing, and how to fix it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from autospec.backends import binaries
from autospec.backends.protocol import Capabilities
from autospec.cells import Build, Hardware
from autospec.cli import cli
from autospec.cli.doctor import Findings, _examine_devices, _examine_gpus, _examine_state, _gpu_rows
from autospec.drafting import Mode
from autospec.errors import BackendMissingError
from autospec.hardware import identify
from autospec.hardware.gpu_reading import GpuReading
from autospec.hardware.state import MachineState
from autospec.measure.launch_scatter import LaunchComparison
from autospec.settings import load_settings
from autospec.store.database import open_store

KEYS = {
    "schema", "ok", "autospec", "python", "config_file", "hardware", "state", "gpus", "backends", "models", "storage", "daemon",
    "problems", "advice",
}  # fmt: skip

GOOD = Capabilities(
    build=Build("embedded", "b11434", "abc"),
    modes=frozenset({Mode.OFF, Mode.DRAFT_MODEL}),
    notes=("This build lacks eagle3.",),
)
MISSING = BackendMissingError("llama-server is not on PATH.", "brew install llama.cpp")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No models, no database, and a home to put them."""
    for variable in ("HOME", "HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.setenv(variable, str(tmp_path / "nobody"))
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path))
    return tmp_path


def stand_in(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any] | Exception) -> None:
    """Let the registry answer this, for what no test machine has."""

    def available(_settings: object) -> dict[str, Any]:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setitem(sys.modules, "autospec.backends.registry", SimpleNamespace(available=available))


def doctor(*args: str) -> Result:
    """Run `autospec doctor …`."""
    return CliRunner().invoke(cli, ["doctor", *args])


def examined() -> dict[str, Any]:
    """The document of `autospec doctor --json`, which must keep its schema and exit 0."""
    result = doctor("--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert set(document) == KEYS
    assert document["schema"] == 1
    assert document["ok"] is not bool(document["problems"])
    assert {"id", "chip", "memory_bytes"} <= set(document["hardware"])
    for backend in document["backends"]:
        assert {"name", "ok", "build", "modes"} <= set(backend)
        assert backend["ok"] or backend["problem"]
    for entry in document["problems"] + document["advice"]:
        assert set(entry) == {"problem", "fix"}
        assert entry["problem"]
    return document


def test_this_machine_is_examined():
    """The real thing, with the real backends and whatever they find."""
    document = examined()
    names = {backend["name"] for backend in document["backends"]}
    assert {"llama-server", "embedded"} <= names
    assert document["hardware"]["memory_bytes"] > 0
    assert document["state"]["window_s"] > 0.4


def test_a_backend_shows_build_and_modes(monkeypatch: pytest.MonkeyPatch):
    """What is there is listed with what it can do; what is missing with the line that fixes it."""
    stand_in(monkeypatch, {"embedded": GOOD, "llama-server": MISSING})
    good, missing = examined()["backends"]
    assert (good["build"], good["modes"], good["notes"]) == (
        "b11434",
        ["draft-model", "off"],
        ["This build lacks eagle3."],
    )
    assert missing["fix"] == "brew install llama.cpp"
    text = doctor().stdout
    assert "embedded b11434: draft-model, off" in text
    assert "brew install llama.cpp" in text


def test_how_much_launches_differ_is_shown_for_the_build_that_is_here(monkeypatch: pytest.MonkeyPatch):
    """What tunes on this machine compared; of another build nothing is known, of a missing backend nothing is said."""
    other = replace(GOOD, build=Build("llama-server", "b2", "def"))
    attached = replace(GOOD, build=Build("attached", "x"))
    stand_in(monkeypatch, {"embedded": GOOD, "llama-server": other, "attached": attached, "mlx": MISSING})
    unknown = "launches have not been compared yet: autospec assumes up to 3 %"
    assert [b.get("launch_scatter", {}).get("words") for b in examined()["backends"]] == [
        unknown, unknown, None, None,
    ]  # fmt: skip
    store = open_store(load_settings().storage)
    for k in range(9):
        known = LaunchComparison(at=1.0, old=f"l{k}", new=f"l{k + 1}", difference=0.01, error=0.004, pairs=8)
        store.add_launch_comparison(identify().id, GOOD.build, "main -ngl 99", known)
    store.close()
    embedded, llama_server, *_ = examined()["backends"]
    # 0.01² ÷ 2 for one launch, and the part of 0.004² ÷ 2 that nine comparisons in a row cannot take off.
    assert embedded["launch_scatter"]["sd"] == pytest.approx(0.0070, abs=0.0002)
    assert embedded["launch_scatter"]["assumed"] is False
    assert llama_server["launch_scatter"]["sd"] == 0.03
    text = " ".join(doctor().stdout.split())
    assert "embedded b11434: draft-model, off main -ngl 99: launches differ by 0.7 % (9 comparisons)" in text
    assert f"llama-server b2: draft-model, off {unknown}" in text
    # A verdict counts those of its own model, and not the nine of another one.
    store = open_store(load_settings().storage)
    store.add_launch_comparison(identify().id, GOOD.build, "other", replace(known, old="a", new="b"))
    store.close()
    assert examined()["backends"][0]["launch_scatter"]["words"] == (
        "other: too few launches have been compared yet (1 comparison): autospec assumes up to 3 %"
    )


def test_one_backend_is_enough(monkeypatch: pytest.MonkeyPatch):
    """A missing one is told but keeps nothing from running."""
    stand_in(monkeypatch, {"embedded": GOOD, "llama-server": MISSING})
    assert not any("llama-server" in p["problem"] for p in examined()["problems"])


def test_the_backend_of_the_settings_must_be_there(monkeypatch: pytest.MonkeyPatch):
    """Another one does not help somebody who asked for this one."""
    stand_in(monkeypatch, {"embedded": GOOD, "llama-server": MISSING})
    monkeypatch.setenv("AUTOSPEC_BACKEND", "llama-server")
    assert {"problem": MISSING.message, "fix": MISSING.hint} in examined()["problems"]
    monkeypatch.setenv("AUTOSPEC_BACKEND", "lama")
    assert any("lama" in p["problem"] and "embedded" in p["fix"] for p in examined()["problems"])


def test_no_backend_at_all_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    """With the line that installs one."""
    stand_in(monkeypatch, {"llama-server": MISSING})
    assert any("pip install" in p["fix"] for p in examined()["problems"])


def test_a_probe_that_fails_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch):
    """The rest is examined all the same, and the failure is told."""
    stand_in(monkeypatch, RuntimeError("boom"))
    document = examined()
    assert document["ok"] is False
    assert "boom" in json.dumps(document)
    assert document["models"]["count"] == 0


def test_no_models_is_a_problem_that_names_the_file(own_home: Path):
    """The fix says which key in which file."""
    document = examined()
    (problem,) = [p for p in document["problems"] if "No models" in p["problem"]]
    assert "model_dirs" in problem["fix"]
    assert str(own_home / "config.toml") in problem["fix"]
    assert document["ok"] is False


def test_damaged_models_are_warned_of(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """A broken file is a line, with where it lies."""
    folder = own_home / "models"
    folder.mkdir()
    (folder / "broken.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("AUTOSPEC_MODEL_DIRS", str(folder))
    warnings = examined()["models"]["warnings"]
    assert any("broken.gguf" in warning for warning in warnings)


def test_looking_makes_no_database(own_home: Path):
    """The doctor leaves no database where there was none; the hash of a probed binary may stay."""
    document = examined()
    assert document["storage"]["ok"] is True
    assert not list(own_home.rglob("*.db"))


def test_a_database_that_is_none_is_a_problem(own_home: Path):
    """A file of something else in its place is told."""
    (own_home / "state").mkdir()
    (own_home / "state/autospec.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    document = examined()
    assert document["storage"]["ok"] is False
    assert document["ok"] is False


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """Before the first tune there is only the folder to judge by."""
    locked = own_home / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setenv("AUTOSPEC_STATE_DIR", str(locked / "state"))
    assert examined()["storage"]["ok"] is False


def test_a_file_in_the_place_of_a_folder_is_a_problem(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """The same for everybody, root too."""
    (own_home / "file").write_text("x", "utf-8")
    monkeypatch.setenv("AUTOSPEC_STATE_DIR", str(own_home / "file/state"))
    assert examined()["storage"]["ok"] is False


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    """What the doctor prints is pasted into issues."""
    monkeypatch.setenv("AUTOSPEC_STORAGE", "nosuchdatabase://me:hunter2@db/x")
    result = doctor("--json")
    assert "hunter2" not in result.stdout + doctor().stdout
    assert json.loads(result.stdout)["storage"]["ok"] is False


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"on_battery": True}, "Plug it in"),
        ({"low_power": True}, "Turn it off"),
        ({"thermal": "throttled"}, "cool down"),
        ({"other_load": 1.5}, "Close other programs"),
    ],
)
def test_the_state_of_the_machine_is_advised_on(changes: dict[str, Any], fix: str):
    """Each makes measurements worse, none keeps a tune from running."""
    steady: dict[str, Any] = {
        "window_s": 0.5, "cores": 4, "other_load": 0.0, "steal": 0.0, "on_battery": False, "battery_percent": None,
        "low_power": False, "thermal": "nominal", "memory_available_bytes": 1 << 30, "swap_in_bytes": 0,
    }  # fmt: skip
    findings = Findings()
    _examine_state(findings, MachineState(**steady))
    assert findings.advice == []
    _examine_state(findings, MachineState(**(steady | changes)))
    (advice,) = findings.advice
    assert fix in advice.fix
    assert findings.problems == []


CARD = GpuReading("NVIDIA GeForce RTX 4090", 24 << 30, 23 << 30, {}, 45.0, 30.0, 450.0, 450.0, slowed=())


@pytest.mark.parametrize(
    ("reading", "advice"),
    [
        (CARD, []),
        (replace(CARD, processes={9: 1 << 30}), []),  # a desktop
        (
            replace(CARD, free_bytes=17 << 30, processes={9: 6 << 30}),
            ["Other processes hold 6.0 of 24.0 GiB of the memory of NVIDIA GeForce RTX 4090."],
        ),
        # Who may not see others' processes sees the memory in use.
        (
            replace(CARD, free_bytes=17 << 30, processes=None),
            ["Other processes hold 7.0 of 24.0 GiB of the memory of NVIDIA GeForce RTX 4090."],
        ),
        (replace(CARD, slowed=("heat",)), ["NVIDIA GeForce RTX 4090 is throttled: thermal."]),
        (
            replace(CARD, slowed=("heat", "power brake")),
            ["NVIDIA GeForce RTX 4090 is throttled: thermal, power brake."],
        ),
        (replace(CARD, slowed=None), []),
        (GpuReading("NVIDIA GPU"), []),
    ],
)
def test_what_matters_of_a_gpu_is_advised_on(reading: GpuReading, advice: list[str]):
    """Memory that others hold, and clocks that are kept low."""
    findings = Findings()
    _examine_gpus(findings, [reading])
    assert [entry.problem for entry in findings.advice] == advice
    assert all(entry.fix for entry in findings.advice)
    assert [gpu["name"] for gpu in findings.gpus] == [reading.name]


RTX = "linux 6.17", "NVIDIA GeForce RTX 3090"
M4 = "macos 26.5", "Apple M4 10-core GPU"


@pytest.mark.parametrize(
    ("here", "printed", "advised"),
    [
        (RTX, "Available devices:\n  (none)\n", True),  # its driver is too old
        (RTX, "Available devices:\n  CUDA0: NVIDIA (9 MiB, 9 MiB free)\n", False),
        (RTX, "error: invalid argument: --list-devices\n", False),
        (("linux 6.17", "Intel GPU 0x46a6"), "Available devices:\n  (none)\n", False),
        (("linux 6.17", ""), "Available devices:\n  (none)\n", False),
        (M4, "Available devices:\n  BLAS: Accelerate (0 MiB, 0 MiB free)\n", True),
        (M4, "Available devices:\n  MTL0: Apple M4 (9 MiB, 9 MiB free)\n", False),
    ],
)
def test_a_server_that_leaves_the_gpu_alone_is_said(monkeypatch, own_home, here, printed, advised):
    """Without an error it computes on the processor: an old driver, or kernels that are missing."""
    monkeypatch.setattr(binaries, "_output", lambda _binary, _flag: printed)
    program = own_home / "llama-server"
    program.touch(mode=0o755)
    findings = Findings()
    settings = SimpleNamespace(llama_server=str(program))
    _examine_devices(findings, settings, Hardware("id", "chip", 64 << 30, 8, *here))
    found = [entry.problem.split(", although")[0] for entry in findings.advice]
    assert found == ([f"{program} finds no GPU"] if advised else [])


def test_a_gpu_is_one_row():
    """With what is known of it, and a limit that is not the maker's."""
    findings = Findings()
    _examine_gpus(findings, [CARD, replace(CARD, power_limit_w=250.0), GpuReading("NVIDIA GPU")])
    assert _gpu_rows(findings.gpus, "NVIDIA GeForce RTX 4090") == [
        ("gpu", "NVIDIA GeForce RTX 4090: 23.0 of 24.0 GiB free, 45 °C, 30 W, limit 450 W"),
        (
            "",
            "NVIDIA GeForce RTX 4090: 23.0 of 24.0 GiB free, 45 °C, 30 W, limit 250 W (its default is 450 W)",
        ),
        ("", "NVIDIA GPU: nothing more is known"),
    ]
    alone = Findings()
    _examine_gpus(alone, [replace(CARD, processes=None)])
    assert _gpu_rows(alone.gpus, "")[0][1].endswith(", limit 450 W, which programs use it is unknown")


@pytest.mark.parametrize(
    ("name", "said"),
    [("2 x NVIDIA GeForce RTX 3090", True), ("AMD GPU 0x744c", True), ("Apple M4 GPU", False), ("", False)],
)
def test_a_gpu_that_nobody_can_ask_is_said_to_be_unknown(name: str, said: bool):
    """A driver without its library; a Mac has a row of its own, and some machines have no GPU."""
    assert bool(_gpu_rows([], name)) is said


def test_the_gpus_are_in_the_report(monkeypatch: pytest.MonkeyPatch):
    """In words and as JSON; a library that breaks hides nothing else."""
    stand_in(monkeypatch, {"embedded": GOOD})
    monkeypatch.setattr("autospec.hardware.gpu.read_gpus", lambda: (CARD,))
    assert [gpu["temperature_c"] for gpu in examined()["gpus"]] == [45.0]
    assert "NVIDIA GeForce RTX 4090: 23.0 of 24.0 GiB free" in " ".join(doctor().stdout.split())

    def broken():
        raise RuntimeError("the driver was updated")

    monkeypatch.setattr("autospec.hardware.gpu.read_gpus", broken)
    document = examined()
    assert document["gpus"] == []
    assert any("The GPUs cannot be read" in entry["problem"] for entry in document["problems"])


def test_the_daemons_signals_are_shown_with_their_word(own_home: Path):
    """Every one of them, unknown ones too, and whether they allow measuring."""
    checks = examined()["daemon"]
    assert [c["name"] for c in checks] == [
        "traffic", "others", "hours", "budget", "power", "heat", "idle", "load", "memory",
    ]  # fmt: skip
    assert {c["state"] for c in checks} <= {"ok", "no", "unknown"}
    assert all(c["words"] for c in checks)
    assert "  traffic: unknown, no proxy is connected" in doctor().stdout


def test_intel_programs_on_apple_silicon_are_a_problem(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """Python under Rosetta, and a llama-server of an old Homebrew."""
    stand_in(monkeypatch, {"embedded": GOOD})
    server = own_home / "llama-server"
    server.write_bytes(bytes.fromhex("cffaedfe 07000001 03000000 02000000"))
    server.chmod(0o755)
    monkeypatch.setenv("AUTOSPEC_LLAMA_SERVER", str(server))
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("autospec.hardware.identity.is_translated", lambda: True)
    problems = [problem["problem"] for problem in examined()["problems"]]
    assert any("This Python is an Intel program" in problem for problem in problems)
    assert any(problem.startswith(f"{server} is an Intel program") for problem in problems)


def test_the_limit_of_a_macs_gpu_is_shown(monkeypatch: pytest.MonkeyPatch):
    """With the command that changes it."""
    stand_in(monkeypatch, {"embedded": GOOD})
    monkeypatch.setattr("autospec.hardware.gpu.shared_limit_bytes", lambda _: 10 << 30)
    assert "the GPU may use 10.0 GiB of" in " ".join(doctor().stdout.split())
