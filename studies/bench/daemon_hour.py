"""The daemon alone for a while: what does it do, and is the reason that it gives right? One table of everything that happened.

Run: ``python -m studies.bench.daemon_hour [--minutes 60] [--llama-server PATH] [--real-load] [--seed 1]``

It starts the real `autospec daemon` with its proxy in a temporary home, on a small model and a real llama-server. Meanwhile traffic starts
and stops, the machine gets busy, a draft appears, the build changes, and five processes are killed with SIGKILL: a server of the proxy, a
running tune, a server that is measured, the proxy and the daemon itself, which is started again as a service manager would do. The events come at
fixed shares of the time, so a run of ten minutes has them all.

By default the daemon is told how busy other programs are, because a machine that does other work would let it measure nothing:
``--real-load`` measures it, and starts real programs that compute. It needs a machine that is otherwise idle.

The exit status is 1 if a request failed that no kill explains, if the daemon did not say what it has to say after an event, or if
anything is left at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
import psutil

from autospec.errors import NothingKnownError
from autospec.service.control import ask_status
from tests.daemon.hooked import ROOT, calm
from tests.lab import Lab, lab_folder
from tests.small_suite import questions, write_suite
from tests.tuning.test_real_tune import STUDY

PROMPTS = (
    "Count to ten.",
    "Name colours.",
    "Say one two three.",
    "Name the days.",
    "Name a fruit.",
    "Say hello twice.",
)
ASKED = (
    "Write a Python function that sorts a list.",
    "Translate to German: the sun is warm.",
    "What is the capital of France?",
    "Hello, how are you today?",
)
ANSWER_TIMEOUT_S = 120.0
STARTED_WITHIN_S = 90.0
ENDED_WITHIN_S = 60.0
RESTARTED_AFTER_S = 2.0
# Each question to the daemon wakes it; this often it changes nothing of what it does by itself.
LOOKED_EVERY_S = 5.0
# Within this time after a kill a request may break.
BROKEN_WITHIN_S = 20.0
# How long a kill waits for a process of its kind.
TARGET_WITHIN_S = 60.0
OTHERS_USE = 1.8
# What the daemon says of an event, it says within this time, unless it measures.
AFTER_EACH_S = 12.0


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened: when, at whom, and what."""

    at_s: float
    who: str
    what: str


@dataclass
class Journal:
    """Everything that happened, in order; filled by several threads."""

    begun_s: float = field(default_factory=time.monotonic)
    lines: list[Line] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, who: str, what: str) -> None:
        """Add a line."""
        with self._lock:
            self.lines.append(Line(time.monotonic() - self.begun_s, who, what))

    def said_since(self, at_s: float, pattern: str) -> bool:
        """True if the daemon said something like this after that time."""
        with self._lock:
            return any(
                line.at_s >= at_s and line.who == "daemon" and re.search(pattern, line.what)
                for line in self.lines
            )

    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun_s

    def table(self) -> str:
        """As Markdown."""
        rows = (f"| {line.at_s:.0f} | {line.who} | {line.what} |" for line in self.lines)
        return "\n".join(["| s | who | what |", "|---:|---|---|", *rows])


class Home:
    """The folder, the daemon in it, and what the script does to them."""

    def __init__(self, folder: Path, journal: Journal, llama_server: Path, *, real_load: bool) -> None:
        lab = Lab(lab_folder())
        self.folder, self.journal, self.real_load = folder, journal, real_load
        self.main, self.draft = lab.path("smollm2"), lab.path("tiny")
        self.daemon: subprocess.Popen[str] | None = None
        self.seen: set[psutil.Process] = set()
        self._llama_server = llama_server
        self._burners: list[subprocess.Popen[bytes]] = []
        (folder / "models").mkdir()
        (folder / "models" / self.main.name).symlink_to(self.main)
        (folder / "study.toml").write_text(STUDY, encoding="utf-8")
        write_suite(folder / "suite.jsonl", questions(PROMPTS), max_tokens=16)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.set_build(11434)
        (folder / "config.toml").write_text(
            'model_dirs = ["models"]\nbackend = "llama-server"\nstudy = "study.toml"\nsuite = "suite.jsonl"\n'
            f'llama_server = "{folder / "llama-server"}"\nserver_args = ["-c", "2048", "-t", "1"]\n'
            f'daemon_idle = "5s"\ndaemon_step = "60s"\nproxy_port = {self.port}\n',
            encoding="utf-8",
        )
        own = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOSPEC_", "NOTIFY_"))}
        own |= {"AUTOSPEC_HOME": str(folder), "HOME": str(folder), "AUTOSPEC_TEST_LOCK_DIR": str(folder)}
        self._environ = own if real_load else calm(own)

    def set_build(self, version: int) -> None:
        """Put a llama-server of this version in place of the old one, as an upgrade does."""
        program = self.folder / "llama-server"
        part = program.with_suffix(".part")
        told = f'case "$*" in *--version*) echo "version: {version} (abcdef12)" >&2; exit 0;; esac'
        part.write_text(f'#!/bin/sh\n{told}\nexec "{self._llama_server}" "$@"\n', encoding="utf-8")
        part.chmod(0o755)
        part.replace(program)

    def add_draft(self) -> None:
        """A smaller model of the same family appears."""
        (self.folder / "models" / self.draft.name).symlink_to(self.draft)

    def get_busy(self) -> None:
        """Other programs use the processor."""
        if self.real_load:
            program = [sys.executable, "-I", "-S", "-c", "while True: pass"]
            self._burners = [subprocess.Popen(program) for _ in range(os.cpu_count() or 1)]
        (self.folder / "others-use").write_text(str(OTHERS_USE), encoding="ascii")

    def get_calm(self) -> None:
        """They end."""
        for burner in self._burners:
            burner.kill()
            burner.wait()
        self._burners = []
        (self.folder / "others-use").unlink(missing_ok=True)

    def start(self) -> None:
        """Start the daemon, and note what it prints."""
        module = ("autospec",) if self.real_load else ("tests.daemon.quiet_daemon",)
        command = [sys.executable, "-m", *module, *(("daemon",) if self.real_load else ())]
        self.daemon = subprocess.Popen(
            command, env=self._environ, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self.daemon.stdout is not None
        threading.Thread(target=self._listen, args=(self.daemon.stdout,), daemon=True).start()

    def _listen(self, said: IO[str]) -> None:
        for line in said:
            if text := line.strip().removeprefix("autospec: "):
                self.journal.note("daemon", text)

    def is_up(self) -> bool:
        """True if the proxy answers."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5.0, trust_env=False).is_success
        return False

    def below(self) -> list[psutil.Process]:
        """All processes of the daemon now; remembered for the end."""
        assert self.daemon is not None
        found: list[psutil.Process] = []
        for pid in (self.daemon.pid, self.proxy_pid()):
            with contextlib.suppress(psutil.Error):
                if pid is not None:
                    process = psutil.Process(pid)
                    found += [process, *process.children(recursive=True)]
        self.seen.update(found)
        return found

    def proxy_pid(self) -> int | None:
        """As the daemon says it."""
        with contextlib.suppress(NothingKnownError):
            child = ask_status(self.folder / "state").get("proxy_child") or {}
            return child.get("pid")
        return None

    def target(self, kind: str) -> psutil.Process | None:
        """A process of this kind: see `KILLS`."""
        assert self.daemon is not None
        with contextlib.suppress(psutil.Error):
            if kind == "the daemon":
                return psutil.Process(self.daemon.pid)
            proxy = self.proxy_pid()
            if kind == "the proxy":
                return None if proxy is None else psutil.Process(proxy)
            below = psutil.Process(self.daemon.pid).children(recursive=True)
            # The guard's command line has the tune's in it, but not at this place.
            tune = next((p for p in below if _words(p)[2:4] == ["autospec", "tune"]), None)
            if kind == "a running tune":
                return tune
            above = tune if kind == "a measured server" else None if proxy is None else psutil.Process(proxy)
            if above is not None:
                servers = [
                    p for p in above.children(recursive=True) if _words(p)[:1] == [str(self._llama_server)]
                ]
                return servers[0] if servers else None
        return None

    def end(self) -> tuple[int | None, int, int]:
        """End the daemon in order: its exit status, and the processes and records that are left."""
        assert self.daemon is not None
        self.below()
        self.daemon.send_signal(signal.SIGTERM)
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.daemon.wait(ENDED_WITHIN_S)
        left = [p for p in self.seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        records = list((self.folder / "state" / "launches").glob("*.json"))
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.get_calm()
        return status, len(left), len(records)


def _words(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has ended, also if nobody has reaped it."""
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


class Client:
    """Asks while it is on; every request has to be answered, unless a kill explains that it was not."""

    def __init__(self, home: Home, rng: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self.killed_at_s: list[float] = []
        self._home, self._rng = home, rng
        self._on, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def turn(self, *, on: bool) -> None:
        """Start or stop to ask."""
        if on:
            self._on.set()
        else:
            self._on.clear()

    def close(self) -> None:
        """End with the request in progress."""
        self._over.set()
        self._thread.join(ANSWER_TIMEOUT_S)

    def _run(self) -> None:
        while not self._over.is_set():
            if self._on.wait(0.2):
                self._ask()
                self._over.wait(self._rng.uniform(0.2, 3.0))

    def _ask(self) -> None:
        body = {
            "model": self._home.main.stem,
            "messages": [{"role": "user", "content": self._rng.choice(ASKED)}],
            "max_tokens": self._rng.randint(4, 40),
            "stream": self._rng.random() < 0.5,
        }
        begun_s = self._home.journal.now_s()
        try:
            url = f"http://127.0.0.1:{self._home.port}/v1/chat/completions"
            answer = httpx.post(url, json=body, timeout=ANSWER_TIMEOUT_S, trust_env=False)
            # In an answer's text, which is a JSON string, the quotes are escaped.
            whole = answer.is_success and '"error":' not in answer.text
            outcome = "answered" if whole else f"{answer.status_code} {answer.text[-200:]}"
        except httpx.HTTPError as error:
            outcome = repr(error)
        now_s = self._home.journal.now_s()
        if outcome != "answered" and any(
            begun_s - BROKEN_WITHIN_S <= at_s <= now_s for at_s in self.killed_at_s
        ):
            outcome = "broken by a kill"
        elif outcome != "answered":
            self._home.journal.note("client", f"LOST: {outcome}")
            outcome = "LOST"
        self.outcomes[outcome] += 1


@dataclass(frozen=True, slots=True)
class Step:
    """Something that the script does at a share of the time, and what the daemon has to say before the next step."""

    share: float
    what: str
    act: Callable[[], None]
    expects: str = ""


# What is killed, and what the daemon has to say then. A server is the business of the proxy, or of the tune that measures it.
KILLS = {
    "a server of the proxy": "",
    "a running tune": r"Tuning \S+, qa failed",
    "a measured server": "",
    "the proxy": r"The proxy was ended by SIGKILL",
    "the daemon": "The daemon is running",
}


# A new build makes work, so that there is something to kill.
NEED_WORK = ("a running tune", "a measured server")
# After traffic it measures, unless it says that everything is known.
AFTER_TRAFFIC = r"^Tuning \S+, qa|^is tuning|is worth measuring now"


class Script:
    """The events, one after the other."""

    def __init__(self, home: Home, client: Client, rng: random.Random) -> None:
        self._home, self._client = home, client
        self._last = ""
        self._builds = itertools.count(12001)
        kills = list(KILLS)
        rng.shuffle(kills)
        self.steps = [
            Step(0.02, "traffic starts", lambda: client.turn(on=True)),
            Step(0.08, "traffic stops", lambda: client.turn(on=False), AFTER_TRAFFIC),
            Step(0.18, "traffic starts", lambda: client.turn(on=True)),
            Step(0.22, "traffic stops", lambda: client.turn(on=False), AFTER_TRAFFIC),
            Step(0.30, "a draft appears", home.add_draft, r"models changed"),
            Step(0.35, "the machine gets busy", self._get_busy, r"other programs use \d"),
            Step(0.45, "the machine is calm again", home.get_calm),
            Step(0.50, "traffic starts", lambda: client.turn(on=True)),
            Step(0.53, "traffic stops", lambda: client.turn(on=False), AFTER_TRAFFIC),
            # It is seen when a step of at most a minute has ended.
            Step(0.57, "the build changes to b12000", lambda: home.set_build(12000), r"llama-server changed"),
            *(
                Step(0.71 + 0.045 * n, f"{kind} is killed", self._kill(kind), KILLS[kind])
                for n, kind in enumerate(kills)
            ),
            Step(0.94, "traffic starts", lambda: client.turn(on=True)),
            Step(0.98, "traffic stops", lambda: client.turn(on=False)),
        ]

    def run(self, seconds: float) -> list[str]:
        """Do everything; what the daemon did not say."""
        journal, missing = self._home.journal, []
        for step, after in itertools.pairwise([*self.steps, Step(1.0, "the end", lambda: None)]):
            self._look_until(step.share * seconds)
            journal.note("script", step.what)
            at_s, self._last = journal.now_s(), ""
            step.act()
            # A kill may have waited for its process.
            self._look_until(max(after.share * seconds, journal.now_s() + AFTER_EACH_S))
            if step.expects and not journal.said_since(at_s, step.expects):
                missing.append(f"after {step.what!r} the daemon did not say /{step.expects}/")
        return missing

    def _get_busy(self) -> None:
        """There is work, which must wait: a daemon without any says that instead."""
        self._home.get_busy()
        self._home.set_build(11999)

    def _kill(self, kind: str) -> Callable[[], None]:
        def kill() -> None:
            home = self._home
            # A tune needs a machine at rest, and a proxy has a server while it serves.
            self._client.turn(on=kind == "a server of the proxy")
            if kind in NEED_WORK:
                home.set_build(next(self._builds))
            until = time.monotonic() + TARGET_WITHIN_S
            while (target := home.target(kind)) is None:
                if time.monotonic() > until:
                    home.journal.note("script", f"there was no {kind.partition(' ')[2]} to kill")
                    return
                home.below()  # asks the daemon, which wakes it
                time.sleep(0.2)
            home.below()
            self._client.killed_at_s.append(home.journal.now_s())
            with contextlib.suppress(psutil.NoSuchProcess):
                target.kill()
            home.journal.note("script", f"killed process {target.pid}")
            self._client.turn(on=False)
            if kind == "the daemon":
                assert home.daemon is not None
                home.daemon.wait()
                time.sleep(RESTARTED_AFTER_S)
                home.start()

        return kill

    def _look_until(self, at_s: float) -> None:
        """Note the daemon's state and its reason whenever they change, but for numbers."""
        home = self._home
        while (left_s := at_s - home.journal.now_s()) > 0:
            with contextlib.suppress(NothingKnownError):
                status = ask_status(home.folder / "state")
                told = f"is {status['state']}: {status['why']}"
                if (now := re.sub(r"[\d.]+", "#", told)) != self._last:
                    home.journal.note("daemon", told)
                    self._last = now
            home.below()
            time.sleep(max(0.0, min(LOOKED_EVERY_S, left_s)))


@contextlib.contextmanager
def folder_for(keep: Path | None) -> Iterator[Path]:
    """The home: temporary, or one to look at later."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="autospec-hour-") as name:
        yield Path(name)


def hour(minutes: float, llama_server: Path, *, real_load: bool, seed: int, keep: Path | None) -> list[str]:
    """Run it and print the table; what must not be."""
    rng = random.Random(seed)
    journal = Journal()
    with folder_for(keep) as folder:
        home = Home(folder, journal, llama_server, real_load=real_load)
        home.start()
        client = Client(home, rng)
        try:
            deadline = time.monotonic() + STARTED_WITHIN_S
            while not home.is_up():
                if time.monotonic() > deadline:
                    raise SystemExit(f"the proxy did not start\n{journal.table()}")
                time.sleep(0.5)
            journal.note("script", "the proxy answers")
            failures = Script(home, client, rng).run(60.0 * minutes)
        finally:
            client.turn(on=False)
            client.close()
            status, processes, records = home.end()
    print(journal.table())
    print(f"\nrequests: {', '.join(f'{count} {what}' for what, count in sorted(client.outcomes.items()))}")
    print(f"after the end: exit status {status}, {processes} processes, {records} records")
    if client.outcomes["LOST"]:
        failures.append(f"{client.outcomes['LOST']} requests lost")
    if status != 0 or processes or records:
        failures.append("the end was not clean")
    return failures


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    built = lab_folder() / "llama-server" / "llama-server"
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--llama-server", type=Path, default=Path(shutil.which("llama-server") or built))
    parser.add_argument(
        "--real-load", action="store_true", help="measure other programs' load; for an idle machine"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of kills and of the traffic")
    parser.add_argument("--keep", type=Path, help="a new folder for the home, which is kept")
    asked = parser.parse_args()
    failures = hour(
        asked.minutes, asked.llama_server, real_load=asked.real_load, seed=asked.seed, keep=asked.keep
    )
    print("\n".join(f"FAILED: {failure}" for failure in failures) or "all well")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
