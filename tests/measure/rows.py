"""Log-ratios as tables: one row a prompt, one column a round."""

from __future__ import annotations

from collections.abc import Sequence

from autospec.measure.log_ratios import LogRatio


def of_rows(rows: Sequence[Sequence[float]]) -> list[LogRatio]:
    """Each column is measured on two launches of its own; the order of the halves alternates from prompt to prompt."""
    return [
        LogRatio(str(p), f"off {r}", f"drafted {r}", value, off_first=(p + r) % 2 == 0)
        for p, row in enumerate(rows)
        for r, value in enumerate(row)
    ]
