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
from dataclasses import dataclass, field
from functools import cache, lru_cache
from string import ascii_lowercase
from typing import Any, Final

from autospec.cells import PromptType
from autospec.prompts.request_text import RequestText, Text, fold, keywords, read_request

__all__ = ["classify"]

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


# Weights of strong, plain and weak cues.
STRONG, PLAIN, WEAK = 4.0, 2.0, 0.8
# A cue among the first words is probably the verb of the instruction and counts more.
_OPENING_CHARS: Final = 45
_OPENING_BONUS: Final = 1.5
# Cached texts, of a few hundred characters each.
_REMEMBERED_TEXTS: Final = 256
# Cached words: those that people use again and again.
_REMEMBERED_WORDS: Final = 4096
WORD: Final = re.compile(r"[^\W\d_]+")
# Makes a blank of every byte of an ASCII text that is no small letter: a quarter of the pattern's time.
_LETTERS: Final = bytes(code if chr(code) in ascii_lowercase else 0x20 for code in range(256))
# Scripts without spaces, or with endings attached to words.
_WIDE: Final = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")


@lru_cache(_REMEMBERED_TEXTS)
def find_cues(text: str) -> tuple[tuple[PromptType, float, str], ...]:
    """Every cue in a folded text once, with type and weight, in a time that grows with the text and not with the number of cues.

    Cached, because system prompts and earlier turns repeat.
    """
    return tuple(_cues(text))


@lru_cache(_REMEMBERED_TEXTS)
def _words(text: str) -> tuple[str, ...]:
    """The words of a folded text; cached, because the cues and the features both need them."""
    if text.isascii():
        return tuple(text.encode().translate(_LETTERS).decode().split())
    return tuple(WORD.findall(text))


def _cues(text: str) -> Iterator[tuple[PromptType, float, str]]:
    words = _words(text)
    spoken = f" {' '.join(words)} "
    opening = spoken[:_OPENING_CHARS]
    for word in dict.fromkeys(words):
        if (found := _cues_of(word)) is None:
            continue
        alone, phrases = found
        for kind, weight, cue in alone:
            yield kind, weight * _bonus(f" {word} ", opening), cue
        for phrase, kind, weight in phrases:
            if phrase in spoken:
                yield kind, weight * _bonus(phrase, opening), phrase.strip()
    for mark, kind, weight in _marks_in(text):
        yield kind, weight * _bonus(mark, text[:_OPENING_CHARS]), mark


def _marks_in(text: str) -> list[_Phrase]:
    """The marks of a text in its order, as the words are: of two cues with the same weight the first is the reason."""
    if text.isascii():
        # A few marks: searching for each takes less time than looking which signs a text has.
        found = [mark for mark in _ascii_marks() if mark[0] in text]
        return sorted(found, key=lambda mark: text.index(mark[0][0])) if len(found) > 1 else found
    marks = _index().marks
    signs = sorted(marks.keys() & set(text), key=text.index)
    return [mark for sign in signs for mark in marks[sign] if mark[0] in text]


@cache
def _ascii_marks() -> tuple[_Phrase, ...]:
    return tuple(mark for marks in _index().marks.values() for mark in marks if mark[0].isascii())


@lru_cache(_REMEMBERED_WORDS)
def _cues_of(word: str) -> tuple[list[tuple[PromptType, float, str]], list[_Phrase]] | None:
    """The cues that a word is, and those that it begins; ``None`` for most words, which the cache answers at once."""
    index = _index()
    alone = [(kind, weight, word) for kind, weight in index.words.get(word, ())]
    stems = index.stems.get(word[:_STEM_KEY], ())
    alone += [(kind, weight, f"{stem}*") for stem, kind, weight in stems if word.startswith(stem)]
    phrases = index.phrases.get(word, [])
    return (alone, phrases) if alone or phrases else None


def _bonus(cue: str, opening: str) -> float:
    return _OPENING_BONUS if cue in opening else 1.0


# Length of the shortest stem.
_STEM_KEY: Final = 4
_Words = dict[str, list[tuple[PromptType, float]]]
_Phrase = tuple[str, PromptType, float]
_Phrases = dict[str, list[_Phrase]]


@dataclass(frozen=True, slots=True)
class _Index:
    """All cues: words, stems by their first letters, phrases by their first word, marks by their first sign."""

    words: _Words = field(default_factory=dict)
    stems: _Phrases = field(default_factory=dict)
    phrases: _Phrases = field(default_factory=dict)
    marks: _Phrases = field(default_factory=dict)


@cache
def _index() -> _Index:
    index = _Index()
    for kind, cues in keywords().cues.items():
        for weight, listed in zip((STRONG, PLAIN, WEAK), (cues.strong, cues.plain, cues.weak), strict=True):
            for cue in listed:
                stem = cue.removesuffix("*")
                if _WIDE.search(cue) or not stem.replace(" ", "").isalpha():
                    index.marks.setdefault(cue[0], []).append((cue, kind, weight))
                elif " " in cue:
                    index.phrases.setdefault(cue.split()[0], []).append((f" {cue} ", kind, weight))
                elif stem != cue:
                    index.stems.setdefault(stem[:_STEM_KEY], []).append((stem, kind, weight))
                else:
                    index.words.setdefault(cue, []).append((kind, weight))
    return index


# An instruction is seldom longer; the rest is material.
ASK_CHARS: Final = 400
# Part of a paragraph that shows whether it starts like an instruction.
_PARAGRAPH_OPENING_CHARS: Final = 90
# Weight of a paragraph that asks nothing, and the length of a text up to which middle paragraphs count.
_MATERIAL: Final = 0.25
_SHORT_CHARS: Final = 1500
# Greatest length of a last paragraph that adds to an instruction in the first.
_ASIDE_CHARS: Final = 200
# Signs of a formula: a text is searched for an expression only if it has one of the signs beside it, which few texts have.
_FORMULAS: Final = (
    (frozenset("²³√∫∑≤≥"), re.compile(r"[²³√∫∑≤≥]")),
    (frozenset("^²³="), re.compile(r"[xyz]\s*[\^²³=]")),
    (frozenset("-+*/^=×·%"), re.compile(r"\d\s*(?:[-+*/^=×·]\s*\(?[\dxyz]|% (?:of|de|von|di) \d)")),
    (frozenset("\\"), re.compile(r"\\(?:frac|int|sum|sqrt)")),
)
_FUNCTION: Final = re.compile(r"\b[fg]\(x\)")
_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)?")
_PARAGRAPHS: Final = re.compile(r"\n\s*\n")
_FENCE: Final = "```"
# The skeleton of an answer to fill in.
_SKELETON: Final = re.compile(r'\{\s*"[^"{}\n]{1,40}"\s*:')
# Chinese and Japanese question mark and colon.
_WIDE_QUESTION, _WIDE_COLON = "\uff1f", "\uff1a"


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """Features of the user's last text.

    `paragraphs` are folded and have their weights in the ask; `material_chars` are outside the ask. `negations` and `words` count in
    the ask, `numbers` only if it is a question, where they are evidence. `skeleton` is an object to fill in.
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
    def at(cls, text: Text) -> PromptFeatures:
        """Compute the features from both ends of a text."""
        lists = keywords()
        whole = f"{text.head}\n\n{text.tail}" if text.tail else text.head
        folded = fold(whole)
        paragraphs = [part.strip() for part in _PARAGRAPHS.split(_unfenced(folded)) if part.strip()]
        ask = _weighed(paragraphs)
        said = " ".join(paragraph for paragraph, weight in ask if weight == 1.0)
        words = [word for paragraph, weight in ask if weight == 1.0 for word in _words(paragraph)]
        signs = frozenset(folded)
        question = any(
            part.rstrip('" ').endswith(("?", _WIDE_QUESTION)) for part, weight in ask if weight == 1.0
        ) or bool(words and words[0] in lists.question_words)
        return cls(
            paragraphs=tuple(ask),
            material_chars=text.chars - len(said),
            fenced=_FENCE in whole,
            code=_found(lists.code_marks, folded, signs) >= (2 if _FENCE in whole else 3),
            sourced=_found(lists.source_marks, folded, signs) > 0,
            formula=_has_formula(folded, signs),
            question=question,
            skeleton=_SKELETON.search(folded) is not None,
            greeting=bool(words and words[0] in lists.greetings)
            or said.startswith(("こん", "你好", "您好", "おは")),
            negations=sum(map(lists.negations.__contains__, words)) + said.count("不"),
            numbers=len(_NUMBER.findall(said)) if question else 0,
            words=len(words),
        )


@cache
def _with_signs(marks: tuple[str, ...]) -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple((mark, frozenset(mark)) for mark in marks)


def _found(marks: tuple[str, ...], text: str, signs: frozenset[str]) -> int:
    """How many of the marks are in a text of these signs; a mark with another sign is not searched for."""
    return sum([mark in text for mark, needed in _with_signs(marks) if needed <= signs])


def _has_formula(text: str, signs: frozenset[str]) -> bool:
    return any(not needed.isdisjoint(signs) and pattern.search(text) for needed, pattern in _FORMULAS) or (
        "(x)" in text and _FUNCTION.search(text) is not None
    )


def _weighed(paragraphs: list[str]) -> list[tuple[str, float]]:
    """The paragraphs with their weights: an instruction is first or last, the middle is mostly material."""
    if not paragraphs:
        return []
    if len(paragraphs) == 1:
        (only,) = paragraphs
        if len(only) <= 2 * ASK_CHARS:
            return [(only, 1.0)]
        return [(only[:ASK_CHARS], 1.0), (only[-ASK_CHARS:], 1.0)]
    first, *between, last = paragraphs
    first, last = first[:ASK_CHARS], last[-ASK_CHARS:]
    first_asks, last_asks = _asks_something(first), _asks_something(last)
    # After an instruction, text after a colon or a long text is material, unless it ends with a question.
    if first_asks and not last.endswith(("?", _WIDE_QUESTION)):
        last_asks = last_asks and not first.endswith((":", _WIDE_COLON)) and len(last) <= _ASIDE_CHARS
    short = sum(map(len, paragraphs)) <= _SHORT_CHARS
    weighed = [(first, 1.0 if first_asks or not last_asks else _MATERIAL)]
    if short:
        weighed += [(paragraph[:ASK_CHARS], _MATERIAL) for paragraph in between]
    return [*weighed, (last, 1.0 if last_asks else _MATERIAL if first_asks else 0.6)]


def _asks_something(paragraph: str) -> bool:
    """True if a folded paragraph starts or ends like an instruction or a question."""
    if paragraph.endswith(("?", _WIDE_QUESTION, ":", _WIDE_COLON)):
        return True
    return any(weight >= PLAIN for _, weight, _ in find_cues(paragraph[:_PARAGRAPH_OPENING_CHARS]))


def _unfenced(text: str) -> str:
    """The text without its fenced blocks, whose words are not part of the ask."""
    return "\n\n".join(text.split(_FENCE)[::2])
