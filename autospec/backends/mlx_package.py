"""What the installed mlx-lm is: version, options, and how its server behaves. Asked of a child once for each build."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from autospec.backends.process import child_environment
from autospec.cells import Build
from autospec.errors import BackendMissingError, ModelFileError

__all__ = ["CHILD", "MlxPackage", "undraftable", "unrewindable"]

CHILD = ("-m", "autospec.backends.mlx_child")
_PACKAGES = ("mlx-lm", "mlx")
# Importing MLX and mlx_lm takes 2 s from a warm disk and 10 s on a busy machine.
_CHILD_TIMEOUT_S = 120.0
_INSTALL = "pip install 'autospec[mlx]'"


@dataclass(frozen=True, slots=True)
class MlxPackage:
    """One installed mlx-lm.

    Attributes:
        build: Backend, version of mlx-lm, and a hash over what pip installed of mlx-lm and MLX.
        options: What its server takes: name → whether a value follows.
        tells_drafts: True if its server can be made to tell drafted tokens.
        cache_matches_key: True if a drafted answer leaves the prompt cache as the server files it; see `mlx_child`.
    """

    build: Build
    options: Mapping[str, bool]
    tells_drafts: bool
    cache_matches_key: bool

    @classmethod
    def installed(cls, state_dir: Path) -> MlxPackage:
        """Look at what is installed, or remember it if it is what was looked at before.

        Args:
            state_dir: Where the memory is kept (``mlx.json``).

        Raises:
            BackendMissingError: It is not installed, or cannot be loaded on this machine.
        """
        build = _build()
        memory = state_dir / "mlx.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(memory.read_text(encoding="utf-8"))
            if Build(**known.pop("build")) == build:
                return cls(build=build, **known)
        try:
            told = _ask("--probe")
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise BackendMissingError(
                f"mlx-lm is installed but cannot be loaded: {_last_line(error)}.", _INSTALL
            ) from error
        package = cls(build=build, **told)
        with suppress(OSError):  # it is asked again next time
            state_dir.mkdir(parents=True, exist_ok=True)
            memory.write_text(json.dumps(asdict(package)), encoding="utf-8")
        return package


def unrewindable(model_path: str) -> str:
    """Why a model's cache cannot be rolled back behind rejected tokens; empty where it can.

    Raises:
        ModelFileError: mlx_lm does not know the model, or the folder is damaged.
    """
    try:
        told = _ask("--caches", model_path)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ModelFileError(f"mlx_lm cannot make a model of {model_path}: {_last_line(error)}.") from error
    return undraftable(told["stuck"], told["rotating"])


def undraftable(stuck: list[str], rotating: list[str]) -> str:
    """The sentence's end for the kinds of cache that were found."""
    if stuck:
        return f"its layers keep a state that cannot be rolled back ({', '.join(stuck)})"
    if rotating:
        return f"its caches turn over when their window is full and cannot be rolled back then ({', '.join(rotating)})"
    return ""


def _build() -> Build:
    digest = hashlib.sha256()
    try:
        for name in _PACKAGES:
            found = metadata.distribution(name)
            digest.update(f"{name} {found.version}\n{found.read_text('RECORD')}\n".encode())
        version = metadata.version(_PACKAGES[0])
    except metadata.PackageNotFoundError as error:
        raise BackendMissingError(f"{error.name} is not installed.", _INSTALL) from error
    return Build("mlx", f"mlx-lm-{version}", digest.hexdigest()[:16])


def _ask(*arguments: str) -> dict[str, Any]:
    """Ask a child, so that a package that cannot be loaded ends the child and not autospec."""
    done = subprocess.run(
        [sys.executable, *CHILD, *arguments],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=_CHILD_TIMEOUT_S,
        env=child_environment(os.environ),
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _last_line(error: BaseException) -> str:
    lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else str(error)).rstrip(".")
