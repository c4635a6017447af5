"""Classify a request by prompt type, first by its structure and then by its words, in less than a millisecond.

Offered tools or tool results are `agentic` (but not the tools that a chat page offers with every message), fill-in-the-middle is
`coding`, a required answer format is `extraction`. Otherwise the *ask*, which is the first and last paragraph of the user's last
message, is scored by the cues in `keywords.toml`, by the material between (code, sources, length), and with less weight by the
system prompt and earlier turns. Without any evidence a question is `qa`, anything else `chat`.

`studies/bench/classifier.py` prints the accuracy on a labelled set and microseconds per request.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from autospec.cells import PromptType
from autospec.prompts.features import ASK_CHARS, PromptFeatures, find_cues
from autospec.prompts.request_text import RequestText, Text, fold, keywords, read_request

__all__ = ["Classification", "classify"]

# Length from which the material counts.
_LONG_CHARS: Final = 250
# In longer texts, "you" and "my" are no evidence of chat.
_TALK_WORDS: Final = 30
# Weights of earlier turns and the system prompt, which show the topic but not the current request.
_BEFORE, _SYSTEM = 0.4, 0.5
# A client sends the same system prompt with every request.
_REMEMBERED: Final = 64
# Lower scores are no evidence.
_LEAST_SCORE: Final = 1.0

# A type, its weight (below 0 against it), and the reason.
_Evidence = tuple[PromptType, float, str]

# Tools in words: a call's JSON form, function signatures in the system prompt, results as user turns.
_CALL_FORM: Final = re.compile(r'\{\s*"(?:tool|tool_name|action|call|function|name)"\s*:')
_SIGNATURE: Final = re.compile(r"\b[a-z]\w*\([a-z_]\w*(?:, ?[a-z_]\w*)*\)")
_SIGNATURES: Final = 2
_RESULT: Final = re.compile(
    r"\s*<?(?P<tool>tool[ _]?)?(?:results?|outputs?|responses?|observation)\s*[:>\n]", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Classification:
    """A prompt type and its machine-readable reason, e.g. ``tools``, ``response_format`` or ``words:translat*``."""

    prompt_type: PromptType
    reason: str


def classify(body: Mapping[str, Any]) -> Classification:
    """Classify a parsed request body of any API that `read_request` knows; every content gets a type."""
    request = read_request(body)
    if request.tools:
        return Classification(PromptType.AGENTIC, request.tools)
    if request.fim:
        return Classification(PromptType.CODING, "fim")
    if request.schema:
        return Classification(PromptType.EXTRACTION, request.schema)
    if reason := _tools_in_words(request):
        return Classification(PromptType.AGENTIC, reason)
    return _by_words(request)


def _tools_in_words(request: RequestText) -> str:
    """Evidence of tools in the text of a conversation without structured tools, or empty."""
    if told := _tools_of_system(request.system):
        return told
    if request.raw and (
        phrase := next((phrase for phrase in keywords().tool_phrases if phrase in fold(request.ask.head)), "")
    ):
        return f"words:{phrase.strip()}"
    if (found := _RESULT.match(request.ask.head)) and (request.turns > 1 or found["tool"]):
        return "tool-result-in-words"
    return ""


@lru_cache(_REMEMBERED)
def _tools_of_system(prompt: Text) -> str:
    system = fold(f"{prompt.head}\n{prompt.tail}")
    if phrase := next((phrase for phrase in keywords().tool_phrases if phrase in system), ""):
        return f"words:{phrase.strip()}"
    if _CALL_FORM.search(system) or len(_SIGNATURE.findall(system)) >= _SIGNATURES:
        return "call-form"
    return ""


@lru_cache(_REMEMBERED)
def _has_sources(prompt: Text) -> bool:
    """True for a system prompt with material to cite."""
    system = fold(prompt.head)
    return any(mark in system for mark in keywords().source_marks)


def _by_words(request: RequestText) -> Classification:
    scores: dict[PromptType, float] = defaultdict(float)
    reasons: dict[PromptType, tuple[float, str]] = {}

    def add(kind: PromptType, weight: float, reason: str) -> None:
        scores[kind] += weight
        if weight > reasons.get(kind, (0.0, ""))[0]:
            reasons[kind] = (weight, reason)

    look = PromptFeatures.at(request.ask)
    for ask, share in _asks(request, look):
        for kind, weight, cue in find_cues(ask):
            add(kind, weight * share, f"words:{cue}")
    for kind, weight, reason in _shape(request, look, scores):
        add(kind, weight, reason)
    if scores:
        best = max(scores, key=lambda kind: scores[kind])
        if scores[best] >= _LEAST_SCORE:
            return Classification(best, reasons[best][1])
    if look.question and request.turns <= 1:
        return Classification(PromptType.QA, "question")
    return Classification(PromptType.CHAT, "nothing-else")


def _asks(request: RequestText, look: PromptFeatures) -> Iterator[tuple[str, float]]:
    """The texts to search for cues, each with its weight."""
    yield from look.paragraphs
    if request.system.chars:
        yield fold(request.system.head[:ASK_CHARS]), _SYSTEM
    for text in request.before[:2]:
        yield fold(text.head[:ASK_CHARS]), _BEFORE


def _shape(
    request: RequestText, look: PromptFeatures, scores: Mapping[PromptType, float]
) -> Iterator[_Evidence]:
    """Evidence from the shape of the request."""
    yield from _material(request, look, scores)
    yield from _form_of_the_ask(request, look)
    yield from _talk(request, look, scores)


def _material(
    request: RequestText, look: PromptFeatures, scores: Mapping[PromptType, float]
) -> Iterator[_Evidence]:
    """Evidence from the material: code, sources, a long text, an answer to edit."""
    edited = scores.get(PromptType.EDITING, 0.0)
    # A text to edit, summarise or translate is not a source.
    worked_over = max(
        edited, scores.get(PromptType.SUMMARIZATION, 0.0), scores.get(PromptType.TRANSLATION, 0.0)
    )
    long = look.material_chars >= _LONG_CHARS
    if look.fenced or look.code:
        if edited >= 1.5:
            yield PromptType.EDITING, 4.0, "code-and-edit"
        else:
            yield PromptType.CODING, 3.0 if look.code else 1.5, "code"
    if request.answered.chars >= _LONG_CHARS // 2 and look.words <= 40 and edited >= 3.0:
        yield PromptType.EDITING, 2.5, "edit-of-the-answer"
    if long and not look.fenced and worked_over < 3.0 and (look.question or look.sourced):
        weight = 2.5 if look.material_chars < 2 * _LONG_CHARS else 3.5
        yield PromptType.RAG, weight, "long-context-and-question"
    if look.sourced and worked_over < 3.0:
        yield PromptType.RAG, 3.0, "sources"
    if _has_sources(request.system):
        yield PromptType.RAG, 3.0, "sources-in-system-prompt"
    if long and scores.get(PromptType.WRITING, 0.0) > 0.0:
        yield PromptType.WRITING, -2.0, "long-context"


def _form_of_the_ask(request: RequestText, look: PromptFeatures) -> Iterator[_Evidence]:
    """Evidence from formulas, numbers, negations and question marks."""
    if look.formula and not look.code:
        yield PromptType.MATH, 2.0, "formula"
    if look.skeleton and not look.fenced:
        yield PromptType.EXTRACTION, 2.5, "skeleton"
    if not look.question:
        return
    if look.words <= 90 and request.turns <= 1:
        yield PromptType.QA, 2.0 if look.words <= 25 else 1.2, "question"
    if look.numbers >= 4 and not look.sourced and not look.code:
        yield PromptType.MATH, 2.5 if look.numbers >= 6 else 1.5, "numbers"
    if look.negations >= 3 and not look.sourced:
        yield PromptType.REASONING, 2.0, "negations"


def _talk(
    request: RequestText, look: PromptFeatures, scores: Mapping[PromptType, float]
) -> Iterator[_Evidence]:
    """Evidence from greetings, short turns, and prose without a request."""
    if request.raw and not look.question and look.words >= 12 and max(scores.values(), default=0.0) < 2.0:
        yield PromptType.WRITING, 2.0, "prose-to-continue"
    if look.words > _TALK_WORDS and request.turns <= 1 and scores.get(PromptType.CHAT, 0.0) > 0.0:
        yield PromptType.CHAT, -0.7 * scores[PromptType.CHAT], "not-short"
    if look.greeting and look.words <= (5 if look.question else 15):
        yield PromptType.CHAT, 3.0, "greeting"
    if request.turns >= 3 and look.words <= 80 and look.material_chars < _LONG_CHARS:
        yield PromptType.CHAT, 2.0, "short-turns"
