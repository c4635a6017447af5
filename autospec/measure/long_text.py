"""A long, readable text, written by a small grammar: what is in the context when a drafting is checked behind many tokens.

It is a diary of a weather station. Every entry has other figures, so that the text repeats its words as a report does, and not
whole passages as a copied text would: n-gram modes must not find half of it again. The same length gives the same text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from autospec.prompts.suite import Prompt

__all__ = ["ACKNOWLEDGED", "after_text", "heading", "long_text"]

_SEED = 1
ACKNOWLEDGED = "I have read the diary. What would you like me to do?"
_INTRODUCTION = (
    "This is the diary of our weather station. Read it; another task follows, which may not need it.\n\n"
)

_PEOPLE = ("Marta", "Jonas", "Adela", "Tomasz", "Ines", "Rune", "Sabine", "Okan", "Lucia", "Henrik")
_INSTRUMENTS = (
    "the rain gauge",
    "the north anemometer",
    "the barometer in the hut",
    "the soil thermometer",
    "the cloud camera",
    "the snow pillow",
    "the humidity sensor",
    "the radio link to the valley",
    "the battery of the mast",
    "the sunshine recorder",
)
_FINDINGS = (
    "showed {number} units more than the day before",
    "was {number} minutes late again",
    "lost {number} readings in the night",
    "agreed with the spare one to within {number} parts in a thousand",
    "had to be cleaned after {number} days of dust",
    "was silent until {number} past seven",
)
_ACTIONS = (
    "cleaned it and noted the serial number {number}",
    "replaced a cable of {number} centimetres",
    "wrote to the workshop and asked for part {number}",
    "left it alone, because the error is below {number} percent",
    "compared it with the record of {number} weeks ago",
    "moved it {number} steps away from the wall",
)
_WEATHER = (
    "Fog lay in the valley until {number} minutes after sunrise",
    "The wind turned from the west to the north within {number} minutes",
    "A shower of {number} tenths of a millimetre fell on the eastern slope",
    "The night was clear, and the grass fell to {number} tenths of a degree below zero",
    "High clouds came in from the sea, about {number} hundred metres above the ridge",
    "The pressure fell by {number} tenths within the hour",
)
_REMARKS = (
    "We should look at the table of the {number}th week before we trust this value",
    "Nobody on the road reported damage, though {number} branches were down",
    "The visitors counted {number} swallows on the wire and asked what the mast is for",
    "If this happens a {number}th time, the mounting is to blame and not the weather",
    "The bus was {number} minutes late, so the evening reading was taken by lamp light",
)


def long_text(characters: int) -> str:
    """The beginning of the diary: whole sentences, at least this long."""
    parts: list[str] = []
    length = 0
    for entry in _entries():
        for sentence in entry:
            if length >= characters:
                return "".join(parts)
            parts.append(sentence)
            length += len(sentence)
    raise AssertionError("the diary has no end")


def heading(text: str) -> tuple[dict[str, Any], ...]:
    """The messages with the text: a question with it, and an answer that waits for the task."""
    return (
        {"role": "user", "content": _INTRODUCTION + text},
        {"role": "assistant", "content": ACKNOWLEDGED},
    )


def after_text(prompt: Prompt, text: str) -> Prompt:
    """The prompt behind the text. A system message moves into the user's, so that all prompts begin with the same tokens."""
    messages = list(prompt.messages)
    system = [m for m in messages if m["role"] == "system"]
    rest = [m for m in messages if m["role"] != "system"]
    if system and rest and isinstance(rest[0].get("content"), str):
        told = "\n\n".join(str(m["content"]) for m in system)
        rest[0] = {**rest[0], "content": f"{told}\n\n{rest[0]['content']}"}
    return replace(prompt, messages=(*heading(text), *rest))


def _entries() -> Iterator[Sequence[str]]:
    """Entries without end, each a list of sentences."""
    draw = random.Random(_SEED)  # noqa: S311 - a text, no secret

    def filled(kind: Sequence[str]) -> str:
        return draw.choice(kind).format(number=draw.randint(2, 98))

    day = 0
    while True:
        day += 1
        person, other = draw.sample(_PEOPLE, 2)
        instrument = draw.choice(_INSTRUMENTS)
        yield (
            f"Day {day}, written by {person}. ",
            f"{filled(_WEATHER)}. ",
            f"{instrument[0].upper()}{instrument[1:]} {filled(_FINDINGS)}, and {other} {filled(_ACTIONS)}. ",
            f"{filled(_REMARKS)}.\n\n",
        )
