"""Requests in a chosen slot, with the prompt cache, and how many slots a llama.cpp server says it has."""

from __future__ import annotations

from typing import Any

import pytest

from autospec.backends.openai_http import ChatClient, request_body
from autospec.backends.protocol import Request, Slots
from autospec.errors import RequestError

ASKED = ({"role": "user", "content": "x"},)


class Told(ChatClient):
    """A client whose server answers these paths."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._answers = told

    def get(self, path: str, timeout_s: float = 0.0) -> Any:
        """What the server has there."""
        del timeout_s
        return self._answers.get(path)


def test_a_request_names_its_slot_and_the_cache():
    """Measurements of whole prompts use the first slot and no cache."""
    plain, chosen = request_body(Request(ASKED, 8)), request_body(Request(ASKED, 8, slot=3, cached=True))
    assert (plain["id_slot"], plain["cache_prompt"]) == (0, False)
    assert (chosen["id_slot"], chosen["cache_prompt"]) == (3, True)


@pytest.mark.parametrize(
    ("told", "slots"),
    [
        ({"/props": {"total_slots": 4}, "/slots": [{"n_ctx": 8192}] * 4}, Slots(4, 8192)),
        ({"/props": {"total_slots": 2}}, Slots(2)),
        ({"/slots": [{"n_ctx": 4096}, {"n_ctx": "?"}]}, Slots(2, 4096)),
        (
            {
                "/slots": [
                    {"id": 0, "speculative": True},
                    {"id": 1, "speculative": False},
                    {"speculative": False},
                ]
            },
            Slots(3, silent=(1,)),
        ),
    ],
)
def test_slots_are_read_where_they_are_told(told, slots):
    """From /props, else counted."""
    assert Told(told).slots() == slots


def test_a_server_that_tells_no_slots_is_an_error():
    """Nothing is assumed."""
    with pytest.raises(RequestError, match="does not report its slots"):
        Told({"/props": {"total_slots": None}, "/slots": {"error": 1}}).slots()
