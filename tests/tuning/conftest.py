"""What the tests of tunes on simulated machines share."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
from optuna.storages._rdb.storage import _VersionManager


@pytest.fixture(scope="session", autouse=True)
def _optuna_reads_its_migrations_once() -> Iterator[None]:
    """For each new database it reads all of them three times, and each tune here has a new one."""
    read = _VersionManager._create_alembic_script
    scripts: list[object] = []

    def once(manager: _VersionManager) -> object:
        if not scripts:
            scripts.append(read(manager))
        return scripts[0]

    with mock.patch.object(_VersionManager, "_create_alembic_script", once):
        yield


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated machine does not wait until this one is idle."""
    monkeypatch.setattr("autospec.tuning.load_guard.busy", lambda _: False)
