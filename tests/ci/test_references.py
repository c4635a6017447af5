"""Comments and docstrings refer to nothing that the repository does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READ = ("autospec", "tests", "studies", "launchd", "packaging", ".ci")
NAMES = ("Makefile", ".importlinter")
# Links and paths of documents themselves: `.ci/check_docs.py`.
SUFFIXES = (".py", ".toml", ".service", ".plist", ".sh")
DOCUMENT = re.compile(r"[\w./-]*\w\.md\b")
# A chapter or a numbered point of a document is named by what it says; standards and books may be cited.
CHAPTER = re.compile(r"\bDESIGN\b|\btraps? \d")
# Files that a command writes, and those of other projects, which the line names.
WRITTEN = {"record.md", "exports/founding-record.md"}
FOREIGN = ("llama.cpp", "mlx")
# They name documents that are not there.
OWN = {Path(__file__), Path(__file__).with_name("test_check_docs.py")}


def lines() -> Iterator[tuple[Path, str]]:
    """Every line of the texts that people read here."""
    files = [p for p in ROOT.iterdir() if p.is_file() and (p.suffix in SUFFIXES or p.name in NAMES)]
    for folder in READ:
        files += [p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix in SUFFIXES]
    for path in files:
        if path not in OWN:
            for line in path.read_text(encoding="utf-8").splitlines():
                yield path, line


def test_every_document_that_is_named_is_here():
    """Below the root, or beside the file that names it."""
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, line in lines()
        for name in DOCUMENT.findall(line)
        if name not in WRITTEN
        and not any(project in line for project in FOREIGN)
        and not (ROOT / name).is_file()
        and not (path.parent / name).is_file()
    ]
    assert missing == []


def test_no_chapter_of_a_document_is_cited():
    """Nobody could look it up."""
    assert [f"{p.relative_to(ROOT)}: {line.strip()}" for p, line in lines() if CHAPTER.search(line)] == []


@pytest.mark.parametrize("line", ["# as DESIGN says", "# (trap 5)"])
def test_a_citation_would_be_found(line):
    """The patterns match what they are for."""
    assert CHAPTER.search(line)
    assert DOCUMENT.findall("see backends.md, and docs/method.md.") == ["backends.md", "docs/method.md"]
