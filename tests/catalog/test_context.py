"""The context length in a launch's arguments."""

from __future__ import annotations

import pytest

from autospec.catalog.context import context_of


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), 4096),
        (("-c", "8192"), 8192),
        (("--ctx-size=16384", "-ngl", "99"), 16384),
        (("-c", "8192", "--ctx-size", "2048"), 2048),
        (("-c", "0"), 4096),
        (("-c",), 4096),
        (("-ngl", "99", "-c", "many"), 4096),
    ],
)
def test_the_last_flag_counts_and_0_is_not_known(args, expected):
    """As llama-server reads them; the model's own length is not known here."""
    assert context_of(args, 4096) == expected
