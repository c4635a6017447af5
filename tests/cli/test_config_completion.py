"""`autospec completion`: a script for each shell, and what Tab offers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from autospec.catalog import scan as scanning
from autospec.catalog.scan import scan
from autospec.cli import COMMANDS, cli
from autospec.cli.config import SHELLS
from autospec.settings import load_settings
from tests.catalog.making import TOKENS, write_gguf

ROOT = Path(__file__).parents[2]
# What each shell is told to call at Tab.
CALLS = {
    "bash": "_AUTOSPEC_COMPLETE=bash_complete",
    "zsh": "_AUTOSPEC_COMPLETE=zsh_complete",
    "fish": "_AUTOSPEC_COMPLETE=fish_complete",
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, no_model_stores: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this machine's models is known."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path / "autospec"))
    return tmp_path


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, which `autospec models` has found before."""
    folder = tmp_path / "models"
    folder.mkdir()
    write_gguf(folder / "Qwen-Main-F16.gguf", layers=4)
    write_gguf(folder / "qwen-draft-F16.gguf", layers=1, tokens=[*TOKENS[:9], "x", *TOKENS[10:]])
    monkeypatch.setenv("AUTOSPEC_MODEL_DIRS", str(folder))
    assert len(scan(load_settings()).models) == 2
    return folder


def offered(*words: str) -> list[str]:
    """What Tab offers behind the last word; files and folders are named by their kind."""
    complete = ShellComplete(cli, {}, "autospec", "_AUTOSPEC_COMPLETE")
    items = complete.get_completions(list(words[:-1]), words[-1])
    return [item.value if item.type == "plain" else f"<{item.type}>" for item in items]


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_a_script(name):
    """It asks autospec, by the words that click listens to."""
    result = CliRunner().invoke(cli, ["completion", name])
    assert result.exit_code == 0
    assert CALLS[name] in result.stdout
    assert result.stderr == ""


@pytest.mark.process
def test_the_script_of_bash():
    """Click asks bash for its version, since old ones cannot use it."""
    result = CliRunner().invoke(cli, ["completion", "bash"])
    assert result.exit_code == 0
    assert CALLS["bash"] in result.stdout


def test_as_a_document():
    """For installers."""
    result = CliRunner().invoke(cli, ["completion", "zsh", "--json"])
    document = json.loads(result.stdout)
    assert document.keys() == {"schema", "shell", "script"}
    assert [document["schema"], document["shell"]] == [1, "zsh"]
    assert document["script"] + "\n" == CliRunner().invoke(cli, ["completion", "zsh"]).stdout


def test_another_shell_is_refused():
    """With the names of those that are known."""
    result = CliRunner().invoke(cli, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert all(name in result.stderr for name in SHELLS)


def test_help_says_how_to_install_it():
    """A line for each shell."""
    text = CliRunner().invoke(cli, ["completion", "--help"]).stdout
    assert all(f"autospec completion {name}" in text for name in SHELLS)


def test_commands():
    """From the table; options where a dash was typed."""
    assert offered("") == list(COMMANDS)
    assert offered("rec") == ["recommend"]
    assert "--help" in offered("--h")
    assert offered("service", "un") == ["uninstall"]


def test_commands_are_offered_without_their_modules(monkeypatch):
    """Importing all of them would take a second at each Tab."""
    for name in list(sys.modules):
        if name in {module for module, _ in COMMANDS.values()}:
            monkeypatch.delitem(sys.modules, name)
    assert "tune" in offered("")
    assert not {module for module, _ in COMMANDS.values()} & sys.modules.keys()


def test_an_unknown_command_offers_nothing():
    """And writes no error into the line that is being typed."""
    assert offered("nosuch", "x") == []


def test_choices():
    """Click's own: prompt types, shells."""
    assert offered("tune", "-t", "cod") == ["coding"]
    assert offered("completion", "") == list(SHELLS)


@pytest.mark.parametrize("words", [("tune", "-m"), ("tune", "--draft"), ("drafts", "--model"), ("bench", "-d"),
                                   ("proxy", "-m"), ("recommend", "-m"), ("explain", "-m"), ("studies", "export", "-m")])  # fmt: skip
def test_models(searched, words):
    """Of the last search, by how they begin, in whichever case."""
    assert offered(*words, "") == ["qwen-draft-F16", "Qwen-Main-F16"]
    assert offered(*words, "QWEN-M") == ["Qwen-Main-F16"]


def test_the_disk_is_not_searched(searched, monkeypatch):
    """A search may take seconds."""
    monkeypatch.setattr(scanning, "scan", lambda *_, **__: pytest.fail("Tab searched the disk"))
    monkeypatch.setattr(scanning, "walk", lambda *_, **__: pytest.fail("Tab searched the disk"))
    shutil.rmtree(searched)
    assert offered("tune", "-m", "qwen-d") == ["qwen-draft-F16"]


@pytest.mark.parametrize("typed", ["./", "/srv/mo", "~/mod", "../x", "nosuch"])
def test_paths_are_the_shells_own(searched, typed):
    """Also where no known model begins like that: it may be a file here."""
    assert offered("tune", "-m", typed) == ["<file>"]


def test_nothing_is_known_yet():
    """Then the shell offers files."""
    assert offered("tune", "-m", "") == ["<file>"]


@pytest.mark.parametrize("content", ["broken", '{"stamp": [2, "0"], "entries": {}}', "[]"])
def test_a_damaged_cache(searched, content):
    """Nothing is written into the line that is being typed."""
    (load_settings().cache_dir / scanning.CACHE_FILE).write_text(content, "utf-8")
    assert offered("tune", "-m", "q") == ["<file>"]


def test_a_wrong_setting(searched, monkeypatch):
    """`autospec config check` says what is wrong; Tab does not."""
    monkeypatch.setenv("AUTOSPEC_PROXY_PORT", "many")
    assert offered("tune", "-m", "q") == []


@pytest.mark.process
def test_sourced_in_bash(searched, tmp_path):
    """A real bash reads the script and asks the real program."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "autospec").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m autospec "$@"\n')
    (programs / "autospec").chmod(0o755)
    script = """
eval "$(autospec completion bash)" || exit 1
complete -p autospec
COMP_WORDS=(autospec tune --model qwen-m); COMP_CWORD=3; COMPREPLY=()
_autospec_completion autospec qwen-m --model
printf 'offered: %s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        [bash, "--norc", "--noprofile", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "offered: Qwen-Main-F16"
    assert "_autospec_completion" in done.stdout.splitlines()[0]
