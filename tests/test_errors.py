"""The name on PyPI stands in one place, and a missing part is installed where autospec is."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from autospec.errors import DISTRIBUTION, install_line, install_line_for

ROOT = Path(__file__).resolve().parents[1]
EDITABLE = {"url": "file:///home/me/my%20clones/autospec", "dir_info": {"editable": True}}
FOLDER = {"url": "file:///home/me/autospec", "dir_info": {}}
WHEEL = {"url": "file:///tmp/dist/autospec_llm-0.1.0-py3-none-any.whl", "archive_info": {}}
GIT = {"url": "https://forge.example/me/autospec.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}
ARCHIVE = {"url": "https://forge.example/autospec_llm-0.1.0.tar.gz", "archive_info": {}}


def test_the_metadata_has_the_name():
    """`pyproject.toml` cannot import it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    assert project["scripts"] == {"autospec": "autospec.cli:main"}


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({}, f"pip install '{DISTRIBUTION}[mlx]'"),
        (EDITABLE, "pip install -e '/home/me/my clones/autospec[mlx]'"),
        (FOLDER, "pip install '/home/me/autospec[mlx]'"),
        (WHEEL, "pip install '/tmp/dist/autospec_llm-0.1.0-py3-none-any.whl[mlx]'"),
        (GIT, f"pip install '{DISTRIBUTION}[mlx] @ git+https://forge.example/me/autospec.git'"),
        (ARCHIVE, f"pip install '{DISTRIBUTION}[mlx] @ https://forge.example/autospec_llm-0.1.0.tar.gz'"),
    ],
)
def test_where_it_came_from(tmp_path: Path, origin, line):
    """A clone's user must not get another build from PyPI."""
    assert install_line_for("mlx", tmp_path, origin) == line


@pytest.mark.parametrize(
    ("mark", "command"),
    [("uv-receipt.toml", "uv tool install --force"), ("pipx_metadata.json", "pipx install --force")],
)
def test_environments_of_tools(tmp_path: Path, mark, command):
    """`pip install` would put it elsewhere."""
    (tmp_path / mark).touch()
    assert install_line_for("fast", tmp_path, {}) == f"{command} '{DISTRIBUTION}[fast]'"
    assert install_line_for("fast", tmp_path, FOLDER) == f"{command} '/home/me/autospec[fast]'"


def test_homebrew_has_no_extras():
    """Its environment has no pip."""
    prefix = Path("/opt/homebrew/Cellar/autospec/0.1.0/libexec")
    assert install_line_for("mlx", prefix, {}) == f"pipx install '{DISTRIBUTION}[mlx]'"


@pytest.mark.parametrize("there", [True, False])
def test_a_clone_that_is_gone_is_not_named(tmp_path: Path, monkeypatch, there):
    """In a Docker image, `pip install '/src[mlx]'` named the folder of the build stage."""
    clone = tmp_path / "my src"
    if there:
        clone.mkdir()

    class Installed:
        def read_text(self, _name: str) -> str:
            return json.dumps({"url": clone.as_uri(), "dir_info": {}})

    monkeypatch.setattr("importlib.metadata.distribution", lambda _name: Installed())
    assert install_line("mlx").endswith(f"'{clone if there else DISTRIBUTION}[mlx]'")


def test_of_this_installation():
    """However this one was installed."""
    assert install_line("mlx").endswith("[mlx]'")


def test_nobody_writes_the_other_projects_name():
    """`pip install autospec` brings a package for spectroscopy."""
    wrong = re.compile(r"autospec\[|(?:pip|pipx|uv tool) install [^`\n]*?(?<![\w/.-])autospec(?![\w/.-])")
    files = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in ("autospec", "docs", ".ci", ".github", "packaging"):
        files += [
            p
            for p in (ROOT / folder).rglob("*")
            if p.suffix in {".py", ".md", ".yml", ".rb", ""} and p.is_file()
        ]
    lines = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        for line in file.read_text("utf-8", "replace").splitlines()
        if wrong.search(line)
    ]
    assert lines == []
    assert wrong.search("pip install 'autospec[mlx]'")
    assert wrong.search("pipx install autospec")
    assert not wrong.search("pip install 'autospec-llm[mlx]'")
