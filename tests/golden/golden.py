"""Comparing what autospec says with a stored copy, and the one function that takes out what differs from run to run.

The copies hold names: keys, columns, settings, headers, metrics, flags. They do not hold sentences, which may be reworded.

``AUTOSPEC_TEST_REGENERATE_GOLDEN=1 pytest tests/golden`` writes the copies again; look at the difference before you commit
it. What 31c5bcf wrote (``data/31c5bcf``) is never written again.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["DATA", "check", "check_json", "normalized", "same", "shape", "to_text"]

DATA = Path(__file__).parent / "data"
_VARIABLE = "AUTOSPEC_TEST_REGENERATE_GOLDEN"
# Read now: the fixtures of the tests take every AUTOSPEC_ variable away.
_REGENERATE = os.environ.get(_VARIABLE, "") not in ("", "0")
_HOW = f"If the change is meant, write the copy again: {_VARIABLE}=1 python -m pytest tests/golden"

# Sentences for people. A list of them becomes one placeholder: there may be more or fewer.
_PROSE = frozenset(
    {
        *(
            "about",
            "error",
            "fix",
            "hint",
            "message",
            "notes",
            "problem",
            "reason",
            "said",
            "sentence",
            "sentences",
        ),
        *("stale_reason", "template", "trouble", "warnings", "why", "words"),
    }
)
# Times, process numbers, versions, and what they decide.
_VOLATILE = frozenset(
    {
        *("age_s", "at", "autospec", "created_at", "date", "exported_at", "oldest_s", "started_at", "uptime_s", "unused_s"),
        *("launch_id", "launch_ms", "pid", "pids", "version", "fingerprint", "last_request_s_ago"),
        *("busy_s", "launch_s", "launches_bytes", "overlap_bytes", "samples_written", "saved_s"),
        *("generation_tps", "latest_at", "recent_tps"),
    }
)  # fmt: skip
# Their keys are held, their values are this machine's or the moment's.
_SHAPES = frozenset({"hardware", "traffic"})


def check(name: str, text: str) -> None:
    """Compare a text with the copy of that name, or write the copy where that was asked for."""
    file = DATA / name
    text = text.rstrip("\n") + "\n"
    if _REGENERATE:
        if os.environ.get("CI"):
            pytest.fail(f"{_VARIABLE} is set in CI: nothing would be compared.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        pytest.skip(f"{name} was written, not compared")
    if not file.exists():
        pytest.fail(f"There is no golden copy {file}. {_HOW}")
    same(file.read_text("utf-8"), text, name)


def check_json(name: str, document: Any) -> None:
    """Compare a document, normalized already, with the copy of that name."""
    check(name, to_text(document))


def same(held: str, said: str, name: str, what_to_do: str = _HOW) -> None:
    """Fail with a unified diff where two texts differ, and say what to do."""
    if held == said:
        return
    lines = difflib.unified_diff(
        held.splitlines(), said.splitlines(), f"golden copy {name}", "what autospec says now", lineterm=""
    )
    pytest.fail("\n".join([*lines, "", what_to_do]), pytrace=False)


def to_text(document: Any) -> str:
    """A document as the copies have it: sorted keys, one value a line."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def normalized(value: Any, replace: Mapping[str, str]) -> Any:
    """A document without what differs between machines, runs and wordings.

    Args:
        value: The document, or a part of it.
        replace: Texts such as folders, and what stands for them; longer ones are replaced first.
    """
    longest_first = sorted({sys.executable: "<python>", **replace}.items(), key=lambda pair: -len(pair[0]))
    return _walked(value, "", longest_first)


def _walked(part: Any, key: str, replace: Sequence[tuple[str, str]]) -> Any:
    if (stand_in := _stand_in(part, key)) is not None:
        return stand_in
    match part:
        case dict():
            return {_named(name, replace): _walked(inner, name, replace) for name, inner in part.items()}
        case list():
            before = [None, *part]
            return [
                "<port>" if last == "--port" else _walked(inner, "", replace)
                for last, inner in zip(before, part, strict=False)
            ]
        case str():
            return _named(part, replace)
        case _:
            return part


def _stand_in(part: Any, key: str) -> Any:
    """What stands for a value in a copy; ``None`` where the value itself does."""
    if part is None:
        return None
    if key in _VOLATILE and not isinstance(part, dict):
        return f"<{key}>"
    if key in _SHAPES and isinstance(part, dict):
        return shape(part)
    if key in _PROSE and isinstance(part, list) and all(isinstance(item, str) for item in part):
        return "<texts>"
    return "<text>" if key in _PROSE and part and isinstance(part, str) else None


def _named(words: str, replace: Sequence[tuple[str, str]]) -> str:
    for old, new in replace:
        words = words.replace(old, new)
    return re.sub(r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:<port>", words)


def shape(value: Any) -> Any:
    """Keys and kinds of values, where the values are this machine's: of a list, the different kinds of its entries."""
    match value:
        case dict():
            return {name: shape(inner) for name, inner in value.items()}
        case list():
            kinds = {to_text(kind): kind for kind in map(shape, value)}
            return [kinds[name] for name in sorted(kinds)]
        case bool():
            return "<true or false>"
        case int() | float():
            return "<number>"
        case str():
            return "<text>"
        case _:
            return None
