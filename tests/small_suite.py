"""Suites of a few short prompts, for tunes that are real and short."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

QUESTIONS = ("Count to ten.", "Name three colours.", "Repeat: one two three.", "Say the days of the week.")


def write_suite(file: Path, prompts: Iterable[tuple[str, str, str]], *, max_tokens: int) -> None:
    """Write a suite file of prompts as (id, prompt type, text)."""
    lines = [
        {
            "id": name,
            "prompt_type": kind,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
        }
        for name, kind, text in prompts
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def questions(texts: Iterable[str] = QUESTIONS) -> list[tuple[str, str, str]]:
    """Prompts of the type qa, for `write_suite`."""
    return [(f"p{n}", "qa", text) for n, text in enumerate(texts)]
