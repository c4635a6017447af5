"""The lab: models with a known truth, built from a real small one.

``python -m tests.lab --list`` names them, ``python -m tests.lab NAME…`` builds them and prints their paths. Tests
take them from the `lab_models` fixture. Needs autospec's own dependencies and PyPI once; no compiler.
"""

from __future__ import annotations

from tests.lab.cache import Lab, lab_folder
from tests.lab.recipes import RECIPES, Recipe, bad_draft, sliding_main, slow_main
from tests.lab.source import LabError

__all__ = ["RECIPES", "Lab", "LabError", "Recipe", "bad_draft", "lab_folder", "sliding_main", "slow_main"]
