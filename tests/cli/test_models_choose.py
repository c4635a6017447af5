"""`autospec tune` without --model: a list to choose from on a terminal, one sentence elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from click.testing import CliRunner

from autospec.cells import PromptType
from autospec.cli import cli
from autospec.cli.models import choose_model, proven_words
from autospec.cli.shell import Shell
from autospec.errors import UsageError
from autospec.hardware import identify
from autospec.recommendations import Status, Verdict
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.catalog.making import write_gguf
from tests.report.samples import recommendation, stored


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.fixture
def three_models(own_models, two_models, monkeypatch):
    """A main model, a draft that fits it, and a stranger."""
    monkeypatch.setenv("COLUMNS", "100")
    return two_models


@pytest.fixture
def ask(monkeypatch):
    """Chooses with these typed lines: what was chosen, and what the terminal shows."""

    def ask(typed):
        screen = Terminal()
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        monkeypatch.setattr("sys.stderr", screen)
        return choose_model(Shell()), screen.getvalue()

    return ask


def test_a_number_or_a_name(three_models, ask):
    """In the order of `autospec models`; a part of the name is enough."""
    main = str(three_models / "Tiny-Main-F16.gguf")
    assert ask("3\n")[0] == main
    assert ask(" main \n")[0] == main
    assert ask("Stranger\n")[0] == str(three_models / "Stranger.gguf")
    assert ask(f"{main}\n")[0] == main


def test_the_list_says_what_a_choice_needs(three_models, ask):
    """Sizes, fitting drafts, and what is proven already on this machine."""
    store = open_store(load_settings().storage)
    coding = recommendation(model="Tiny-Main-F16")
    store.save_recommendation(coding, identify(), "k1")
    chat = replace(recommendation(Verdict.DISABLE, model="Tiny-Main-F16"), prompt_type=PromptType.CHAT)
    store.save_recommendation(chat, identify(), "k2")
    store.save_recommendation(recommendation(model="Stranger"), replace(identify(), id="another"), "k3")
    store.close()
    _, screen = ask("1\n")
    lines = screen.splitlines()
    assert lines[0] == "Which model?"
    assert lines[1].startswith("  1  Stranger (")
    assert lines[1].endswith("no draft fits")
    text = " ".join(screen.split())
    assert "3 Tiny-Main-F16 (1.1 MB): 1 draft fits; proven: drafting pays for coding, not for chat" in text
    assert screen.endswith("Number or name: ")


def test_a_narrow_terminal_wraps_at_words(three_models, ask, monkeypatch):
    """The number stands out on the left."""
    monkeypatch.setenv("COLUMNS", "30")
    _, screen = ask("1\n")
    lines = screen.splitlines()
    assert max(map(len, lines)) < 30
    assert any(line.startswith("     ") for line in lines)


def test_it_asks_again(three_models, ask):
    """A number that is not there, a name that means nothing or several models, an empty line."""
    chosen, screen = ask("9\n0\n\nnosuch\ntiny\n3\n")
    assert chosen.endswith("Tiny-Main-F16.gguf")
    assert "There is no number 9; the last one is 3." in screen
    assert "There is no number 0" in screen
    assert "No model matches nosuch." in screen
    assert "tiny could be any of 2 models" in screen
    assert screen.count("Number or name: ") == 6


def test_a_model_whose_name_is_a_number(three_models, ask):
    """The exact name wins."""
    write_gguf(three_models / "7.gguf", layers=2)
    assert ask("7\n")[0] == str(three_models / "7.gguf")


def test_models_of_the_same_name_have_their_paths(three_models, ask):
    """Two quantizations in two folders may have one name."""
    other = three_models / "other"
    other.mkdir()
    write_gguf(other / "Stranger.gguf", layers=3)
    chosen, screen = ask("1\n")
    assert chosen in {str(other / "Stranger.gguf"), str(three_models / "Stranger.gguf")}
    assert str(other / "Stranger.gguf") in "".join(line.strip() for line in screen.splitlines())


def test_the_end_of_the_input_is_no_choice(three_models, ask):
    """Ctrl-D: no model, no traceback, exit code 2."""
    with pytest.raises(UsageError, match="No model was chosen") as caught:
        ask("")
    assert caught.value.exit_code == 2


def test_ctrl_c_ends_it(three_models, monkeypatch):
    """As everywhere: 130."""

    class Interrupted(Terminal):
        def readline(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(KeyboardInterrupt):
        choose_model(Shell())


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_without_a_terminal_one_sentence_names_them(three_models, args):
    """Nothing on stdout, exit code 2."""
    result = CliRunner().invoke(cli, ["tune", *args])
    assert result.exit_code == 2
    assert result.stdout == ""
    names = "Stranger, Tiny-Draft-F16, Tiny-Main-F16"
    assert result.stderr == f"autospec: No model is named: give --model one of {names}.\n"


def test_json_asks_nobody(three_models, monkeypatch):
    """Also on a terminal: whoever reads JSON types no numbers."""
    monkeypatch.setattr("sys.stdin", Terminal("1\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(UsageError, match="No model is named"):
        choose_model(Shell(json=True))


def test_without_models_it_says_where_they_are_looked_for(three_models, ask):
    """The same sentence as `autospec models`."""
    for file in three_models.iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=r"No models found in .*AUTOSPEC_MODEL_DIRS"):
        ask("1\n")


def test_what_is_proven_in_words():
    """Only proofs count; many types are counted."""
    kinds = list(PromptType)
    pays = [stored(recommendation(prompt_type=k), key=str(k)) for k in kinds[:6]]
    loses = [stored(recommendation(Verdict.DISABLE, prompt_type=k), key=str(k)) for k in kinds[6:8]]
    name = "Main-7B-Q4_K_M"
    assert proven_words(pays[:1], name) == "proven: drafting pays for coding"
    assert proven_words([*pays, *loses], name) == (
        "proven: drafting pays for coding, editing, extraction and 3 more, not for rag, summarization"
    )
    assert proven_words(loses, name) == "proven: drafting pays for none of rag, summarization"
    assert proven_words(pays, "another") == ""
    assert proven_words([stored(recommendation(status=Status.PROVISIONAL))], name) == ""


def test_undecided_is_no_reason_against():
    """A proof that ended without an answer."""
    pays = stored(recommendation(prompt_type=PromptType.CODING), key="pays")
    left = stored(recommendation(Verdict.UNDECIDED, prompt_type=PromptType.CHAT), key="left")
    name = "Main-7B-Q4_K_M"
    assert proven_words([pays, left], name) == "proven: drafting pays for coding, undecided for chat"
    assert proven_words([left], name) == "undecided for chat"
