"""The check of the documents finds each kind of mistake, and finds none in this repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "check_docs.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_docs", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "method.md").write_text("# The method, in short\n\n```\n# not a heading\n```\n")
    (tmp_path / "autospec").mkdir()
    (tmp_path / "autospec" / "errors.py").touch()
    return tmp_path


def test_this_repository(check: ModuleType) -> None:
    """Every link and path in it exists."""
    names = {str(file.relative_to(check.ROOT)) for file in check.documents(check.ROOT)}
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "docs/glossary.md",
        "packaging/README.md",
        "studies/suites/README.md",
    } <= names
    assert check.problems() == []


@pytest.mark.parametrize(
    "text",
    [
        "[method](docs/method.md)",
        "[method](docs/method.md#the-method-in-short)",
        "[here](#title)",
        "[elsewhere](https://example.org/docs/none.md)",
        "`[no link](nowhere.md)`",
        "`autospec/errors.py` and `autospec/*.py`",
        "GET /autospec/v1/plan and ~/.cache/autospec/models",
        "`python -m pytest` and `python -m autospec.errors`",
        "write `autospec/backends/toy_server.py`",
    ],
)
def test_what_is_right(check: ModuleType, root: Path, text: str) -> None:
    """No complaint."""
    (root / "README.md").write_text(f"# Title\n\n{text}\n")
    assert check.problems(root) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[method](method.md)", "the link method.md leads nowhere"),
        (
            "[method](docs/method.md#not-a-heading)",
            "the link docs/method.md#not-a-heading names no heading of method.md",
        ),
        ("[here](#nowhere)", "the link #nowhere names no heading of README.md"),
        ("see `autospec/error.py`.", "there is no autospec/error.py"),
        ("```\nautospec/errors/\n```", "there is no autospec/errors"),
        ("`studies/*.toml`", "there is no studies/*.toml"),
        ("`python -m autospec.error`", "there is no module autospec.error"),
        ("`errors.py`", "errors.py stands without its folder: write the whole path"),
    ],
)
def test_what_is_wrong(check: ModuleType, root: Path, text: str, wrong: str) -> None:
    """Named with its document."""
    (root / "README.md").write_text(f"# Title\n\n{text}\n")
    assert check.problems(root) == [f"README.md: {wrong}"]


def test_no_document(check: ModuleType, tmp_path: Path) -> None:
    """A check that looks at nothing does not pass."""
    assert check.problems(tmp_path) == [f"{tmp_path} holds no document"]
