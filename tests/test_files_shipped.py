"""The shipped data is found in a wheel and in a checkout, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from autospec.errors import AutospecError
from autospec.files import _find, launchd_dir, studies_dir


def test_this_installation_has_its_suites():
    """The real studies folder is the one with the default suite."""
    assert (studies_dir() / "suites" / "default.jsonl").is_file()


def test_this_installation_has_its_launchd_folder():
    """The real launchd folder is found under its own name."""
    assert launchd_dir().name == "launchd"


def test_data_inside_the_package_comes_first(tmp_path: Path):
    """A wheel's own data wins over a folder that happens to stand beside the package."""
    package = tmp_path / "autospec"
    (package / "_data" / "studies").mkdir(parents=True)
    (tmp_path / "studies").mkdir()
    (tmp_path / "pyproject.toml").touch()
    assert _find("studies", package) == package / "_data" / "studies"


def test_a_checkout_has_its_data_beside_the_package(tmp_path: Path):
    """Editable installs and checkouts read the repository's folder."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "pyproject.toml").touch()
    assert _find("studies", tmp_path / "autospec") == tmp_path / "studies"


def test_somebody_elses_folder_is_not_taken(tmp_path: Path):
    """In site-packages, a folder `studies` beside the package is not ours: nothing is found, with a hint."""
    (tmp_path / "studies").mkdir()
    with pytest.raises(AutospecError, match=r"folder studies .* is missing") as caught:
        _find("studies", tmp_path / "autospec")
    assert "pip install" in caught.value.hint
