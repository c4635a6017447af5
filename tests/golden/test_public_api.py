"""The names that a Python program uses: `import autospec`."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from typing import Any

import autospec
from tests.golden.golden import check_json


def test_public_names():
    """Functions with their parameters, values with their fields, enumerations with their words."""
    check_json("public-api.json", {name: _told(getattr(autospec, name)) for name in autospec.__all__})


def _told(thing: Any) -> Any:
    if inspect.isfunction(thing):
        return {"parameters": list(inspect.signature(thing).parameters)}
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return {"values": {member.name: str(member) for member in thing}}
    if dataclasses.is_dataclass(thing):
        return {"fields": [field.name for field in dataclasses.fields(thing)]}
    assert isinstance(thing, type)
    assert issubclass(thing, Exception)
    return "an exception"
