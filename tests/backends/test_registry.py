"""Choosing a backend."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.protocol import Capabilities
from autospec.backends.registry import available, backend_for
from autospec.errors import BackendMissingError, UsageError


@pytest.fixture
def settings(state_dir, tmp_path, monkeypatch):
    """Settings on a machine without llama-server."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return SimpleNamespace(state_dir=state_dir, llama_server="", attached_url="", attached_remote=False)


@pytest.fixture
def install(tmp_path):
    """Puts a program called llama-server on PATH, with this text."""

    def put(text):
        program = tmp_path / "bin" / "llama-server"
        program.parent.mkdir(exist_ok=True)
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
        return program

    return put


def test_embedded_where_there_is_no_llama_server(settings):
    """A fresh machine needs no compiler."""
    assert isinstance(backend_for(None, settings), Embedded)
    assert isinstance(backend_for("", settings), Embedded)


def test_llama_server_where_it_is_on_path(settings, install):
    """The native program comes first."""
    install("#!/bin/sh\n")
    assert isinstance(backend_for(None, settings), LlamaServer)


def test_by_name(settings):
    """A backend that is named is returned, found or not; probing it tells."""
    assert isinstance(backend_for("embedded", settings), Embedded)
    with pytest.raises(BackendMissingError, match="no llama-server on PATH"):
        backend_for("llama-server", settings).capabilities()


def test_an_unknown_name(settings):
    """Wrong usage, with the names that there are."""
    with pytest.raises(UsageError, match="no backend lama-server") as caught:
        backend_for("lama-server", settings)
    assert caught.value.hint.startswith("Choose one of llama-server, embedded")


def test_a_configured_program_that_is_not_there(settings):
    """Not replaced by another backend behind the user's back."""
    settings.llama_server = "/no/llama-server"
    with pytest.raises(BackendMissingError, match="/no/llama-server does not exist"):
        backend_for(None, settings)


def test_available(settings):
    """Doctor gets what each offers, or why it cannot."""
    found = dict(available(settings))
    assert list(found)[:2] == ["llama-server", "embedded"]
    assert isinstance(found["llama-server"], BackendMissingError)
    assert found["llama-server"].hint
    assert isinstance(found["embedded"], Capabilities)


def test_the_projects_own_settings_fit(tmp_path):
    """`Settings` has what backends read."""
    from autospec.settings import load_settings

    assert backend_for("embedded", load_settings(None)).name == "embedded"


def test_a_program_that_is_no_llama_server(settings, install):
    """Found by its help, before any launch."""
    install("#!/bin/sh\necho hello\n")
    with pytest.raises(BackendMissingError, match="is not a llama-server"):
        backend_for(None, settings).capabilities()


def test_a_program_that_cannot_run(settings, install):
    """A binary for another machine, say."""
    install("\x7fELF not really")
    with pytest.raises(BackendMissingError, match="cannot be run"):
        backend_for(None, settings).capabilities()
