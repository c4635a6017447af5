"""The child process of the backend `mlx` ends when it can generate no more. Needs mlx-lm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed", exc_type=ImportError)

from autospec.backends.mlx import backend as mlx_package
from autospec.backends.mlx import child
from autospec.backends.mlx.backend import Mlx
from autospec.backends.protocol import LaunchSettings
from autospec.drafting import OFF
from tests.backends.installed import installed
from tests.backends.waiting import wait_until

pytestmark = pytest.mark.real

# The child with a GPU whose memory is full as soon as a file is there. It fails where Metal fails: in the next batch.
FULL = """
import pathlib, sys
from mlx_lm.generate import BatchGenerator
from autospec.backends.mlx.child import main

def next(self, *args, whole=BatchGenerator.next):
    if pathlib.Path({full!r}).exists():
        raise RuntimeError("[metal::malloc] Attempting to allocate 1 byte")
    return whole(self, *args)

BatchGenerator.next = next
main(sys.argv[1:])
"""


def fail() -> None:
    """A fault."""
    raise RuntimeError("[metal::malloc] Attempting to allocate 1 byte")


def server_of(load: Callable[[], None], serve: Callable[[], None]) -> SimpleNamespace:
    """What `mlx_lm.server` has of these two classes in 0.32.2, with a load and a loop of the test's own."""

    class ModelProvider:
        def load_default(self) -> None:
            load()

    class ResponseGenerator:
        def __init__(self) -> None:
            self.model_provider, self._stop = ModelProvider(), False

        def _run_generate(self) -> None:
            try:
                self.model_provider.load_default()
                serve()
            except Exception:  # noqa: BLE001 - as there: it is logged, and the thread ends
                self._generation_failed = True

    return SimpleNamespace(ModelProvider=ModelProvider, ResponseGenerator=ResponseGenerator)


def exits_of(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, *, stop: bool = False) -> list[int]:
    """With which status the process would end while its thread runs."""
    exits: list[int] = []
    monkeypatch.setattr(child, "server", server)
    monkeypatch.setattr(child.os, "_exit", exits.append)
    assert child._has_generation_thread()
    child._end_with_generation()
    generator = server.ResponseGenerator()
    generator._stop = stop
    thread = threading.Thread(target=generator._run_generate)
    thread.start()
    thread.join(20)
    return exits


def test_the_process_ends_with_its_generating_thread(monkeypatch):
    """It lived on, and every request got 404."""
    assert exits_of(server_of(lambda: None, fail), monkeypatch) == [1]


def test_a_model_that_cannot_be_loaded_is_left_to_the_first_request(monkeypatch):
    """Whose answer has the sentence for it."""
    assert exits_of(server_of(fail, lambda: None), monkeypatch) == []


def test_the_end_of_a_server_that_is_stopped_is_no_death(monkeypatch):
    """Its loop ends without a fault."""
    assert exits_of(server_of(lambda: None, lambda: None), monkeypatch, stop=True) == []


@pytest.mark.parametrize("lacks", ["ModelProvider", "ResponseGenerator"])
def test_a_version_without_such_a_thread_stays_as_it_is(monkeypatch, lacks):
    """There is nothing to watch."""
    server = server_of(lambda: None, fail)
    delattr(server, lacks)
    monkeypatch.setattr(child, "server", server)
    assert not child._has_generation_thread()


def test_the_real_server_ends_when_a_batch_fails(lab_models, tmp_path, monkeypatch):
    """The proxy looks at the process, so it lent a server that answered 404 to everything for ever."""
    mlx = installed(Mlx(tmp_path / "state"))
    full = tmp_path / "full"
    monkeypatch.setattr(mlx_package, "CHILD", ("-c", FULL.format(full=str(full))))
    server = mlx.launch(str(lab_models.mlx_tiny), OFF, LaunchSettings(ready_timeout_s=240.0))
    try:
        full.touch()
        question = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{server.base_url}/v1/chat/completions", json=question, timeout=60, trust_env=False)
        wait_until(server.ended)
        assert server.ended() == "ended with status 1"
        assert "generation thread died: [metal::malloc]" in "\n".join(server._process.log_tail())
    finally:
        server.stop()
