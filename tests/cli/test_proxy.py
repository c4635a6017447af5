"""`autospec proxy` as a program: the line it prints, its errors, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("aiohttp")

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


def start(home: Path, *args: str, **environ: str) -> subprocess.Popen[str]:
    """The program, with a home of its own and no models."""
    return subprocess.Popen(
        [sys.executable, "-m", "autospec", "proxy", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"AUTOSPEC_HOME": str(home), "HOME": str(home), "PATH": "", **environ},
    )


def test_it_prints_where_it_serves_and_ends_on_a_signal(tmp_path):
    """One JSON document with the address; clients are answered; SIGTERM ends it with 0."""
    with start(tmp_path, "--port", "0", "--json") as running:
        document = ""
        while not document.endswith("}\n"):
            document += running.stdout.readline()
        url = json.loads(document)["base_url"]
        assert httpx.get(f"{url}/v1/models", trust_env=False, timeout=TIMEOUT_S).json()["object"] == "list"
        unknown = httpx.post(
            f"{url}/v1/chat/completions", json={"model": "x"}, trust_env=False, timeout=TIMEOUT_S
        )
        assert unknown.status_code == 404
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0, told
    assert "Traceback" not in told


def test_port_that_is_taken_is_one_sentence(tmp_path):
    """With the next step, and no traceback."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with start(tmp_path, "--port", str(port)) as running:
            out, told = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 1
    assert f"Port {port} is in use" in told
    assert f"--port {port + 1}" in told
    assert out == ""


def test_open_address_without_a_key_is_refused(tmp_path):
    """Exit 2 before anything listens."""
    with start(tmp_path, "--host", "0.0.0.0", "--port", "0") as running:
        _, told = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 2
    assert "AUTOSPEC_PROXY_API_KEY" in told


def test_help_has_an_address_to_point_clients_at(tmp_path):
    """For the person who reads it first."""
    with start(tmp_path, "--help") as running:
        out, _ = running.communicate(timeout=TIMEOUT_S)
    assert "http://127.0.0.1:8686/v1/chat/completions" in out
    assert "OPENAI_BASE_URL" in out


def test_a_model_that_is_not_here_is_told_at_the_start(tmp_path):
    """Exit 2 before anything is served, and not an error for each client later."""
    with start(tmp_path, "--port", "0", "--model", "nosuch") as running:
        out, err = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 2
    assert out == ""
    assert "No model matches nosuch" in err
