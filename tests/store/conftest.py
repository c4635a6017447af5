"""A PostgreSQL for the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.postgres import cluster


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real, empty PostgreSQL; the test is skipped where there is none."""
    with cluster() as url:
        yield url
