"""Optuna's gRPC proxy as a process."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def grpc_proxy_over(database: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A proxy in front of a database, by its URL: its address and its process; skips where gRPC is not installed."""
    pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = (
        "from optuna.storages import get_storage, run_grpc_proxy_server\n"
        f"run_grpc_proxy_server(get_storage({database!r}), host='127.0.0.1', port={port})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        yield f"grpc://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()
