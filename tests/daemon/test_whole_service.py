"""`autospec daemon` with its proxy, real servers and a client: what happens on a machine that is left alone.

Traffic that starts and stops, a draft that appears, a backend whose build changes, a machine that gets busy: no request
fails, and the daemon says what it does and why.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from autospec.cells import PromptType
from autospec.hardware import identify
from autospec.recommendations import Status, Verdict
from autospec.settings import load_settings
from autospec.store.database import open_store
from autospec.store.reader import read_recommendations
from tests.daemon.hooked import ROOT, calm
from tests.daemon.test_real_daemon import status, until
from tests.report.samples import recommendation
from tests.small_suite import questions, write_suite
from tests.tuning.test_real_tune import STUDY

QUESTIONS = ("Count to ten.", "Name colours.", "Say one two three.", "Name the days.")
ANSWER_S = 90.0


@dataclass
class Service:
    """A home, and the daemon and proxy that run in it."""

    home: Path
    port: int
    main: str

    @contextlib.contextmanager
    def running(self, module: str = "tests.daemon.quiet_daemon", *options: str) -> Iterator[subprocess.Popen]:
        """Daemon and proxy; neither outlives the test."""
        with (self.home / "said").open("ab") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", *module.split(), *options], stdout=said, stderr=said, cwd=ROOT
            )
        try:
            yield child
        finally:
            below = _below(child.pid)
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(20)
            child.kill()
            child.wait()
            for process in below:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def ask(self, text: str = "What is the capital of France?") -> httpx.Response:
        """A request of a client; every one must be answered."""
        body = {
            "model": self.main,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 8,
            "temperature": 0,
        }
        answer = httpx.post(
            f"{self.address}/v1/chat/completions", json=body, timeout=ANSWER_S, trust_env=False
        )
        assert answer.status_code == HTTPStatus.OK, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        return answer

    @property
    def address(self) -> str:
        """Of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> dict[str, Any]:
        """One of the proxy's own documents."""
        document: dict[str, Any] = httpx.get(self.address + path, timeout=10.0, trust_env=False).json()
        return document

    def is_up(self) -> bool:
        """Whether the proxy answers."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.address}/health", timeout=5.0, trust_env=False).is_success
        return False

    def events(self) -> str:
        """What the daemon says that happened."""
        return "\n".join(event["what"] for event in status(self.home).get("events", []))

    def stored(self) -> list[Status]:
        """Status of what is recommended for the main model."""
        found = read_recommendations(load_settings().storage)
        return [s.recommendation.status for s in found if s.recommendation.model == self.main]

    def said(self, *words: str) -> str:
        """What a command of autospec prints."""
        command = [sys.executable, "-m", "autospec", *words]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        print(said)  # noqa: T201 - pytest shows it when a test fails
        return said


def _below(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


@pytest.fixture
def service(autospec_home: Path, lab_models, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A home with one model and no draft, on the embedded backend."""
    monkeypatch.setenv("HOME", str(autospec_home))
    for name, value in calm(os.environ).items():
        monkeypatch.setenv(name, value)
    (autospec_home / "models").mkdir(parents=True)
    main = lab_models.smollm2
    (autospec_home / "models" / main.name).symlink_to(main)
    (autospec_home / "study.toml").write_text(STUDY, encoding="utf-8")
    write_suite(autospec_home / "suite.jsonl", questions(QUESTIONS), max_tokens=16)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (autospec_home / "config.toml").write_text(
        'model_dirs = ["models"]\nbackend = "embedded"\nstudy = "study.toml"\nsuite = "suite.jsonl"\n'
        f'daemon_idle = "2s"\ndaemon_step = "60s"\nproxy_port = {port}\n',
        encoding="utf-8",
    )
    return Service(autospec_home, port, main.stem)


@pytest.mark.slow
def test_traffic_that_comes_and_goes_and_a_draft_that_appears(service: Service, lab_models):
    """Tuned between requests, interrupted by one, proven, and stale with its reason once there is a draft."""
    with service.running():
        until(service.is_up, "the proxy")
        assert service.ask().headers["x-autospec-drafting"] == "off"
        until(lambda: status(service.home).get("state") == "tuning", "a step in the pause")
        stops = service.events().count("a request arrived")
        service.ask()
        until(lambda: service.events().count("a request arrived") > stops, "the end of the step", 5.0)
        words = service.said("daemon", "--status")
        assert "1 proxy is connected, idle." in words
        assert service.get("/autospec/v1/status")["proxy"]["daemon"]["event"] in (
            "resting",
            "yielded",
            "tuning",
        )
        assert re.search(r"Stopped tuning \S+, qa after \d+ s: a request arrived\.", words), words
        until(lambda: service.stored() == [Status.PROVEN], "the proof")
        service.ask()

        draft = lab_models.tiny
        (service.home / "models" / draft.name).symlink_to(draft)
        service.ask()
        until(lambda: "now fits as a draft" in service.events(), "the new draft", 90.0)
        (entry,) = service.get("/autospec/v1/recommendations")["recommendations"]
        assert entry["status"] == "stale" or "renewing" in entry["evidence"]
        assert draft.stem in entry["evidence"]["stale_reason"]
        assert service.ask().headers["x-autospec-prompt-type"]


@pytest.mark.slow
def test_a_build_that_changes(service: Service, llama_server_binary: Path):
    """The old proof is served on, marked stale with both builds' names, and requests go to the new build."""
    program = service.home / "llama-server"
    _wrap(program, llama_server_binary, 11434)
    config = service.home / "config.toml"
    # Nothing is to be measured meanwhile: hours that allow two minutes after midnight.
    config.write_text(
        config.read_text(encoding="utf-8").replace('"embedded"', '"llama-server"')
        + f'llama_server = "{program}"\ndaemon_hours = "00:00-00:01,00:02-00:03"\n',
        encoding="utf-8",
    )
    with service.running():
        until(service.is_up, "the proxy")
        service.ask()
        _prove(service, _build(service))
        service.ask()
        _wrap(program, llama_server_binary, 12000)
        service.ask()
        until(lambda: "build changed" in service.events(), "the new build", 90.0)
        assert re.search(r"the backend's build changed from b11434\S* to b12000", service.events())
        (entry,) = service.get("/autospec/v1/recommendations")["recommendations"]
        assert (entry["status"], entry["verdict"]) == ("stale", "disable")
        words = " ".join(service.said("recommend", "--model", service.main).split())
        assert "stale, because the backend's build changed" in words
        service.ask()


@pytest.mark.slow
def test_a_machine_that_gets_busy(service: Service, lab_models, monkeypatch: pytest.MonkeyPatch):
    """It does not measure, and says that others use the processor; requests are answered all the same."""
    (service.home / "models" / lab_models.tiny.name).symlink_to(lab_models.tiny)
    monkeypatch.delenv("AUTOSPEC_TEST_CALM")
    with _burners(), service.running("autospec daemon"):
        until(service.is_up, "the proxy")
        # The first looks may have another reason: the load needs two of them, and the start counts as an input.
        busy = re.compile(r"is resting.*Reason: other programs use \d+\.\d of \d+ cores\.", re.DOTALL)
        until(
            lambda: busy.search(service.said("daemon", "--status")), "rest because of the load", every_s=1.0
        )
        (load,) = (check for check in status(service.home)["checks"] if check["name"] == "load")
        assert (load["state"], load["allows"]) == ("no", False)
        service.ask()


@contextlib.contextmanager
def _burners() -> Iterator[None]:
    """Somebody who compiles: half of the cores, one at least."""
    program = [sys.executable, "-I", "-S", "-c", "while True: pass"]
    burners = [subprocess.Popen(program) for _ in range(max(1, (os.cpu_count() or 1) // 2))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _wrap(program: Path, real: Path, version: int) -> None:
    """A llama-server of this version, put in place of the old one as an upgrade does."""
    part = program.with_suffix(".part")
    part.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--version*) echo "version: {version} (abcdef12)" >&2; exit 0;; esac\n'
        f'exec "{real}" "$@"\n',
        encoding="utf-8",
    )
    part.chmod(0o755)
    part.replace(program)


def _build(service: Service) -> str:
    (model,) = service.get("/autospec/v1/plan")["models"]
    return str(model["backend_build"])


def _prove(service: Service, build: str) -> None:
    settings = load_settings()
    made = replace(
        recommendation(
            Verdict.DISABLE, model=service.main, backend="llama-server", backend_build=build, evidence={}
        ),
        prompt_type=PromptType.QA,
    )
    store = open_store(settings.storage)
    store.save_recommendation(made, identify(), "0123456789ab")
    store.close()
