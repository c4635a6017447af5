"""Do the links in the documents lead somewhere, and do the files exist that they name? Prints what is wrong, one line each.

Checked in every *.md of the repository: relative links and their anchors, paths such as ``autospec/errors.py`` or
``studies/*.toml``, modules after ``python -m``, and that a Python file in backticks is written with its whole path (a script that
renames modules then finds it). Addresses on the web are not visited.
"""

# ruff: noqa: INP001, T201 - a script: it prints, and is no package
from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where documents stand. Not the whole tree: a virtual environment in it holds other projects' documents.
FOLDERS = ("autospec", "docs", "launchd", "packaging", "studies", "tests")
# Files that a document tells the reader to write.
TO_BE_WRITTEN = frozenset({"autospec/backends/toy_server.py"})

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\(\s*([^()\s]+)\s*\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
# Not within an address, an absolute path or a longer name. Documents are linked; docs/ may be another project's.
_PATH = re.compile(r"(?<![\w/.~}>-])(?:autospec|launchd|packaging|studies|tests|\.ci)/[\w.*/-]*[\w*]")
_MODULE = re.compile(r"python3? -m ((?:autospec|studies|tests)(?:\.\w+)*)")
_BARE_FILE = re.compile(r"`(\w+\.py)`")


def documents(root: Path) -> list[Path]:
    """The repository's documents, in a fixed order."""
    return sorted([*root.glob("*.md"), *(file for name in FOLDERS for file in (root / name).rglob("*.md"))])


def anchors(text: str) -> set[str]:
    """The names by which GitHub lets links lead to headings; a heading that comes twice counts once."""
    headings = _HEADING.findall(_FENCED.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_in(file: Path, root: Path) -> Iterator[str]:
    """What is wrong in one document, each a clause."""
    text = file.read_text(encoding="utf-8")
    for target in _LINK.findall(_CODE.sub("", _FENCED.sub("", text))):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", name):
            continue
        there = file.parent / name if name else file
        if not there.exists():
            yield f"the link {target} leads nowhere"
        elif anchor and (there.suffix != ".md" or anchor not in anchors(there.read_text(encoding="utf-8"))):
            yield f"the link {target} names no heading of {there.name}"
    for path in sorted(set(_PATH.findall(text)) - TO_BE_WRITTEN):
        if not any(root.glob(path)):
            yield f"there is no {path}"
    for module in sorted(set(_MODULE.findall(text))):
        at = root.joinpath(*module.split("."))
        if not at.with_suffix(".py").is_file() and not (at / "__main__.py").is_file():
            yield f"there is no module {module}"
    for name in sorted(set(_BARE_FILE.findall(text))):
        yield f"{name} stands without its folder: write the whole path"


def problems(root: Path = ROOT) -> list[str]:
    """What is wrong in the documents under `root`, each a line that begins with the document's path."""
    found = documents(root)
    if not found:
        return [f"{root} holds no document"]
    return [f"{file.relative_to(root)}: {wrong}" for file in found for wrong in wrong_in(file, root)]


def main() -> int:
    """Print the problems; 1 if there are any."""
    found = problems()
    print("\n".join(found) if found else f"{len(documents(ROOT))} documents: every link and path exists")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
