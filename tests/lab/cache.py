"""Where lab models are kept: each is built once, as a whole or not at all, even if two processes build at the same time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock

from tests.lab.recipes import RECIPES, Recipe

__all__ = ["Lab", "lab_folder"]


def lab_folder() -> Path:
    """``AUTOSPEC_LAB``, else ``~/.cache/autospec-lab``."""
    chosen = os.environ.get("AUTOSPEC_LAB")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "autospec-lab"


class Lab:
    """The models, built when first asked for.

    Args:
        folder: Where they are kept; `lab_folder` by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or lab_folder()

    def ready(self, recipe: Recipe) -> bool:
        """True if the file or folder is there and this version of the recipe built it."""
        stamp = self._stamp(recipe)
        return self._path(recipe).exists() and stamp.is_file() and stamp.read_text() == str(recipe.version)

    def path(self, recipe: Recipe | str) -> Path:
        """The model's file or folder, built if it is not there.

        Raises:
            LabError: SmolLM2 could not be fetched.
            KeyError: There is no recipe of that name.
        """
        if isinstance(recipe, str):
            recipe = RECIPES[recipe]
        if not self.ready(recipe):
            self._build(recipe)
        return self._path(recipe)

    def _build(self, recipe: Recipe) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{recipe.file_name}.lock"):
            if self.ready(recipe):  # somebody else built it while we waited
                return
            out = self._path(recipe)
            source = self.path("smollm2") if recipe.from_smollm2 else out
            part = out.with_name(f".{out.name}.part")
            try:
                recipe.build(source, part)
                _remove(out)  # a folder takes no other's place
                part.replace(out)
            finally:
                _remove(part)
            self._stamp(recipe).write_text(str(recipe.version))

    def _path(self, recipe: Recipe) -> Path:
        return self.folder / recipe.file_name

    def _stamp(self, recipe: Recipe) -> Path:
        return self.folder / f".{recipe.file_name}.version"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
