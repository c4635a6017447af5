"""Prompts to measure with: suites, read strictly from JSONL, and a long text to put before a prompt.

A wrong prompt measures the wrong thing. The long text is a diary of a weather station, written by a small grammar. Every entry
has other figures, so that the text repeats its words as a report does, and not whole passages as a copied text would: n-gram
modes must not find half of it again. The same length gives the same text.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from autospec.cells import PromptType
from autospec.errors import SuiteError
from autospec.files import studies_dir

__all__ = ["Half", "Prompt", "Suite", "after_text", "heading", "load_suite", "long_text"]

_REQUIRED = ("id", "prompt_type", "messages", "max_tokens")
_OPTIONAL = ("half", "tools")
_ROLES = ("system", "user", "assistant", "tool")


class Half(StrEnum):
    """The purpose of a prompt. A winner is proven on prompts that had no part in choosing it."""

    TUNE = "tune"
    PROVE = "prove"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation to be answered.

    `id` is unique in its suite. `messages` and `tools` have OpenAI's form. `half`: for the search or for the proof.
    """

    id: str
    prompt_type: PromptType
    messages: tuple[dict[str, Any], ...]
    max_tokens: int
    half: Half
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def size_bytes(self) -> int:
        """Length of the messages and tools as JSON. Its number of tokens depends on the model."""
        return len(orjson.dumps((self.messages, self.tools)))


@dataclass(frozen=True, slots=True)
class Suite:
    """Prompts in the order of their file; `digest` has twelve hex digits, and comments in the file do not count."""

    name: str
    prompts: tuple[Prompt, ...]
    digest: str

    def of(self, prompt_type: PromptType, half: Half) -> tuple[Prompt, ...]:
        """Return the prompts of one type and half, in the file's order."""
        return tuple(p for p in self.prompts if p.prompt_type is prompt_type and p.half is half)

    def types(self) -> tuple[PromptType, ...]:
        """Return the prompt types in the suite, in the order of `PromptType`."""
        present = {p.prompt_type for p in self.prompts}
        return tuple(t for t in PromptType if t in present)


# Number of the line, its prompt, and its half as given.
_Line = tuple[int, Prompt, Half | None]


def load_suite(path: Path | None = None) -> Suite:
    """Read a suite; without a path, the shipped default.

    One JSON object per line: ``id``, ``prompt_type``, ``messages``, ``max_tokens``, and optionally ``half`` and ``tools``. Blank
    lines and lines that start with ``//`` or ``#`` are skipped. A prompt without ``half`` goes to the half with fewer prompts of its
    type so far, to tune if equal: a file without any ``half`` is split alternately.

    Raises:
        SuiteError: The file cannot be read or a line is malformed; names the file and the line.
        AutospecError: The shipped suite is missing.
    """
    file = path if path is not None else studies_dir() / "suites" / "default.jsonl"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SuiteError(
            f"The suite {file} cannot be read: {error.strerror or error}.", "Use the path of a JSONL file."
        ) from None
    lines: list[_Line] = []
    first_seen: dict[str, int] = {}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        place = f"{file}, line {number}"
        fields = _parse(raw, place)
        if fields is None:
            continue
        prompt, half = _check(fields, place)
        if prompt.id in first_seen:
            raise SuiteError(
                f'{place}: the id "{prompt.id}" is already taken by line {first_seen[prompt.id]}.',
                "Give every prompt its own id.",
            )
        first_seen[prompt.id] = number
        lines.append((number, prompt, half))
    if not lines:
        raise SuiteError(f"The suite {file} has no prompts.", "Write one JSON object per line.")
    prompts = _split(lines, file)
    return Suite(file.stem, prompts, _digest(prompts))


def _parse(raw: bytes, place: str) -> dict[str, Any] | None:
    """The line's object, or ``None`` for a blank line or a comment."""
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError:
        raise SuiteError(f"{place}: not UTF-8.", "Save the file with UTF-8 encoding.") from None
    if not text or text.startswith(("//", "#")):
        return None
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise SuiteError(
            f"{place}: not JSON: {error.msg} at column {error.colno}.",
            "Write one JSON object per line, without line breaks inside.",
        ) from None
    except (ValueError, RecursionError):  # thousands of digits, or of nested brackets
        raise SuiteError(
            f"{place}: JSON that cannot be read.", "Write one plain JSON object per line."
        ) from None
    if not isinstance(fields, dict):
        raise SuiteError(
            f"{place}: not a JSON object.", 'Write {"id": …, "prompt_type": …, "messages": …, …}.'
        )
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise SuiteError(
            f"{place}: contains half of a surrogate pair, which cannot be sent to a server.",
            "Write the character itself instead of its \\u escapes.",
        ) from None
    return fields


def _check(fields: dict[str, Any], place: str) -> tuple[Prompt, Half | None]:
    """The line's prompt and its half, if it has one; checks every rule that concerns one line alone."""
    known = (*_REQUIRED, *_OPTIONAL)
    for key in fields:
        if key not in known:
            raise SuiteError(f'{place}: unknown key "{key}".', _suggest(key, known))
    for key in _REQUIRED:
        if key not in fields:
            raise SuiteError(
                f'{place}: the key "{key}" is missing.', f"A prompt needs {', '.join(_REQUIRED)}."
            )
    name = fields["id"]
    if not isinstance(name, str) or not name.strip():
        raise SuiteError(f'{place}: "id" must be a non-empty string.', 'For example "coding-rust-lru".')
    max_tokens = fields["max_tokens"]
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise SuiteError(
            f'{place}: "max_tokens" must be a whole number above 0, not {json.dumps(max_tokens)}.',
            "For example 256.",
        )
    given = fields.get("half")
    prompt_type = PromptType(_choice(fields["prompt_type"], "prompt_type", tuple(PromptType), place))
    messages = _messages(fields["messages"], place)
    half = None if given is None else Half(_choice(given, "half", tuple(Half), place))
    tools = _objects(fields.get("tools", []), "tools", place)
    return Prompt(name, prompt_type, messages, max_tokens, half or Half.TUNE, tools), half


def _messages(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    messages = _objects(value, "messages", place)
    if not messages:
        raise SuiteError(f'{place}: "messages" is empty.', "A prompt needs at least one message.")
    for position, message in enumerate(messages, start=1):
        where = f"{place}: message {position}"
        if "role" not in message:
            raise SuiteError(f'{where} has no "role".', f"One of {', '.join(_ROLES)}.")
        role = _choice(message["role"], "role", _ROLES, where)
        content = message.get("content")
        # In OpenAI's form, an assistant message with tool calls may have null or no content.
        silent = content is None and role == "assistant" and message.get("tool_calls")
        if not silent and "content" not in message:
            raise SuiteError(
                f'{where} has no "content".', 'Only an assistant message with tool_calls may lack "content".'
            )
        if not silent and not isinstance(content, str):
            raise SuiteError(
                f'{where}: "content" must be a string.',
                "Only an assistant message with tool_calls may have null as content; lists of parts are not supported.",
            )
    return messages


def _objects(value: Any, key: str, place: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise SuiteError(f'{place}: "{key}" must be a list of objects.', 'For example [{"role": "user", …}].')
    return tuple(value)


def _choice(value: Any, key: str, known: tuple[str, ...], place: str) -> str:
    if isinstance(value, str) and value in known:
        return value
    shown = json.dumps(value, ensure_ascii=False)
    raise SuiteError(f'{place}: {shown} is not a valid "{key}".', _suggest(str(value), known))


def _suggest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f'Did you mean "{near[0]}"?' if near else f"Valid: {', '.join(known)}."


def _split(lines: list[_Line], file: Path) -> tuple[Prompt, ...]:
    """Assign every prompt to a half; each type needs both, or it could not be proven."""
    counts = Counter((prompt.prompt_type, half) for _, prompt, half in lines if half is not None)
    prompts = []
    for _, prompt, given in lines:
        half = given
        if half is None:
            fewer = counts[prompt.prompt_type, Half.PROVE] < counts[prompt.prompt_type, Half.TUNE]
            half = Half.PROVE if fewer else Half.TUNE
            counts[prompt.prompt_type, half] += 1
        prompts.append(replace(prompt, half=half))
    for number, prompt, _ in lines:
        for half in Half:
            if not counts[prompt.prompt_type, half]:
                raise SuiteError(
                    f'{file}, line {number}: "{prompt.prompt_type}" has no prompt in its {half} half.',
                    "Each prompt type needs at least 2 prompts, one in each half. Without `half`, autospec splits them.",
                )
    return tuple(prompts)


def _digest(prompts: tuple[Prompt, ...]) -> str:
    content = [[p.id, p.prompt_type, p.half, p.max_tokens, p.messages, p.tools] for p in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


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
