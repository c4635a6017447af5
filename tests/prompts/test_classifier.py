"""The classifier: the structure of every API's form first, words in several languages, bounded work, no error."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.cells import PromptType
from autospec.prompts import classifier
from autospec.prompts.classifier import classify
from autospec.prompts.request_text import HEAD_CHARS, TAIL_CHARS, fold, keywords, read_request

LABELLED = Path(__file__).parents[2] / "studies" / "bench" / "prompt_types.jsonl"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


def chat(text: str, **more: Any) -> dict[str, Any]:
    """A chat request with one message."""
    return {"messages": [{"role": "user", "content": text}], **more}


def page_tools(*more: str) -> list[dict[str, Any]]:
    """Some of what Open WebUI 0.12 offers with every message, and more."""
    names = ("get_current_timestamp", "ask_user", "query_knowledge_files", "create_calendar_event", *more)
    return [{"type": "function", "function": {"name": name, "parameters": {}}} for name in names]


def test_the_tools_of_a_chat_page_do_not_make_its_chats_agentic():
    """Every chat of Open WebUI 0.12 was `agentic`, so that no verdict for another type was ever used for it."""
    asked = "Translate into French: the moon is bright tonight."
    assert classify(chat(asked, tools=page_tools())) == classify(chat(asked))
    assert classify(chat(asked, tools=page_tools())).prompt_type == "translation"
    used = chat(asked, tools=page_tools())
    used["messages"] = [*used["messages"], {"role": "tool", "content": "98 %"}]
    assert classify(used).reason == "tool-results"
    for offered in (page_tools("search_web"), page_tools("my_tool"), [*page_tools(), {"function": 1}, 5]):
        assert classify(chat(asked, tools=offered)).reason == "tools"


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (chat("Is it raining?", tools=[TOOL]), "agentic", "tools"),
        (chat("Is it raining?", functions=[{"name": "rain"}]), "agentic", "tools"),
        ({"input": "Is it raining?", "tools": [{"type": "function", "name": "rain"}]}, "agentic", "tools"),
        (
            {"messages": [{"role": "user", "content": "How full?"}, {"role": "tool", "content": "98 %"}]},
            "agentic",
            "tool-results",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "98 %"}]}]},
            "agentic",
            "tool-results",
        ),
        ({"input": [{"type": "function_call_output", "output": "98 %"}]}, "agentic", "tool-results"),
        (chat("Who is it?", response_format=SCHEMA), "extraction", "response_format"),
        (chat("Who is it?", response_format={"type": "json_object"}), "extraction", "response_format"),
        ({"input": "Who?", "text": {"format": {"type": "json_schema"}}}, "extraction", "text.format"),
        ({"prompt": "Who is it?", "json_schema": {"type": "object"}}, "extraction", "json_schema"),
        ({"prompt": "Who is it?", "grammar": "root ::= [a-z]"}, "extraction", "grammar"),
        ({"input_prefix": "def f(", "input_suffix": ")"}, "coding", "fim"),
        ({"prompt": "def f(", "suffix": "):"}, "coding", "fim"),
        ({"prompt": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"}, "coding", "fim"),
        ({"prompt": "<PRE> a <SUF>b <MID>"}, "coding", "fim"),
    ],
)
def test_structure_decides(body: dict[str, Any], kind: str, reason: str):
    """Tools, a demanded form and fill-in-the-middle need no words."""
    found = classify(body)
    assert (found.prompt_type, found.reason) == (kind, reason)


def test_tools_that_must_not_be_used_are_no_tools():
    """`tool_choice: none` and an empty list leave the words to decide."""
    assert classify(chat("Translate into German: good night", tools=[])).prompt_type == "translation"
    body = chat("Translate into German: good night", tools=[TOOL], tool_choice="none")
    assert classify(body).prompt_type == "translation"


@pytest.mark.parametrize("body", [
    {"messages": [{"role": "user", "content": "{}"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "{}"}]}]},
    {"system": [{"type": "text", "text": "Be brief."}], "messages": [{"role": "user", "content": "{}"}]},
    {"input": "{}"},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "{}"}]}]},
    {"prompt": "{}"},
    {"prompt": ["{}"]},
    {"prompt": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"},
    {"prompt": "<s>[INST] {} [/INST]"},
    {"prompt": "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"},
])  # fmt: skip
def test_every_api_says_the_same(body: dict[str, Any]):
    """The same words in any API's form, or in a chat template, are of the same type."""
    for text, kind in (
        ("Summarize this article in three sentences: the ice was thin.", "summarization"),
        ("What is the capital of Mongolia?", "qa"),
    ):
        filled = json.loads(json.dumps(body).replace("{}", text))
        assert classify(filled).prompt_type == kind, filled


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Traduza para o inglês: o elevador está quebrado.", "translation"),
        ("Übersetze ins Englische: Der Zug hält nicht.", "translation"),
        ("把这句话翻译成英文。老街要拆了。", "translation"),
        ("Résume ce texte en une phrase.", "summarization"),
        ("次の文章を要約してください。", "summarization"),
        ("Corrige las faltas de este texto y deja el resto igual:", "editing"),
        ("请润色下面这段话。", "editing"),
        ("Estrai dal testo nome e città e restituisci un array JSON.", "extraction"),
        ("Escreva um Palindromo em Kotlin", "coding"),
        ("Schreibe ein Gedicht über den ersten Frost.", "writing"),
        ("Résoudre le système d'équations : 2x + 3y = 12 et x − y = 1.", "math"),
        ("¿Cuántos huesos tiene el cuerpo humano?", "qa"),
        ("Oi, tudo bem?", "chat"),
    ],
)
def test_words_in_many_languages(text: str, kind: str):
    """The instruction is understood in the languages that the cues are written in."""
    assert classify(chat(text)).prompt_type == kind


def test_an_instruction_stands_before_or_after_what_was_pasted():
    """At either end of a long text, and not in its middle."""
    pasted = "\n\n".join(["The rain had not stopped for a week, and the river rose."] * 200)
    assert classify(chat(f"Summarize this:\n\n{pasted}")).prompt_type == "summarization"
    assert classify(chat(f"{pasted}\n\nSummarize this.")).prompt_type == "summarization"
    assert classify(chat(f"{pasted}\n\nHow long had it rained, according to the text?")).prompt_type == "rag"


def test_the_middle_of_a_long_text_is_not_looked_at():
    """Bounded work: whatever stands there changes nothing."""
    before, after = "Translate into French: " + "a" * HEAD_CHARS, "b" * TAIL_CHARS
    plain = classify(chat(f"{before}{'c' * 1000}{after}"))
    other = classify(chat(f"{before} summarize extract poem {'d' * 1_000_000}{after}"))
    assert plain == other


def test_code_with_an_edit_is_editing_and_code_alone_is_coding():
    """A fence alone asks about code; a fence with "rename" asks for it again."""
    code = "\n\n```python\ndef f(tmp):\n    return tmp + 1\n```"
    assert classify(chat(f"Rename `tmp` to `n` and leave the rest as it is:{code}")).prompt_type == "editing"
    assert classify(chat(f"When does this fail?{code}")).prompt_type == "coding"


def test_every_result_has_a_reason():
    """Short, machine-readable, never empty."""
    for row in map(json.loads, LABELLED.read_text(encoding="utf-8").splitlines()):
        reason = classify(row["body"]).reason
        assert reason
        assert len(reason) < 60
        assert "\n" not in reason


def test_the_labelled_set_is_what_the_bench_says():
    """At least 240 requests, 20 of every type, both halves of all types, no request twice."""
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    by_type = Counter(row["prompt_type"] for row in rows)
    assert len(rows) >= 240
    assert set(by_type) == set(map(str, PromptType))
    assert min(by_type.values()) >= 20
    halves = Counter((row["prompt_type"], row["half"]) for row in rows)
    assert min(halves.values()) >= 10
    assert len({row["id"] for row in rows}) == len({json.dumps(row["body"]) for row in rows}) == len(rows)


def test_most_held_out_requests_are_named_rightly():
    """A change of the rules that makes them much worse is noticed; the figures themselves are the bench's."""
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    heldout = [row for row in rows if row["half"] == "heldout"]
    right = sum(classify(row["body"]).prompt_type == row["prompt_type"] for row in heldout)
    assert right >= 0.85 * len(heldout)


KEYS = ("messages", "input", "prompt", "system", "instructions", "tools", "functions", "response_format", "text",
        "suffix", "input_prefix", "role", "content", "type", "tool_calls", "format")  # fmt: skip
json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=30), st.sampled_from(("user", "[INST]"))
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=5))
def test_whatever_a_body_holds_a_type_is_returned(body: dict[str, Any]):
    """Malformed requests are for the backend to refuse."""
    assert classify(body).prompt_type in PromptType


# All signs of a formula as one expression, and texts out of the pieces that the quick searches look for.
FORMULA = re.compile(
    r"\d\s*[-+*/^=×·]\s*\(?[\dxyz]|[xyz]\s*[\^²³=]|\b[fg]\(x\)|\d\s*% (?:of|de|von|di) \d|\\(?:frac|int|sum|sqrt)|[²³√∫∑≤≥]"
)
PIECES = ["3", " ", "+", "(", "x", "^", "=", "f(x)", "of(x)", "% of ", "%", "\\frac", "√", "def ", "();", "[1]", "资料", "c#", "node.js", ":)", "c++", "ü", "_", "\n"]  # fmt: skip


def same_features(text: str) -> None:
    """The quick searches find what the plain ones find."""
    assert classifier._has_formula(text, frozenset(text)) is (FORMULA.search(text) is not None)
    assert classifier._words(text) == tuple(classifier.WORD.findall(text))
    for marks in (keywords().code_marks, keywords().source_marks):
        assert classifier._found(marks, text, frozenset(text)) == sum(mark in text for mark in marks)
    # A last letter that is in no mark makes a text one that is not ASCII, with the same marks.
    assert classifier._marks_in(text) == classifier._marks_in(f"{text}ü")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_quick_searches_find_the_same(text):
    """In texts that are nearly formulas, code or sources."""
    same_features(fold(text))


def test_quick_searches_find_the_same_in_the_labelled_set():
    """In texts as people write them."""
    asks = [read_request(json.loads(line)["body"]).ask for line in LABELLED.read_text("utf-8").splitlines()]
    formulas = 0
    for ask in asks:
        same_features(fold(ask.head))
        formulas += classifier._has_formula(fold(ask.head), frozenset(fold(ask.head)))
    assert 10 < formulas < len(asks) / 2
