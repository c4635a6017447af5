"""Finds the cues of `autospec.prompts.cues` in a text, in time that grows with the text and not with the cues. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from autospec.cells import PromptType
from autospec.prompts.cues import CUES

__all__ = ["PLAIN", "WORD", "find_cues"]

# What a strong, a plain and a weak cue count.
STRONG, PLAIN, WEAK = 4.0, 2.0, 0.8
# A cue among the first words is the verb of the instruction, and counts more.
_OPENING_CHARS: Final = 45
_OPENING_BONUS: Final = 1.5
# Texts of at most a few hundred characters.
_REMEMBERED: Final = 256
WORD: Final = re.compile(r"[^\W\d_]+")
# Scripts that are written without spaces, or where words carry endings that are written with them.
_WIDE: Final = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")


@lru_cache(_REMEMBERED)
def find_cues(text: str) -> tuple[tuple[PromptType, float, str], ...]:
    """Every cue in a text, once, with what it counts. The same system prompts and earlier turns come again and again.

    Args:
        text: As `autospec.prompts.reading.fold` leaves it.
    """
    return tuple(_cues(text))


def _cues(text: str) -> Iterator[tuple[PromptType, float, str]]:
    words = WORD.findall(text)
    spoken = f" {' '.join(words)} "
    opening = spoken[:_OPENING_CHARS]
    for word in dict.fromkeys(words):
        for kind, weight in _WORDS.get(word, ()):
            yield kind, weight * _bonus(f" {word} ", opening), word
        for stem, kind, weight in _STEMS.get(word[:_STEM_KEY], ()):
            if word.startswith(stem):
                yield kind, weight * _bonus(f" {word} ", opening), f"{stem}*"
        for phrase, kind, weight in _PHRASES.get(word, ()):
            if phrase in spoken:
                yield kind, weight * _bonus(phrase, opening), phrase.strip()
    for sign in dict.fromkeys(text):
        for mark, kind, weight in _MARKS.get(sign, ()):
            if mark in text:
                yield kind, weight * _bonus(mark, text[:_OPENING_CHARS]), mark


def _bonus(cue: str, opening: str) -> float:
    return _OPENING_BONUS if cue in opening else 1.0


# No stem is shorter.
_STEM_KEY: Final = 4
_Words = dict[str, list[tuple[PromptType, float]]]
_Phrases = dict[str, list[tuple[str, PromptType, float]]]


def _index() -> tuple[_Words, _Phrases, _Phrases, _Phrases]:
    """The cues by how they are looked for: words, stems by their first letters, phrases by first word, marks by first sign."""
    words: _Words = {}
    stems: _Phrases = {}
    phrases: _Phrases = {}
    marks: _Phrases = {}
    for kind, cues in CUES.items():
        for weight, listed in zip((STRONG, PLAIN, WEAK), (cues.strong, cues.plain, cues.weak), strict=True):
            for cue in filter(None, (" ".join(cue.split()) for cue in listed.split(","))):
                stem = cue.removesuffix("*")
                if _WIDE.search(cue) or not stem.replace(" ", "").isalpha():
                    marks.setdefault(cue[0], []).append((cue, kind, weight))
                elif " " in cue:
                    phrases.setdefault(cue.split()[0], []).append((f" {cue} ", kind, weight))
                elif stem != cue:
                    stems.setdefault(stem[:_STEM_KEY], []).append((stem, kind, weight))
                else:
                    words.setdefault(cue, []).append((kind, weight))
    return words, stems, phrases, marks


_WORDS, _STEMS, _PHRASES, _MARKS = _index()
