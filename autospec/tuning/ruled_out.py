"""Why a draft or a mode was never launched, in words: told while a tune runs, and again by `explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ruled_out_because"]


def ruled_out_because(found: Mapping[str, Any]) -> str:
    """What its best case rests on, as clauses.

    Args:
        found: One object of `Forecast.rule_out`, from the tune itself or from a recommendation's evidence.
    """
    accepted, even = found["acceptance"], found["break_even"]
    share = "it proposed nothing" if accepted is None else f"acceptance {accepted:.2f}"
    needed = "no acceptance would pay" if even >= 1.0 else f"break-even {even:.2f}"
    # Evidence of earlier versions does not tell it.
    prompt = ", and it makes prompts slower" if found.get("by_prompt") else ""
    return f"{share}, {needed}{prompt}"
