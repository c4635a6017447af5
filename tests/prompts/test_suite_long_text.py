"""The long text of the depth checks, and what stands before a prompt then."""

from __future__ import annotations

from collections import Counter

from autospec.cells import PromptType
from autospec.prompts.suite import Half, Prompt, after_text, heading, long_text

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is snow?"}


def test_the_text_is_long_enough_and_always_the_same():
    """Whole sentences; a longer text begins with the shorter one."""
    short, long = long_text(5000), long_text(150_000)
    assert 5000 <= len(short) < 5300
    assert long.startswith(short)
    assert short.rstrip().endswith(".")


def test_the_text_does_not_repeat_its_sentences():
    """An n-gram mode must not find half of the text again."""
    sentences = [s for s in long_text(150_000).replace("\n", " ").split(". ") if s]
    again = sum(count - 1 for count in Counter(sentences).values())
    assert again / len(sentences) < 0.5


def test_all_prompts_begin_alike():
    """A system message moves behind the text: else each prompt would need its own cache."""
    messages = [(SYSTEM, USER), (USER,)]
    prompts = [Prompt("p", PromptType.CHAT, m, 8, Half.PROVE) for m in messages]
    first, second = (after_text(prompt, "A diary.").messages for prompt in prompts)
    assert first[:2] == second[:2] == heading("A diary.")
    assert first[2]["content"] == "Be brief.\n\nWhat is snow?"
    assert second[2] == USER
    assert [m["role"] for m in first] == ["user", "assistant", "user"]
