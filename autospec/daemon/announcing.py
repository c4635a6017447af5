"""Tell the user's hook (setting ``on_change``) which recommendations changed since it was last told.

What it was told stands in a file of the state folder, so that a change that came while no daemon ran is told as well. The
first time there is nothing to compare with, and nothing is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autospec.cells import Hardware
from autospec.files import replace_file
from autospec.recommendations import Recommendation, StoredRecommendation
from autospec.report.changes import changes, changes_document
from autospec.report.hook import HookOutcome, run_hook

__all__ = ["announce"]

_FILE = "announced.json"


def announce(
    stored: Sequence[StoredRecommendation],
    state_dir: Path,
    command: Sequence[str],
    run: Callable[[Sequence[str], Mapping[str, Any]], HookOutcome] = run_hook,
) -> str:
    """Run the hook if anything changed; waits for it, so that it is called in no loop.

    Args:
        stored: All recommendations as they are now.
        state_dir: Where what was told is kept.
        command: The words of ``on_change``; empty for no hook, and then nothing is kept either.
        run: Runs the hook.

    Returns:
        One sentence about the hook where it ran or its file could not be written; else empty.
    """
    if not command:
        return ""
    path = state_dir / _FILE
    told = _read(path)
    found = changes(told, stored) if told is not None else ()
    if told is not None and not found:
        return ""
    try:
        replace_file(path, json.dumps([_entry(s) for s in stored]))
    except OSError as error:
        return f"{path} cannot be written, so that on_change is not run: {error.strerror}."
    if not found:
        return ""
    return run(command, changes_document(found, datetime.now(UTC).isoformat(timespec="seconds"))).sentence


def _entry(stored: StoredRecommendation) -> dict[str, Any]:
    return {
        "cell_key": stored.cell_key,
        "hardware": stored.hardware.to_json(),
        "recommendation": stored.recommendation.to_json(),
    }


def _read(path: Path) -> list[StoredRecommendation] | None:
    """What was told last; ``None`` where nothing was, or where the file makes no sense any more."""
    try:
        return [
            StoredRecommendation(
                entry["cell_key"],
                Hardware.from_json(entry["hardware"]),
                Recommendation.from_json(entry["recommendation"]),
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
