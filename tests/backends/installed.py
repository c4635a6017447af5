"""Backends that are on this machine."""

from __future__ import annotations

from typing import TypeVar

import pytest

from autospec.backends.protocol import Backend
from autospec.errors import BackendMissingError

B = TypeVar("B", bound=Backend)


def installed(backend: B) -> B:
    """The same backend; skips the test, with what it says of itself, where it is not installed.

    The reason's first words are on the list of `.ci/allowed-skips`.
    """
    try:
        backend.capabilities()
    except BackendMissingError as error:
        pytest.skip(f"{backend.name} is not installed: {error}")
    return backend
