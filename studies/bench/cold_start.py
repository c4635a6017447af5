"""Start-up time of autospec, beside Python doing nothing and other click programs.

    .venv/bin/python studies/bench/cold_start.py [--runs 15] [--also PATH]

Each round starts every program once, in an order that rotates from round to round, so that slow phases hit all programs alike.
Ratios are to the same round's ``python -c pass``; the table has median and quartiles over rounds.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(sys.executable).parent
NOTHING = "python -c pass"
# Click programs, measured if they are installed beside autospec. Those on PATH may start a version manager's shim.
OTHERS = ("llm", "lint-imports", "flask", "black", "datasette")


def programs(also: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name for the table → command line, the reference first."""
    python, autospec = sys.executable, str(HERE / "autospec")
    found = {
        NOTHING: (python, "-c", "pass"),
        "python -c 'import click'": (python, "-c", "import click"),
        "autospec --version": (autospec, "--version"),
        "autospec --help": (autospec, "--help"),
        "autospec recommend --json": (autospec, "recommend", "--json"),
    }
    for name in dict.fromkeys((*OTHERS, *also)):
        path = shutil.which(name, path=str(HERE))
        if path:
            found[f"{Path(name).name} --version"] = (path, "--version")
        elif name in also:
            raise SystemExit(f"there is no program {name}")
    return found


def measure(commands: Mapping[str, tuple[str, ...]], runs: int, home: Path) -> dict[str, list[float]]:
    """Milliseconds of each program, one entry per round; `SystemExit` if a program fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AUTOSPEC_")}
    env = {**kept, "AUTOSPEC_HOME": str(home)}
    names = list(commands)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(runs + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            done = subprocess.run(commands[name], env=env, capture_output=True, check=False)
            took_ms = 1000.0 * (time.perf_counter() - began)
            # 3: nothing known yet, as expected in an empty home.
            if done.returncode != 0 and not (done.returncode == 3 and "recommend" in commands[name]):
                said = done.stderr.decode(errors="replace").strip()
                raise SystemExit(f"`{shlex.join(commands[name])}` ended with {done.returncode}:\n{said}")
            if turn:  # the first round fills the disk cache and writes byte code
                times[name].append(took_ms)
    return times


def table(times: Mapping[str, Sequence[float]]) -> str:
    """The Markdown table: medians, and quartiles in brackets."""
    lines = [
        f"| program | median ms [quartiles] | ÷ `{NOTHING}` [quartiles] | runs |",
        "|---|---:|---:|---:|",
    ]
    for name, values in times.items():
        ratios = [value / nothing for value, nothing in zip(values, times[NOTHING], strict=True)]
        lines.append(f"| `{name}` | {_spread(values, 0)} | {_spread(ratios, 2)} | {len(values)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}–{high:.{digits}f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15, help="rounds that count, at least 2 (default: 15)")
    parser.add_argument(
        "--also", action="append", default=[], metavar="PATH", help="another program to start with --version"
    )
    chosen = parser.parse_args()
    if chosen.runs < 2:
        parser.error("quartiles need at least 2 runs")
    with tempfile.TemporaryDirectory(prefix="autospec-cold-") as home:
        print(table(measure(programs(chosen.also), chosen.runs, Path(home))))


if __name__ == "__main__":
    main()
