"""`autospec` without a command: what is here, and what to type next; nothing is started."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from autospec.cli import cli
from autospec.cli.first_steps import Found, lines_of, look
from autospec.cli.shell import Shell
from autospec.hardware import identify
from autospec.service.control import control_path
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.catalog.making import write_gguf
from tests.report.samples import recommendation


@pytest.fixture(autouse=True)
def machine(home, own_models, monkeypatch):
    """A machine without models, programs and servers."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setenv("AUTOSPEC_PROXY_PORT", str(_free_port()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def said():
    """What the command prints; it must end well."""
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return " ".join(result.stdout.split())


def test_nothing_at_all(models_dir):
    """Where models are looked for, and what to install."""
    text = said()
    assert "Backends: none is installed." in text
    assert f"Models: none found in {models_dir}" in text
    assert ".ollama/models" in text
    assert "Results: nothing is proven yet." in text
    assert "Running: no proxy and no daemon." in text
    assert "pip install xllamacpp" in text
    assert "model_dirs" in text
    assert "autospec tune" not in text
    assert "autospec --help" in text


def test_models_are_counted_before_they_are_read(models_dir, monkeypatch):
    """Without the cache of an earlier search, reading them all may take long: no file is opened."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "xllamacpp" or None)
    write_gguf(models_dir / "Tiny-Main-F16.gguf", layers=40, width=64)
    write_gguf(models_dir / "Tiny-Draft-F16.gguf", layers=1)
    monkeypatch.setattr("autospec.catalog.scan._read", lambda found: pytest.fail(f"{found} was read"))
    text = said()
    assert "Backends: embedded (xllamacpp)." in text
    assert "Models: 2 (Tiny-Draft-F16, Tiny-Main-F16), not read yet; `autospec models`" in text
    assert "What to type next: autospec tune # choose a model" in text


def test_after_a_search_it_knows_which_drafts_fit(models_dir, monkeypatch):
    """From the cache of `autospec models`."""
    write_gguf(models_dir / "Tiny-Main-F16.gguf", layers=40, width=64)
    write_gguf(models_dir / "Tiny-Draft-F16.gguf", layers=1)
    assert CliRunner().invoke(cli, ["models"]).exit_code == 0
    monkeypatch.setattr("autospec.catalog.scan._read", lambda found: pytest.fail(f"{found} was read"))
    assert "Models: 2 (Tiny-Draft-F16, Tiny-Main-F16); a draft fits 1 of them." in said()


def test_what_is_proven(models_dir, monkeypatch):
    """Then the next step is to use it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "xllamacpp" or None)
    write_gguf(models_dir / "Tiny-Main-F16.gguf")
    store = open_store(load_settings().storage)
    store.save_recommendation(recommendation(), identify(), "k1")
    store.close()
    text = said()
    assert "Results: Main-7B-Q4_K_M: drafting pays for coding." in text
    assert "What to type next: autospec recommend # what to run autospec proxy" in text


class _Answers(BaseHTTPRequestHandler):
    status = 401

    def do_GET(self):
        """A refusal, as the proxy with a key gives it."""
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


@contextmanager
def _answering(status):
    handler = type("Answers", (_Answers,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "runs"), [(200, True), (401, True), (404, False)])
def test_a_running_proxy(monkeypatch, status, runs):
    """With and without a key; another program at its port is none."""
    with _answering(status) as port:
        monkeypatch.setenv("AUTOSPEC_PROXY_PORT", str(port))
        assert look(Shell()).proxy == (f"http://127.0.0.1:{port}/v1" if runs else "")


@pytest.mark.parametrize("host", ["proxy.example.org", "localhost"])
def test_no_name_is_looked_up(monkeypatch, host):
    """A name server that does not answer would hold it up for seconds."""
    monkeypatch.setenv("AUTOSPEC_PROXY_HOST", host)
    monkeypatch.setattr("socket.getaddrinfo", _only_addresses(socket.getaddrinfo))
    assert look(Shell()).proxy == ""


def _only_addresses(real):
    def getaddrinfo(host, *args, **more):
        assert host[0].isdigit(), f"{host} is looked up"
        return real(host, *args, **more)

    return getaddrinfo


def test_a_running_daemon():
    """It listens on its socket; it is not asked anything."""
    settings = load_settings()
    path = control_path(settings.state_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert look(Shell()).daemon
    assert not look(Shell()).daemon


def test_a_damaged_database_is_a_warning():
    """The rest is still told."""
    settings = load_settings()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    (settings.state_dir / "autospec.db").write_bytes(b"no database" * 500)
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 0
    assert "What to type next" in result.stdout


def test_a_wrong_config_file_is_told(monkeypatch, tmp_path):
    """With its own exit code: what is here depends on it."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("nosuch = 1\n")
    monkeypatch.setenv("AUTOSPEC_CONFIG_FILE", str(wrong))
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 2
    assert "nosuch" in result.stderr


def test_many_models_are_counted(tmp_path):
    """A line stays a line."""
    found = Found(
        backends=("llama-server (/bin/llama-server)",),
        models=tuple(f"m{n}" for n in range(40)),
        drafted=("m1", "m2"),
        proven=("m1: drafting pays for coding",),
        looked_in=(tmp_path,),
        proxy="http://127.0.0.1:8686/v1",
        daemon=True,
        service=True,
    )
    lines = lines_of(found)
    assert "Models: 40 (m0, m1, m2 and 37 more); a draft fits 2 of them." in lines
    assert (
        "Running: the proxy at http://127.0.0.1:8686/v1 and the daemon, and the service is installed."
        in lines
    )
    assert len(lines) <= 13
    assert not any("autospec proxy" in line for line in lines)


def test_help_stays_help():
    """The usage line too."""
    text = CliRunner().invoke(cli, ["--help"]).stdout
    assert "COMMAND [ARGS]..." in text
    assert "[COMMAND]" not in text
    assert "What to type next" not in text
