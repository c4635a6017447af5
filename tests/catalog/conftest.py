"""A machine of its own for each test: home, environment, config folder, cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from autospec.catalog.scan import Catalog, scan
from autospec.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path, models_dir: Path) -> Settings:
    """Settings with that folder."""
    environ = {"AUTOSPEC_HOME": str(tmp_path / "autospec"), "AUTOSPEC_MODEL_DIRS": str(models_dir)}
    return load_settings(environ=environ)


@pytest.fixture
def look(settings: Settings, home: Path) -> Callable[..., Catalog]:
    """Scans that machine."""

    def look(environ: Mapping[str, str] | None = None, beside: tuple[str, ...] = ()) -> Catalog:
        return scan(settings, environ=environ or {}, home=home, beside=beside)

    return look
