"""Findings as a tune would leave them, and what a test reads of a page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from typing import Any

from autospec.cells import PromptType
from autospec.measure.measurements import Pair
from autospec.recommendations import Recommendation, Verdict
from autospec.report.explanation import explain
from autospec.report.html.findings import Findings, Look, ModelFindings, TypeFindings
from tests.report.samples import HERE, measurement, recommendation

PREDICTION = {
    "expected": 1.28,
    "interval": [1.1, 1.5],
    "acceptance": 0.6,
    "acceptance_by_position": [0.8, 0.6, 0.5],
    "token_ms": 100.0,
    "verify_ms": [100.0, 110.0, 121.0, 135.0],
    "step_ms": 9.0,
    "break_even": 0.3,
    "checks": [],
}


def pairs(rounds: int = 2, prompts: int = 4) -> tuple[Pair, ...]:
    """A proof: every round has two new launches; prompts differ."""
    found = []
    for round_ in range(1, rounds + 1):
        for k in range(prompts):
            own = {"round": round_, "prompt": f"coding-p{k:02}-a-prompt"}
            off = measurement(with_drafting=False, launch_id=f"off-{round_}", **own)
            wall_ms = 6300.0 * (1.0 + 0.07 * k)
            drafted = measurement(
                with_drafting=True,
                launch_id=f"drafted-{round_}",
                wall_ms=wall_ms,
                predicted_ms=wall_ms - 300,
                **own,
            )
            found.append(Pair(off, drafted))
    return tuple(found)


def looks(rounds: tuple[int, ...] = (1, 2)) -> tuple[Look, ...]:
    """Intervals that narrow."""
    return tuple(Look(r, 4 * r, 1.3, (1.3 - 0.4 / r, 1.3 + 0.4 / r), Verdict.UNDECIDED) for r in rounds)


def type_findings(r: Recommendation | None = None, rounds: int = 2, prompts: int = 4) -> TypeFindings:
    """One prompt type with a proof; its evidence has a prediction."""
    r = r or recommendation()
    r.evidence.setdefault("prediction", PREDICTION)
    own = pairs(rounds, prompts)
    return TypeFindings(explain(r, own), own, looks(tuple(range(1, rounds + 1))))


def findings(*types: TypeFindings, model: str = "Main-7B-Q4_K_M", **changes: Any) -> Findings:
    """One model with these prompt types, without the founding record."""
    found = ModelFindings(model, "llama-server", HERE, types or (type_findings(),))
    return Findings(**{"hardware": HERE, "models": (found,), **changes})


def twelve(rounds: int = 24, prompts: int = 8) -> tuple[TypeFindings, ...]:
    """All prompt types, with every verdict among them."""
    verdicts = tuple(Verdict)
    return tuple(
        type_findings(recommendation(verdicts[k % 3], prompt_type=kind), rounds, prompts)
        for k, kind in enumerate(PromptType)
    )


def undrawn(_figure: Any, *, name: str, title: str, description: str) -> str:
    """In place of `inline_svg`, for tests of what a page says: drawing takes most of the time."""
    words = (
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
    )
    return f'<svg role="img" aria-labelledby="{name}-title {name}-text">{words}</svg>'


@dataclass
class Seen(HTMLParser):
    """What a browser would find in a page.

    Attributes:
        elements: (tag, attributes) in their order.
        texts: The texts outside of the style.
        ids: How often each id occurs.
        tables: For each table the tags within it.
    """

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ids: Counter[str] = field(default_factory=Counter)
    tables: list[list[str]] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def of(cls, page: str) -> Seen:
        """Parse a page."""
        seen = cls()
        seen.feed(page)
        seen.close()
        return seen

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.elements.append((tag, dict(attrs)))
        if own := dict(attrs).get("id"):
            self.ids[own] += 1
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif self.tables and "table" in self._open:
            self.tables[-1].append(tag)

    def handle_endtag(self, tag: str) -> None:
        """An element ends, and with it those that were left open."""
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        """A text."""
        if "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All texts, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def tags(self, *names: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of these tags."""
        return [attributes for tag, attributes in self.elements if tag in names]
