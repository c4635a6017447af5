"""Which kind of work a request is: structure first, then words. Pure, and below a millisecond.

Structure decides where it can: offered tools or tool results are `agentic`, fill-in-the-middle is `coding`, a demanded
form of the answer is `extraction`. Else the *ask* — the first and the last paragraph of what the user said last, where
instructions stand — is scored by the cues of `autospec.prompts.cues`, by how the material between looks (code, sources,
length), and, less, by the system prompt and the turns before. What nothing speaks for is `qa` if it is a question and
`chat` if not.

`studies/bench/classifier.py` prints accuracy on a labelled set and microseconds per request.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from autospec.cells import PromptType
from autospec.prompts.cues import (
    CODE_MARKS,
    CUES,
    GREETINGS,
    NEGATIONS,
    QUESTION_WORDS,
    SOURCE_MARKS,
    TOOL_PHRASES,
)
from autospec.prompts.reading import Reading, Text, fold, read_request

__all__ = ["Classification", "classify"]

# What a strong, a plain and a weak cue count.
_WEIGHTS: Final = (4.0, 2.0, 0.8)
# An instruction is seldom longer; what is longer is material.
_ASK_CHARS: Final = 400
# Material that is worth asking about.
_LONG_CHARS: Final = 350
# What a paragraph that asks nothing has to say, and the length of a text up to which those in the middle count at all.
_MATERIAL: Final = 0.25
_SHORT_CHARS: Final = 1500
# Cues in the first words of a paragraph are the verb of the instruction.
_OPENING_CHARS: Final = 45
_OPENING_BONUS: Final = 1.5
# The turns before and the system prompt say what a conversation is about, the last message what is wanted now.
_BEFORE, _SYSTEM = 0.4, 0.5
# Below this nothing speaks for any type.
_LEAST_SCORE: Final = 1.0

_WORD: Final = re.compile(r"[^\W\d_]+")
_WIDE: Final = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_FORMULA: Final = re.compile(r"\d\s*[-+*/^=×·]\s*\(?[\dxyz]|[xyz]\s*[\^²³=]|\b[fg]\(x\)|\\(?:frac|int|sum|sqrt)|\d\s*%|[²³√∫∑≤≥]")
_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)?")
_PARAGRAPHS: Final = re.compile(r"\n\s*\n")
_FENCE: Final = "```"
# Tools in words: the form of a call as JSON, signatures of functions in the system prompt, results as user turns.
_CALL_FORM: Final = re.compile(r'\{\s*"(?:tool|tool_name|action|call|function|name)"\s*:')
_SIGNATURE: Final = re.compile(r"\b[a-z]\w*\([a-z_]\w*(?:, ?[a-z_]\w*)*\)")
_SIGNATURES: Final = 2
_RESULT: Final = re.compile(r"\s*<?(?:tool[ _]?)?(?:results?|outputs?|responses?|observation)\s*[:>]", re.IGNORECASE)
# The skeleton of an answer to be filled in.
_SKELETON: Final = re.compile(r'\{\s*"[^"{}\n]{1,40}"\s*:')


@dataclass(frozen=True, slots=True)
class Classification:
    """The kind of work, and by what it was known.

    Attributes:
        prompt_type: The kind of work.
        reason: Machine-readable: ``tools``, ``fim``, ``response_format``, ``words:translat*`` …
    """

    prompt_type: PromptType
    reason: str


def classify(body: Mapping[str, Any]) -> Classification:
    """Classify a parsed request body of any of the APIs that `read_request` knows.

    Args:
        body: The JSON object as the client sent it. Whatever it holds, a type is returned.
    """
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


def _tools_in_words(request: Reading) -> str:
    """How tools show in the text of a conversation that offers none in its structure; empty where they do not."""
    system = fold(f"{request.system.head}\n{request.system.tail}")
    if phrase := next((phrase for phrase in TOOL_PHRASES if phrase in system), ""):
        return f"words:{phrase.strip()}"
    if _CALL_FORM.search(system) or len(_SIGNATURE.findall(system)) >= _SIGNATURES:
        return "call-form"
    if request.raw and (phrase := next((phrase for phrase in TOOL_PHRASES if phrase in fold(request.ask.head)), "")):
        return f"words:{phrase.strip()}"
    if _RESULT.match(request.ask.head) and request.turns > 1:
        return "tool-result-in-words"
    return ""


def _by_words(request: Reading) -> Classification:
    scores: dict[PromptType, float] = defaultdict(float)
    reasons: dict[PromptType, tuple[float, str]] = {}

    def add(kind: PromptType, weight: float, reason: str) -> None:
        scores[kind] += weight
        if weight > reasons.get(kind, (0.0, ""))[0]:
            reasons[kind] = (weight, reason)

    look = _Look.at(request.ask)
    for ask, share in _asks(request, look):
        for kind, weight, cue in _cues(ask):
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


@dataclass(frozen=True, slots=True)
class _Look:
    """How the user's last text looks.

    Attributes:
        paragraphs: Folded, with how much each has to say in what is asked for.
        material_chars: What is not part of the ask.
        fenced: True if there is a fenced block.
        code: True if the material looks like code.
        sourced: True if the material looks like pasted sources.
        formula: True if there are formulas.
        question: True if a question is asked.
        skeleton: True if an object to be filled in is shown.
        greeting: True if it opens with a greeting.
        numbers: In the ask.
        negations: In the ask.
        words: In the ask, about.
    """

    paragraphs: tuple[tuple[str, float], ...]
    material_chars: int
    fenced: bool
    code: bool
    sourced: bool
    formula: bool
    question: bool
    skeleton: bool
    greeting: bool
    numbers: int
    negations: int
    words: int

    @classmethod
    def at(cls, text: Text) -> _Look:
        """Look at both ends."""
        whole = f"{text.head}\n\n{text.tail}" if text.tail else text.head
        folded = fold(whole)
        paragraphs = [part.strip() for part in _PARAGRAPHS.split(_unfenced(folded)) if part.strip()]
        ask = _weighed(paragraphs)
        said = " ".join(paragraph for paragraph, weight in ask if weight == 1.0)
        words = _WORD.findall(said)
        return cls(
            paragraphs=tuple(ask),
            material_chars=text.chars - len(said),
            fenced=_FENCE in whole,
            code=sum(mark in folded for mark in CODE_MARKS) >= (2 if _FENCE in whole else 3),
            sourced=any(mark in folded for mark in SOURCE_MARKS),
            formula=_FORMULA.search(folded) is not None,
            question=any(part.rstrip('" ').endswith(("?", "？")) for part, weight in ask if weight == 1.0)
            or bool(words and words[0] in QUESTION_WORDS),
            skeleton=_SKELETON.search(folded) is not None,
            greeting=bool(words and words[0] in GREETINGS) or said.startswith(("こん", "你好", "您好", "おは")),
            negations=sum(word in NEGATIONS for word in words),
            numbers=len(_NUMBER.findall(said)),
            words=len(words),
        )


def _weighed(paragraphs: list[str]) -> list[tuple[str, float]]:
    """The paragraphs with their say: an instruction stands first or last, what is between is mostly material."""
    if not paragraphs:
        return []
    if len(paragraphs) == 1:
        (only,) = paragraphs
        if len(only) <= 2 * _ASK_CHARS:
            return [(only, 1.0)]
        return [(only[:_ASK_CHARS], 1.0), (only[-_ASK_CHARS:], 1.0)]
    first, *between, last = paragraphs
    first, last = first[:_ASK_CHARS], last[-_ASK_CHARS:]
    first_asks, last_asks = _asks_something(first), _asks_something(last)
    # What follows a colon was announced: it is material, unless it ends with a question.
    if first.endswith((":", "：")) and not last.endswith(("?", "？")):
        last_asks = False
    short = sum(map(len, paragraphs)) <= _SHORT_CHARS
    weighed = [(first, 1.0 if first_asks or not last_asks else _MATERIAL)]
    if short:
        weighed += [(paragraph[:_ASK_CHARS], _MATERIAL) for paragraph in between]
    return [*weighed, (last, 1.0 if last_asks else _MATERIAL if first_asks else 0.6)]


def _asks_something(paragraph: str) -> bool:
    """True if a folded paragraph is an instruction or a question by its ends."""
    if paragraph.endswith(("?", "？", ":", "：")):
        return True
    return any(weight >= _WEIGHTS[1] for _, weight, _ in _cues(paragraph[: 2 * _OPENING_CHARS]))


def _unfenced(text: str) -> str:
    """The text without its fenced blocks: words in code ask for nothing."""
    return "\n\n".join(text.split(_FENCE)[::2])


def _asks(request: Reading, look: _Look) -> Iterable[tuple[str, float]]:
    yield from look.paragraphs
    if request.system.chars:
        yield fold(request.system.head[:_ASK_CHARS]), _SYSTEM
    for text in request.before[:2]:
        yield fold(text.head[:_ASK_CHARS]), _BEFORE


def _shape(request: Reading, look: _Look, scores: Mapping[PromptType, float]) -> Iterable[tuple[PromptType, float, str]]:
    """What the shape of the request adds to the words."""
    strong = max(
        (scores.get(kind, 0.0) for kind in (PromptType.EDITING, PromptType.SUMMARIZATION, PromptType.TRANSLATION)),
        default=0.0,
    )
    if look.fenced or look.code:
        yield PromptType.CODING, 3.0 if look.code else 1.5, "code"
        if scores.get(PromptType.EDITING, 0.0) >= 1.5:
            yield PromptType.EDITING, 3.0, "code-and-edit"
    if request.answered.chars >= _LONG_CHARS // 2 and scores.get(PromptType.EDITING, 0.0) >= 1.5:
        yield PromptType.EDITING, 2.5, "edit-of-the-answer"
    if look.material_chars >= _LONG_CHARS and not look.fenced and strong < 3.0:
        if look.question or look.sourced:
            yield PromptType.RAG, 2.5 if look.material_chars < 2 * _LONG_CHARS else 3.5, "long-context-and-question"
    if look.sourced and strong < 3.0:
        yield PromptType.RAG, 3.0, "sources"
    if look.formula and not look.code:
        yield PromptType.MATH, 2.0, "formula"
    if look.skeleton and not look.fenced:
        yield PromptType.EXTRACTION, 2.5, "skeleton"
    if look.question and look.words <= 90 and request.turns <= 1:
        yield PromptType.QA, 2.0 if look.words <= 25 else 1.2, "question"
    if look.numbers >= 4 and look.question and not look.sourced and not look.code:
        yield PromptType.MATH, 2.5 if look.numbers >= 6 else 1.5, "numbers"
    if look.negations >= 3 and look.question and not look.sourced:
        yield PromptType.REASONING, 2.0, "negations"
    if look.material_chars >= _LONG_CHARS and scores.get(PromptType.WRITING, 0.0) > 0.0:
        yield PromptType.WRITING, -2.0, ""
    if request.raw and not look.question and look.words >= 12 and max(scores.values(), default=0.0) < 2.0:
        yield PromptType.WRITING, 2.0, "prose-to-continue"
    if look.greeting and look.words <= 15:
        yield PromptType.CHAT, 3.0, "greeting"
    if request.turns >= 3 and look.words <= 40 and look.material_chars < _LONG_CHARS:
        yield PromptType.CHAT, 2.0, "short-turns"


def _cues(text: str) -> Iterable[tuple[PromptType, float, str]]:
    """Every cue in a folded text, once, with its weight."""
    words = _WORD.findall(text)
    spoken = f" {' '.join(words)} "
    opening = spoken[:_OPENING_CHARS]
    for word in dict.fromkeys(words):
        bonus = _OPENING_BONUS if f" {word} " in opening else 1.0
        for kind, weight in _WORDS.get(word, ()):
            yield kind, weight * bonus, word
        for length in _PREFIX_LENGTHS:
            if len(word) >= length:
                for kind, weight in _PREFIXES.get(word[:length], ()):
                    yield kind, weight * bonus, f"{word[:length]}*"
    for phrase, kind, weight in _PHRASES:
        if phrase in spoken:
            yield kind, weight * (_OPENING_BONUS if phrase in opening else 1.0), phrase.strip()
    for mark, kind, weight in _MARKS if _WIDE.search(text) else _NARROW_MARKS:
        if mark in text:
            yield kind, weight * (_OPENING_BONUS if mark in text[:_OPENING_CHARS] else 1.0), mark


_Weighted = dict[str, list[tuple[PromptType, float]]]
_Found = list[tuple[str, PromptType, float]]


def _index() -> tuple[_Weighted, _Weighted, _Found, _Found]:
    """The cues by how they are looked for: whole words, beginnings of words, phrases, anything else."""
    words: _Weighted = {}
    prefixes: _Weighted = {}
    phrases: _Found = []
    marks: _Found = []
    for kind, cues in CUES.items():
        for weight, listed in zip(_WEIGHTS, (cues.strong, cues.plain, cues.weak), strict=True):
            for cue in filter(None, map(str.strip, listed.replace("\n", " ").split(","))):
                stem = cue.removesuffix("*")
                if _WIDE.search(cue) or not stem.replace(" ", "").isalpha():
                    marks.append((cue, kind, weight))
                elif " " in cue:
                    phrases.append((f" {cue} ", kind, weight))
                else:
                    (words if stem == cue else prefixes).setdefault(stem, []).append((kind, weight))
    return words, prefixes, phrases, marks


_WORDS, _PREFIXES, _PHRASES, _MARKS = _index()
_PREFIX_LENGTHS: Final = sorted({len(prefix) for prefix in _PREFIXES})
_NARROW_MARKS: Final = [entry for entry in _MARKS if not _WIDE.search(entry[0])]
