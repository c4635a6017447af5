"""The environment in which autospec sees a machine that nobody else uses; see ``hook/sitecustomize.py``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ROOT", "calm"]

ROOT = Path(__file__).resolve().parents[2]


def calm(environ: Mapping[str, str], *, chip: str = "", host: str = "") -> dict[str, str]:
    """That environment.

    Args:
        environ: What it is made from.
        chip: Be a machine with this chip; empty for the one that it is already.
        host: And of this name.
    """
    folders = [str(Path(__file__).parent / "hook"), str(ROOT), environ.get("PYTHONPATH", "")]
    return {
        **environ,
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "AUTOSPEC_TEST_CALM": "1",
        "AUTOSPEC_TEST_CHIP": chip or environ.get("AUTOSPEC_TEST_CHIP", ""),
        "AUTOSPEC_TEST_HOST": host or environ.get("AUTOSPEC_TEST_HOST", ""),
    }
