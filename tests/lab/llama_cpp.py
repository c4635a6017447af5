"""``python -m tests.lab.llama_cpp [--compile-only]``: install llama-cpp-python as it runs on this machine, and try it.

It is compiled from PyPI's sources. Tuned to the processor it would die on another one, or by the compiler's mistake (see
`native`), and pip keeps what it has compiled: so it is built for any processor with AVX2, and built again where what pip
had kept does not run.
"""

# ruff: noqa: T201 - a command: it prints
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from autospec.backends.llama_cpp.scorer import LlamaCppScorer
from autospec.errors import BackendError
from tests.lab.cache import Lab, lab_folder
from tests.lab.native import QUICK_BUILD
from tests.lab.recipes import RECIPES

__all__ = ["compile_wheel", "main", "what_fails"]

_PACKAGE = "llama-cpp-python"
# Images are none of autospec's business, and half of what would be compiled.
_OPTIONS = f"-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF {QUICK_BUILD}"
_VERSIONS = f"{_PACKAGE}>=0.3.16"
_ANEW = ("--no-cache-dir", "--force-reinstall", "--no-deps", _VERSIONS)


def what_fails(model: Path) -> str:
    """Why the installed package cannot read a model here; empty where it can."""
    with tempfile.TemporaryDirectory(prefix="autospec-llama-cpp-") as folder:
        try:
            LlamaCppScorer.launch(str(model), n_ctx=128, state_dir=Path(folder)).stop()
        except BackendError as error:
            return error.message
    return ""


def _pip(*arguments: str) -> bool:
    command = [
        sys.executable,
        "-m",
        "pip",
        *arguments,
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    environment = os.environ | {"CMAKE_ARGS": f"{_OPTIONS} {os.environ.get('CMAKE_ARGS', '')}".strip()}
    return subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL).returncode == 0


def compile_wheel() -> int:
    """Have pip compile and keep the wheel, and change nothing in the environment, in which other steps may be at work."""
    with tempfile.TemporaryDirectory(prefix="autospec-wheel-") as folder:
        return 0 if _pip("wheel", "--no-deps", "--wheel-dir", folder, _VERSIONS) else 1


def main(install: Sequence[Sequence[str]] = (("-e", ".[llama-cpp]"), _ANEW)) -> int:
    """Install, try, and once more from the sources; what still does not run is taken away, so that its tests skip."""
    model = Lab(lab_folder()).path(RECIPES["tiny"])
    print(
        f"Installing {_PACKAGE}, which compiles for some minutes where pip has no wheel of it yet", flush=True
    )
    for arguments in install:
        if not _pip("install", *arguments):
            break
        failure = what_fails(model)
        if not failure:
            return 0
        print(f"{_PACKAGE} is installed and does not run here: {failure}", flush=True)
    _pip("uninstall", "--yes", _PACKAGE)
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.lab.llama_cpp", description=__doc__)
    parser.add_argument("--compile-only", action="store_true", help="compile what pip keeps; install nothing")
    sys.exit(compile_wheel() if parser.parse_args().compile_only else main())
