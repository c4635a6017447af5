"""`--help`, `--version` and `recommend --help` import nothing heavy: they must answer at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "optuna",
    "numpy",
    "scipy",
    "sqlalchemy",
    "httpx",
    "gguf",
    "rich",
    "xllamacpp",
    "structlog",
    "psutil",
)
REPORT = """\
import sys
from autospec.cli import main
sys.argv = ["autospec", *sys.argv[1:]]
try:
    main()
except SystemExit as done:
    print(done.code, *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args", [("--help",), ("--version",), ("recommend", "--help"), ("config", "path"), ("config", "check")]
)
def test_nothing_heavy_is_imported(args: tuple[str, ...], tmp_path: Path):
    """Run in a fresh interpreter, whose loaded modules are then listed."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"AUTOSPEC_HOME": str(tmp_path), "PATH": ""},
        check=False,
    )
    code, *loaded = done.stderr.split()
    assert code == "0", done.stderr
    assert done.stdout
    assert "click" in loaded
    assert not set(HEAVY) & set(loaded)


def test_other_commands_are_not_imported():
    """`--help` lists commands from the table alone."""
    script = REPORT.replace('{name.split(".")[0] for name in sys.modules}', "sys.modules")
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    ours = {name for name in done.stderr.split() if name.startswith("autospec.")}
    values = {f"autospec.{name}" for name in ("cells", "drafting", "errors", "recommendations")}
    assert ours == {"autospec.cli", "autospec.cli.shell"} | values


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        # `recommend` prints a stored table: 20 MB of memory and not 55.
        ("autospec.report.tables", {"sqlalchemy", "numpy", "scipy", "optuna"}),
        ("autospec.store.reader", {"sqlalchemy", "numpy", "scipy", "optuna"}),
        # The daemon rests for most of its life.
        ("autospec.daemon.loop", {"sqlalchemy", "numpy", "scipy", "optuna", "asyncio", "ssl", "aiohttp"}),
    ],
)
def test_what_is_light_stays_light(module: str, heavy: set[str]):
    """A module that these import may bring half of the installed libraries with it."""
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not heavy & set(done.stdout.split())
