"""Features of the user's last text, and a search for cues whose time grows with the text and not with the number of cues."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Final

from autospec.cells import PromptType
from autospec.prompts.request_text import Text, fold, keywords

__all__ = ["ASK_CHARS", "PromptFeatures", "find_cues"]


# Weights of strong, plain and weak cues.
STRONG, PLAIN, WEAK = 4.0, 2.0, 0.8
# A cue among the first words is probably the verb of the instruction and counts more.
_OPENING_CHARS: Final = 45
_OPENING_BONUS: Final = 1.5
# Cached texts, of a few hundred characters each.
_REMEMBERED: Final = 256
# Cached words: those that people use again and again.
_REMEMBERED_WORDS: Final = 4096
WORD: Final = re.compile(r"[^\W\d_]+")
# The same in a folded ASCII text, in half the time.
_ASCII_WORD: Final = re.compile(r"[a-z]+")
# Scripts without spaces, or with endings attached to words.
_WIDE: Final = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")


@lru_cache(_REMEMBERED)
def find_cues(text: str) -> tuple[tuple[PromptType, float, str], ...]:
    """Every cue in a folded text once, with type and weight; cached, because system prompts and earlier turns repeat."""
    return tuple(_cues(text))


@lru_cache(_REMEMBERED)
def _words(text: str) -> tuple[str, ...]:
    """The words of a folded text; cached, because the cues and the features both need them."""
    return tuple((_ASCII_WORD if text.isascii() else WORD).findall(text))


def _cues(text: str) -> Iterator[tuple[PromptType, float, str]]:
    index = _index()
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
    # In the text's order, as the words are: of two cues with the same weight the first is the reason.
    for sign in sorted(index.marks.keys() & set(text), key=text.index):
        for mark, kind, weight in index.marks[sign]:
            if mark in text:
                yield kind, weight * _bonus(mark, text[:_OPENING_CHARS]), mark


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

    `paragraphs` are folded and have their weights in the ask; `material_chars` are outside the ask. `numbers`, `negations` and `words`
    count in the ask. `skeleton` is an object to fill in.
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
        return cls(
            paragraphs=tuple(ask),
            material_chars=text.chars - len(said),
            fenced=_FENCE in whole,
            code=_found(lists.code_marks, folded, signs) >= (2 if _FENCE in whole else 3),
            sourced=_found(lists.source_marks, folded, signs) > 0,
            formula=_has_formula(folded, signs),
            question=any(
                part.rstrip('" ').endswith(("?", _WIDE_QUESTION)) for part, weight in ask if weight == 1.0
            )
            or bool(words and words[0] in lists.question_words),
            skeleton=_SKELETON.search(folded) is not None,
            greeting=bool(words and words[0] in lists.greetings)
            or said.startswith(("こん", "你好", "您好", "おは")),
            negations=sum(map(lists.negations.__contains__, words)) + said.count("不"),
            numbers=len(_NUMBER.findall(said)),
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
