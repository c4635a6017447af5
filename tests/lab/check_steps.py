"""Steps of a check on a user's machine: each has a time limit, none stops the others, and all go into one text without names."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.redaction import Identity, redact

__all__ = [
    "Checked",
    "CommandResult",
    "StepError",
    "StepLog",
    "StepSkipped",
    "report",
    "run_steps",
    "run_within",
]

# A tune that is interrupted writes what it knows, and its servers end.
_GRACE_S = 15.0
# Of a long output, the report has the first and the last lines.
_MOST_LINES = 400


class StepError(Exception):
    """A step did not do what it should; one sentence."""


class StepSkipped(Exception):  # noqa: N818 - not an error
    """A step has nothing to do here; one sentence that says why."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended. `code` is ``None`` where its time was over."""

    code: int | None
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A step that is over: what became of it, one sentence, and what it printed."""

    name: str
    outcome: str  # worked, failed, skipped
    seconds: float
    sentence: str
    log: str


@dataclass(slots=True)
class StepLog:
    """What a step does and sees; `run` is how it runs commands."""

    env: Mapping[str, str]
    cwd: Path
    lines: list[str] = field(default_factory=list)

    def run(
        self,
        *words: str | Path,
        limit_s: float,
        fine: Sequence[int] = (0,),
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command, write it and what it said into the log, and return its stdout.

        Raises:
            StepError: It ended with another code, or its time was over.
        """
        command = [str(word) for word in words]
        self.lines.append(f"$ {shlex.join(command)}")
        done = run_within(command, limit_s, env=self.env if env is None else env, cwd=self.cwd)
        self.lines += [*_shortened(done.out.splitlines()), *_shortened(done.err.splitlines())]
        name = " ".join([Path(command[0]).name, *command[1:3]])
        if done.code is None:
            raise StepError(f"`{name}` was ended after {limit_s:.0f} s")
        if done.code not in fine:
            self.lines.append(f"(ended with {done.code})")
            raise StepError(f"`{name}` ended with {done.code}")
        return done.out

    def say(self, sentence: str) -> None:
        """Write a sentence into the log."""
        self.lines.append(sentence)


def run_within(command: Sequence[str], limit_s: float, *, env: Mapping[str, str], cwd: Path) -> CommandResult:
    """Run a command for so long at most, then interrupt it, then kill it and all that it started."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as err,
    ):
        try:
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            return CommandResult(127, "", str(error))
        code: int | None = None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                _end(process)
        out.seek(0)
        err.seek(0)
        return CommandResult(code, out.read(), err.read())


def run_steps(
    steps: Sequence[tuple[str, Callable[[StepLog], str]]],
    *,
    env: Mapping[str, str],
    cwd: Path,
    tell: Callable[[str], None],
) -> list[Checked]:
    """Run one step after the other, whatever becomes of each. A step returns a sentence, or raises.

    Ctrl-C ends the running step and skips the rest.
    """
    done: list[Checked] = []
    stopped = False
    for name, step in steps:
        log = StepLog(env, cwd)
        began_s = time.monotonic()
        if stopped:
            done.append(Checked(name, "skipped", 0.0, "interrupted before it began", ""))
            continue
        tell(f"… {name}")
        try:
            outcome, sentence = "worked", step(log)
        except StepSkipped as skipped:
            outcome, sentence = "skipped", str(skipped)
        except StepError as failed:
            outcome, sentence = "failed", str(failed)
        except KeyboardInterrupt:
            outcome, sentence, stopped = "failed", "interrupted", True
        except Exception as error:  # noqa: BLE001 - a mistake in one step must not hide the others
            outcome, sentence = "failed", f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began_s
        done.append(Checked(name, outcome, seconds, sentence, "\n".join(log.lines)))
        tell(_line(done[-1]))
    return done


def report(machine: str, steps: Sequence[Checked], identity: Identity) -> str:
    """The text to attach: a line for each step, then what each printed. Names, addresses and keys are replaced."""
    head = f"autospec's check of a machine, {time.strftime('%Y-%m-%d')}\n{machine}"
    table = "\n".join(_line(step) for step in steps)
    parts = [head, table, *(f"== {step.name}\n{step.log}" for step in steps if step.log)]
    return redact("\n\n".join(parts), identity) + "\n"


def _line(step: Checked) -> str:
    return f"  {step.outcome:7} {step.seconds:5.0f} s  {step.name}: {step.sentence}"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST_LINES:
        return lines
    half = _MOST_LINES // 2
    return [*lines[:half], f"… {len(lines) - 2 * half} lines left out …", *lines[-half:]]


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    with suppress(ProcessLookupError, PermissionError):  # of a group that has ended, a Mac says the latter
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tell_on_stderr(sentence: str) -> None:
    """Progress for the person at the machine."""
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201 - a command: it prints
