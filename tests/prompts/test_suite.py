"""Reading suites: each malformed line is refused by its number; the split into halves is fair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autospec.cells import PromptType
from autospec.errors import SuiteError
from autospec.prompts.suite import Half, Suite, load_suite

ASK = [{"role": "user", "content": "Hello"}]


def line(name: str, **changes) -> str:
    """A valid line with changes; a change to ``...`` removes the key."""
    fields = {"id": name, "prompt_type": "qa", "messages": ASK, "max_tokens": 16, **changes}
    return json.dumps({key: value for key, value in fields.items() if value is not ...})


@pytest.fixture
def read(tmp_path: Path):
    """Reads a suite made of the given lines."""

    def reader(*lines: str) -> Suite:
        file = tmp_path / "mine.jsonl"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return load_suite(file)

    return reader


def tool_call(**message) -> list[dict]:
    """A conversation with an assistant message that has this content."""
    call = {"id": "1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    return [
        *ASK,
        {"role": "assistant", "tool_calls": [call], **message},
        {"role": "tool", "tool_call_id": "1", "content": "a"},
    ]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"id": "x",', "not JSON: .* column"),
        ("[1, 2]", "not a JSON object"),
        ("9" * 5000, "JSON that cannot be read"),
        ("[" * 100_000, "JSON that cannot be read"),
        (line("x", prompt_type=...), '"prompt_type" is missing'),
        (line("x", messages=...), '"messages" is missing'),
        (line("x", id=...), '"id" is missing'),
        (line("x", max_tokens=...), '"max_tokens" is missing'),
        (line("x", max_token=5), 'unknown key "max_token".* Did you mean "max_tokens"'),
        (line("x", prompt_type="codng"), 'Did you mean "coding"'),
        (line("x", prompt_type="zzz"), "Valid: coding, editing"),
        (line("x", prompt_type=["qa"]), 'is not a valid "prompt_type"'),
        (line("x", id=""), '"id" must be a non-empty string'),
        (line("x", id=7), '"id" must be a non-empty string'),
        (line("x", messages=[]), '"messages" is empty'),
        (line("x", messages="Hello"), '"messages" must be a list of objects'),
        (line("x", messages=["Hello"]), '"messages" must be a list of objects'),
        (line("x", messages=[{"content": "Hello"}]), 'message 1 has no "role"'),
        (line("x", messages=[*ASK, {"role": "user"}]), 'message 2 has no "content"'),
        (line("x", messages=[{"role": "usr", "content": "a"}]), 'Did you mean "user"'),
        (line("x", messages=[{"role": "user", "content": None}]), '"content" must be a string'),
        (line("x", messages=[{"role": "assistant", "content": None}]), '"content" must be a string'),
        (line("x", messages=tool_call(content=5)), '"content" must be a string'),
        (
            line("x", messages=[{"role": "user", "content": [{"type": "text"}]}]),
            "lists of parts are not supported",
        ),
        (line("x", max_tokens=0), '"max_tokens" must be a whole number above 0, not 0'),
        (line("x", max_tokens=True), "not true"),
        (line("x", max_tokens=2.5), "not 2.5"),
        (line("x", max_tokens="64"), 'not "64"'),
        (line("x", half="prov"), 'Did you mean "prove"'),
        (line("x", tools={}), '"tools" must be a list of objects'),
        (line("a"), '"a" is already taken by line 1'),
        (line("x", messages=[{"role": "user", "content": "\ud83d"}]), "half of a surrogate pair"),
    ],
)
def test_a_malformed_line_is_refused_by_number(read, bad: str, says: str):
    """Every rule that a line can break names the line, here the fourth, and what is wrong."""
    with pytest.raises(SuiteError, match=says) as caught:
        read(line("a"), line("b"), "", bad)
    assert "mine.jsonl, line 4: " in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_bytes_that_are_not_utf8_are_refused_by_number(tmp_path: Path):
    """A Latin-1 file names the first line that gives it away."""
    file = tmp_path / "latin.jsonl"
    file.write_bytes(line("a").encode() + b"\n# caf\xe9\n")
    with pytest.raises(SuiteError, match=r"latin\.jsonl, line 2: not UTF-8"):
        load_suite(file)


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"])
def test_a_suite_without_prompts_is_refused(tmp_path: Path, content: str):
    """An empty file is a mistake, not a suite of nothing."""
    file = tmp_path / "empty.jsonl"
    file.write_text(content)
    with pytest.raises(SuiteError, match="has no prompts"):
        load_suite(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    """A wrong path is a sentence with the path."""
    with pytest.raises(SuiteError, match=r"nowhere\.jsonl cannot be read"):
        load_suite(tmp_path / "nowhere.jsonl")


def test_a_folder_is_refused(tmp_path: Path):
    """So is a folder."""
    with pytest.raises(SuiteError, match="cannot be read"):
        load_suite(tmp_path)


def test_comments_blank_lines_and_a_mark_are_skipped(tmp_path: Path):
    """Comments with # and //, blank lines, Windows line ends and a byte order mark do no harm."""
    file = tmp_path / "mine.jsonl"
    text = "\r\n".join(["# mine", "", line("a"), "  // and more", line("b")])
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [prompt.id for prompt in load_suite(file).prompts] == ["a", "b"]


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": ""}, {"content": "Let me see."}])
def test_an_assistant_that_calls_tools_may_be_silent(read, message: dict):
    """OpenAI's form has null content, or none, beside tool calls."""
    suite = read(line("a", messages=tool_call(**message)), line("b"))
    assert suite.prompts[0].messages[1]["tool_calls"][0]["id"] == "1"


def test_tools_are_kept(read):
    """Tool definitions arrive as they were written."""
    tool = {"type": "function", "function": {"name": "ls", "parameters": {}}}
    first, second = read(line("a", tools=[tool]), line("b")).prompts
    assert first.tools == (tool,)
    assert second.tools == ()


def test_prompts_without_half_alternate_within_their_type(read):
    """Each type alternates on its own, in the file's order, tune first."""
    suite = read(
        line("a"), line("m1", prompt_type="math"), line("b"), line("c"), line("m2", prompt_type="math")
    )
    assert {prompt.id: str(prompt.half) for prompt in suite.prompts} == {
        "a": "tune",
        "m1": "tune",
        "b": "prove",
        "c": "tune",
        "m2": "prove",
    }


def test_prompts_without_half_fill_up_beside_given_ones(read):
    """Given halves are kept, wherever they stand, and the others go to the smaller half."""
    suite = read(line("a"), line("b"), line("c", half="tune"), line("d", half="tune"))
    assert [str(prompt.half) for prompt in suite.prompts] == ["prove", "prove", "tune", "tune"]


@pytest.mark.parametrize(("half", "missing"), [("tune", "prove"), ("prove", "tune"), (..., "prove")])
def test_a_type_in_one_half_only_is_refused(read, half, missing: str):
    """What could be searched but not proven is refused, at the line of the type's first prompt."""
    with pytest.raises(SuiteError, match=f'line 3: "math" has no prompt in its {missing} half') as caught:
        read(line("a"), line("b"), line("c", prompt_type="math", half=half))
    assert "at least 2" in caught.value.hint


def test_prompts_are_found_by_type_and_half_in_file_order(read):
    """`of` keeps the order of the file, `types` that of PromptType."""
    suite = read(*(line(f"{kind}{n}", prompt_type=kind) for n in range(4) for kind in ("math", "coding")))
    assert [prompt.id for prompt in suite.of(PromptType.MATH, Half.TUNE)] == ["math0", "math2"]
    assert [prompt.id for prompt in suite.of(PromptType.CODING, Half.PROVE)] == ["coding1", "coding3"]
    assert suite.of(PromptType.QA, Half.TUNE) == ()
    assert suite.types() == (PromptType.CODING, PromptType.MATH)
    assert suite.name == "mine"


def test_the_digest_is_of_the_prompts_and_not_of_the_file(read):
    """A comment changes nothing, a changed prompt, number of tokens or half does."""
    plain = read(line("a"), line("b")).digest
    assert read("# said", line("a"), line("b")).digest == plain
    assert read(line("a", half="tune"), line("b", half="prove")).digest == plain
    other = [
        read(line("a"), line("b", max_tokens=17)).digest,
        read(line("a"), line("b", messages=[{"role": "user", "content": "Hullo"}])).digest,
        read(line("a", half="prove"), line("b")).digest,
        read(line("b"), line("a")).digest,
    ]
    assert len({plain, *other}) == 5
