"""What a client tells of a server that cannot be reached."""

from __future__ import annotations

import socket

import pytest

from autospec.backends.openai_http import JsonClient
from autospec.errors import NoAnswerError


def test_a_server_that_is_down_is_no_fault_of_the_request():
    """An attached server has no process that could be seen to end; a plain `RequestError` would blame the prompt."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # it does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = JsonClient(url, "the server", lambda _wait_s: None, lambda _count: ())
        with pytest.raises(NoAnswerError, match="The connection to the server broke"):
            client.post("/completion", {}, 5.0)
        client.close()
