"""The shipped suite: every prompt type in both halves, no text in both, sensible lengths."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from autospec.cells import PromptType
from autospec.files import studies_dir
from autospec.prompts.suite import Half, Prompt, Suite, load_suite

LONG_COPY = (PromptType.EDITING, PromptType.RAG, PromptType.SUMMARIZATION)
# Ids name the language of a prompt that is not in English, right after the number.
FOREIGN = re.compile(r"-[tp]\d\d-(pt|es|de|fr|it|ja|zh)-")


@pytest.fixture(scope="module")
def suite() -> Suite:
    """The shipped suite."""
    return load_suite()


def text_of(prompt: Prompt) -> str:
    """Everything that is said in a prompt."""
    return "\n".join(message["content"] for message in prompt.messages)


def rough_tokens(prompt: Prompt) -> float:
    """Prose has about 1.35 tokens a word, code one in four characters."""
    text = text_of(prompt)
    return max(1.35 * len(text.split()), len(text) / 4)


def shingles(text: str, size: int = 7) -> set[tuple[str, ...]]:
    """All runs of `size` words, without punctuation and case."""
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(size)), strict=False))


def test_every_type_has_four_to_tune_and_sixteen_to_prove(suite: Suite):
    """All twelve prompt types are there, split alike."""
    assert suite.types() == tuple(PromptType)
    for kind in PromptType:
        assert (len(suite.of(kind, Half.TUNE)), len(suite.of(kind, Half.PROVE))) == (4, 16), kind


def test_the_founding_prompt_is_proven_on(suite: Suite):
    """The prompt of the record that started the project, letter by letter."""
    (founding,) = (p for p in suite.prompts if p.id == "coding-p01-founding")
    assert founding.messages == ({"role": "user", "content": "Escreva um Palindromo em Kotlin"},)
    assert founding.prompt_type is PromptType.CODING
    assert founding.half is Half.PROVE


def test_ids_say_type_and_half(suite: Suite):
    """An id in a table tells a person what it was."""
    for prompt in suite.prompts:
        letter = "t" if prompt.half is Half.TUNE else "p"
        assert re.fullmatch(rf"{prompt.prompt_type}-{letter}\d\d-[a-z0-9-]+", prompt.id), prompt.id


def test_every_line_states_its_half():
    """The shipped split is written down, not derived."""
    lines = (studies_dir() / "suites" / "default.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("half" in json.loads(line) for line in lines)


def test_the_halves_share_no_text(suite: Suite):
    """No seven words in a row stand in both halves: proof must not see what the search saw."""
    seen = {half: set[tuple[str, ...]]() for half in Half}
    for prompt in suite.prompts:
        seen[prompt.half] |= shingles(text_of(prompt))
    assert min(map(len, seen.values())) > 5000
    assert seen[Half.TUNE] & seen[Half.PROVE] == set()


def test_long_copy_types_have_long_prompts(suite: Suite):
    """Half of each is 1-3 k tokens, in both halves; the rest is well below, so that both lengths are measured."""
    for kind in LONG_COPY:
        for half, wanted in ((Half.TUNE, 2), (Half.PROVE, 8)):
            counts = [rough_tokens(prompt) for prompt in suite.of(kind, half)]
            assert sum(1000 <= count <= 3000 for count in counts) == wanted, (kind, half, counts)
            assert sum(200 <= count <= 600 for count in counts) == wanted, (kind, half, counts)


def test_agentic_prompts_are_transcripts(suite: Suite):
    """Each has tools in a system message, calls that hold JSON, and results, 400 tokens at least."""
    for half in Half:
        for prompt in suite.of(PromptType.AGENTIC, half):
            assert 400 <= rough_tokens(prompt) <= 1500, prompt.id
            assert prompt.messages[0]["role"] == "system", prompt.id
            calls = [message["content"] for message in prompt.messages if message["role"] == "assistant"]
            assert len(calls) >= 3, prompt.id
            assert all("{" in call and "}" in call for call in calls), prompt.id
            assert all(m["content"].startswith("Tool result:") for m in prompt.messages[3::2]), prompt.id


def test_no_long_prompt_repeats_itself(suite: Suite):
    """Repetition would flatter the n-gram modes: hardly any run of ten words of prose comes twice."""
    for kind in (PromptType.RAG, PromptType.SUMMARIZATION):
        for prompt in (*suite.of(kind, Half.TUNE), *suite.of(kind, Half.PROVE)):
            words = re.findall(r"\w+", text_of(prompt).lower())
            runs = [tuple(words[start : start + 10]) for start in range(len(words) - 9)]
            assert len(set(runs)) > 0.98 * len(runs), prompt.id


def test_every_chat_alternates_and_ends_with_the_user(suite: Suite):
    """Many chat templates refuse anything else; no prompt needs a template that knows tools."""
    for prompt in suite.prompts:
        roles = [message["role"] for message in prompt.messages]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles[0] == roles[-1] == "user", prompt.id
        assert all({a, b} == {"user", "assistant"} for a, b in pairwise(roles)), prompt.id
        assert all(set(message) == {"role", "content"} for message in prompt.messages), prompt.id
        assert all(message["content"].strip() for message in prompt.messages), prompt.id
        assert prompt.tools == (), prompt.id


def test_the_halves_have_the_same_share_of_other_languages(suite: Suite):
    """A quarter of each type, half of translation, none of agentic, or the search would tune for other tokens."""
    for kind in PromptType:
        foreign = {half: [p.id for p in suite.of(kind, half) if FOREIGN.search(p.id)] for half in Half}
        if kind is PromptType.CODING:
            foreign[Half.PROVE].append("coding-p01-founding")
        wanted = {PromptType.AGENTIC: 0, PromptType.TRANSLATION: 2}.get(kind, 1)
        assert len(foreign[Half.TUNE]) == wanted, foreign
        assert len(foreign[Half.PROVE]) == 4 * wanted, foreign


def test_the_halves_have_the_same_lengths(suite: Suite):
    """Per type, the mean length of one half is within a third of the other's, roughly counted."""
    for kind in PromptType:
        mean = {
            half: sum(map(rough_tokens, suite.of(kind, half))) / len(suite.of(kind, half)) for half in Half
        }
        assert 3 / 4 < mean[Half.TUNE] / mean[Half.PROVE] < 4 / 3, (kind, mean)


def test_answers_have_sensible_lengths(suite: Suite):
    """96 to 384 tokens, 512 where a long text comes back; the founding prompt keeps its record's 512."""
    for prompt in suite.prompts:
        long_edit = prompt.prompt_type is PromptType.EDITING and rough_tokens(prompt) >= 1000
        if long_edit or prompt.id == "coding-p01-founding":
            assert prompt.max_tokens == 512, prompt.id
        else:
            assert 96 <= prompt.max_tokens <= 384, prompt.id
