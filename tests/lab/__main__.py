"""``python -m tests.lab [--list] [NAME…] [--into DIR]``: build lab models and print their paths, one a line."""

# ruff: noqa: T201 - a command: it prints
from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from tests.lab.cache import Lab
from tests.lab.recipes import RECIPES
from tests.lab.source import LabError


def main() -> int:
    """Parse the command line, build, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to build; all by default")
    parser.add_argument("--list", action="store_true", help="say what there is, build nothing")
    parser.add_argument("--into", type=Path, metavar="DIR", help="copy them there and print those paths")
    chosen = parser.parse_args()
    lab = Lab()
    if chosen.list:
        for recipe in RECIPES.values():
            print(f"{recipe.name:16} {'built' if lab.ready(recipe) else '-':6} {recipe.truth}")
        return 0
    unknown = [name for name in chosen.names if name not in RECIPES]
    if unknown:
        parser.error(f"no model is called {unknown[0]}; there are {', '.join(RECIPES)}")
    for name in chosen.names or list(RECIPES):
        recipe = RECIPES[name]
        began = time.monotonic()
        built = lab.ready(recipe)
        try:
            path = lab.path(recipe)
        except LabError as error:
            print(error, file=sys.stderr)
            return 1
        if not built:
            print(f"built {path.name} in {time.monotonic() - began:.1f} s", file=sys.stderr)
        if chosen.into:
            chosen.into.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            path = Path(copy(path, chosen.into / path.name))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
