"""Read prompt suites from JSONL, strictly, because a wrong prompt measures the wrong thing."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from autospec.cells import PromptType
from autospec.errors import SuiteError
from autospec.files import studies_dir

__all__ = ["Half", "Prompt", "Suite", "load_suite"]

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
