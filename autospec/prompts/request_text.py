"""Extract text and structure of a request, whatever API it is for, from bounded heads and tails of texts.

Supported are OpenAI's chat (``messages``), completions and llama.cpp's own (``prompt``, also with a chat template already
applied), ``/infill``, Anthropic's ``/v1/messages`` and OpenAI's ``/v1/responses`` (``input``, ``instructions``). Malformed parts
are ignored; the backend refuses such a request. The word lists of `keywords.toml` are read when they are first needed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from autospec.cells import PromptType

__all__ = ["RequestText", "Text", "fold", "keywords", "read_request"]


@dataclass(frozen=True, slots=True)
class Cues:
    """The cues of one prompt type, by strength."""

    strong: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keywords:
    """All word lists; `keywords.toml` says how each is written and matched."""

    cues: Mapping[PromptType, Cues]
    greetings: frozenset[str]
    question_words: frozenset[str]
    negations: frozenset[str]
    source_marks: tuple[str, ...]
    code_marks: tuple[str, ...]
    fim_marks: tuple[str, ...]
    tool_phrases: tuple[str, ...]
    chat_tools: frozenset[str]


@cache
def keywords() -> Keywords:
    """The word lists; the first call reads the file."""
    data = tomllib.loads(Path(__file__).with_name("keywords.toml").read_text(encoding="utf-8"))
    return Keywords(
        cues={
            PromptType(kind): Cues(**{strength: tuple(cues) for strength, cues in listed.items()})
            for kind, listed in data["cues"].items()
        },
        greetings=frozenset(data["greetings"]),
        question_words=frozenset(data["question_words"]),
        negations=frozenset(data["negations"]),
        source_marks=tuple(data["source_marks"]),
        code_marks=tuple(data["code_marks"]),
        fim_marks=tuple(data["fim_marks"]),
        tool_phrases=tuple(data["tool_phrases"]),
        chat_tools=frozenset(data["chat_tools"]),
    )


# Characters examined at either end of a text: an instruction comes before or after pasted material.
HEAD_CHARS: Final = 1200
TAIL_CHARS: Final = 800
# Examined messages of a conversation (last and first) and parts of a message (first and last).
_LAST_MESSAGES: Final = 8
_FIRST_MESSAGES: Final = 4
_PARTS: Final = 8

_ACCENTS: Final = str.maketrans(
    "àáâãäåçèéêëìíîïñòóôõöùúûüýÿ\u2019\u2018", "aaaaaaceeeeiiiinooooouuuuyy''", ""
) | {
    ord("ß"): "ss",
    ord("œ"): "oe",
    ord("æ"): "ae",
}

# Turns of the usual chat templates in a raw prompt: ChatML, Llama 3, Gemma, Mistral, Alpaca and plain names.
_TURN: Final = re.compile(
    r"<\|im_start\|>\s*(system|user|assistant|tool)\s*\n"
    r"|<\|start_header_id\|>\s*(system|user|assistant|tool|ipython)\s*<\|end_header_id\|>"
    r"|<start_of_turn>\s*(user|model)\s*\n"
    r"|<\|(system|user|assistant)\|>"
    r"|(\[INST\])|(\[/INST\])"
    r"|^(### (?:Instruction|Response|Input):)",
    re.MULTILINE,
)
_TEMPLATE_ENDS: Final = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|<\|begin_of_text\|>|</?s>"
)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of any length by its two ends; `tail` is empty if `head` is the whole, `chars` is the whole length."""

    head: str = ""
    tail: str = ""
    chars: int = 0

    @classmethod
    def of(cls, whole: str) -> Text:
        """Keep both ends of a text."""
        if len(whole) <= HEAD_CHARS + TAIL_CHARS:
            return cls(whole, "", len(whole))
        return cls(whole[:HEAD_CHARS], whole[-TAIL_CHARS:], len(whole))


@dataclass(frozen=True, slots=True)
class RequestText:
    """Text and structure of one request.

    `ask` is the user's last message, `before` the earlier ones, latest first; `answered` is the assistant's last answer; `turns` counts
    user and assistant messages. `raw`: a prompt to continue, without roles. `tools` and `schema` say how tools and a required answer
    format appear (``tool-results``, ``response_format`` …); `fim`: fill-in-the-middle.
    """

    ask: Text = Text()
    system: Text = Text()
    before: tuple[Text, ...] = ()
    answered: Text = Text()
    turns: int = 0
    raw: bool = False
    tools: str = ""
    schema: str = ""
    fim: bool = False


def fold(text: str) -> str:
    """Return the text in lower case without Latin accents."""
    return text.lower().translate(_ACCENTS)


def read_request(body: Mapping[str, Any]) -> RequestText:
    """Read a parsed request body of any supported API; what it holds are dicts and lists, as JSON's parsers make them."""
    if isinstance(body.get("input_prefix"), str) or isinstance(body.get("input_suffix"), str):
        return RequestText(fim=True, raw=True)
    tools, schema = _tools(body), _schema(body)
    messages = body.get("messages")
    if not isinstance(messages, list):
        messages = body.get("input")
    if isinstance(messages, list):
        return _conversation(messages, body, tools, schema)
    prompt = _first_text(messages if isinstance(messages, str) else body.get("prompt"))
    if isinstance(messages, str):
        system = Text.of(_first_text(body.get("instructions")))
        return RequestText(Text.of(prompt), system, turns=1, tools=tools, schema=schema)
    text = Text.of(prompt)
    suffix = body.get("suffix")
    marked = any(mark in end for end in (text.head, text.tail) for mark in keywords().fim_marks)
    if marked or (isinstance(suffix, str) and suffix.strip()):
        return RequestText(text, raw=True, fim=True)
    return _raw(text, tools, schema)


def _tools(body: Mapping[str, Any]) -> str:
    offered = body.get("tools") or body.get("functions")
    if not isinstance(offered, list) or not offered or body.get("tool_choice") == "none":
        return ""
    # A page that offers its own tools with every message says nothing about the message.
    return "" if all(_tool_name(tool) in keywords().chat_tools for tool in offered) else "tools"


def _tool_name(tool: Any) -> str:
    """The name of a tool in OpenAI's or Anthropic's form; empty if it has none."""
    described = tool.get("function", tool) if isinstance(tool, dict) else None
    name = described.get("name") if isinstance(described, dict) else None
    return name if isinstance(name, str) else ""


def _schema(body: Mapping[str, Any]) -> str:
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") in ("json_schema", "json_object"):
        return "response_format"
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else body.get("format")
    if isinstance(form, dict) and (form.get("type") in ("json_schema", "json_object")):
        return "text.format"
    return next((key for key in ("json_schema", "grammar", "guided_json") if body.get(key)), "")


def _conversation(messages: list[Any], body: Mapping[str, Any], tools: str, schema: str) -> RequestText:
    """Chat messages in OpenAI's or Anthropic's form, and the items of a responses request."""
    late = messages[-_LAST_MESSAGES:]
    early = messages[: min(_FIRST_MESSAGES, len(messages) - len(late))]
    system = _first_text(body.get("system")) or _first_text(body.get("instructions"))
    asked: list[Text] = []
    answered = Text()
    turns = 0
    for message in (*early, *late):
        if not isinstance(message, dict):
            continue
        if not tools and _has_tool_traffic(message):
            tools = "tool-results"
        role = message.get("role")
        content = _content(message.get("content"))
        if role in ("system", "developer"):
            system = system or content
        elif role == "user":
            turns += 1
            if content:
                asked.append(Text.of(content))
        elif role == "assistant":
            turns += 1
            answered = Text.of(content)
    *before, ask = asked or [Text()]
    return RequestText(
        ask, Text.of(system), tuple(reversed(before)), answered, turns, tools=tools, schema=schema
    )


def _has_tool_traffic(message: Mapping[str, Any]) -> bool:
    if (
        message.get("role") in ("tool", "function")
        or message.get("tool_calls")
        or message.get("function_call")
    ):
        return True
    if message.get("type") in ("function_call", "function_call_output"):
        return True
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in ("tool_use", "tool_result") for part in _ends(content)
    )


def _content(content: Any) -> str:
    """Text of a message whose content is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [
        part["text"]
        for part in _ends(content)
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    # The ends of each part suffice; joining whole documents would be slow.
    return "\n\n".join(
        t if len(t) <= HEAD_CHARS + TAIL_CHARS else f"{t[:HEAD_CHARS]}\n{t[-TAIL_CHARS:]}" for t in texts
    )


def _ends(parts: list[Any]) -> Iterator[Any]:
    yield from parts[:_PARTS]
    yield from parts[_PARTS:][-_PARTS:]


def _first_text(value: Any) -> str:
    """A string, the text of content parts, or the first string of a batch; empty for token ids and others."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return value[0] if isinstance(value[0], str) else _content(value)
    return ""


def _raw(text: Text, tools: str, schema: str) -> RequestText:
    """A prompt to continue, or one with a chat template that the client applied itself."""
    system, asked, answered, turns = Text(), list[Text](), Text(), 0
    whole = f"{text.head}\n\n{text.tail}" if text.tail else text.head
    marks = list(_TURN.finditer(whole))
    for mark, after in zip_longest(marks, marks[1:]):
        said = _TEMPLATE_ENDS.sub("", whole[mark.end() : after.start() if after else None]).strip()
        role = next(group for group in mark.groups() if group is not None).strip("#[]/ :").lower()
        if role in ("tool", "ipython"):
            tools = tools or "tool-results"
        elif role == "system":
            system = Text(said, "", len(said))
        elif role in ("assistant", "model", "response"):
            turns += bool(said)
            answered = Text(said, "", len(said)) if said else answered
        elif said and (role != "inst" or not mark.group().startswith("[/")):
            turns += 1
            asked.append(Text(said, "", max(len(said), text.chars - len(whole) + len(said))))
        elif said:
            answered = Text(said, "", len(said))
    if not asked:
        return RequestText(text, raw=True, tools=tools, schema=schema)
    *before, ask = asked
    return RequestText(ask, system, tuple(reversed(before)), answered, turns, tools=tools, schema=schema)
