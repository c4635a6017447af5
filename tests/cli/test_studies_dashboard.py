"""Optuna's dashboard gets a copy of the studies, which say in words what they are."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from types import ModuleType

import optuna
import pytest
from click.testing import CliRunner

from autospec.cli import cli
from autospec.cli.studies import copy_of_studies, server_for
from autospec.errors import AutospecError, NothingKnownError, install_line
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.report.samples import DRAFTING

NAME = "Main-7B | coding | llama-server b11434 | here | aaaabbbbcccc"


@pytest.fixture
def url():
    """One study with two trials."""
    url = load_settings().storage
    open_store(url).close()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=NAME, storage=url, direction="maximize")
    study.set_user_attr("cell", {"key": "aaaabbbbcccc", "model": "Main-7B", "prompt_type": "coding"})
    for value in (1.1, 1.25):
        trial = study.ask()
        trial.set_user_attr("drafting", DRAFTING.to_json())
        study.tell(trial, value)
    return url


@pytest.fixture
def stand_in(monkeypatch):
    """A module `optuna_dashboard` whose application lists the studies, as the real one's API does."""
    module = ModuleType("optuna_dashboard")

    def wsgi(storage):
        def app(_environ, start_response):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps([s.study_name for s in storage.get_all_studies()]).encode()]

        return app

    module.wsgi = wsgi
    monkeypatch.setitem(sys.modules, "optuna_dashboard", module)


def test_the_copy_is_readable_and_the_studies_stay(url):
    """Names, attributes in words, values; what is deleted in the copy is still there."""
    copies, count = copy_of_studies(url)
    assert count == 1
    copy = optuna.load_study(study_name=NAME, storage=copies)
    assert [t.value for t in copy.trials] == [1.1, 1.25]
    assert copy.metric_names == ["speed ratio to off"]
    assert copy.user_attrs["model"] == "Main-7B"
    assert copy.user_attrs["prompt_type"] == "coding"
    assert copy.user_attrs["best ratio"] == 1.25
    assert copy.user_attrs["best drafting"] == DRAFTING.label
    optuna.delete_study(study_name=NAME, storage=copies)
    kept = optuna.load_study(study_name=NAME, storage=url)
    assert len(kept.trials) == 2
    assert kept.user_attrs.keys() == {"cell"}


def test_no_studies():
    """It says how one comes about."""
    with pytest.raises(NothingKnownError, match="no studies yet"):
        copy_of_studies(load_settings().storage)


def test_it_is_served_on_a_free_port(url, stand_in):
    """Port 0 takes a free one; a taken one is said."""
    with server_for(copy_of_studies(url)[0], "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/api/studies") as answer:
                assert json.load(answer) == [NAME]
            with pytest.raises(AutospecError, match=f"Port {server.server_port} cannot be used"):
                server_for(copy_of_studies(url)[0], "127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


def test_without_the_extra_it_says_what_to_install(url, monkeypatch):
    """One sentence and one command."""
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    result = CliRunner().invoke(cli, ["studies", "dashboard"])
    assert result.exit_code == 1
    assert "Optuna's dashboard is not installed" in result.stderr
    assert install_line("dashboard") in result.stderr


def test_the_command_ends_with_ctrl_c(url, stand_in, monkeypatch):
    """It prints its address first; Ctrl-C is how it ends, and no error."""

    def interrupted(_server):
        raise KeyboardInterrupt

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", interrupted)
    result = CliRunner().invoke(cli, ["studies", "dashboard", "--port", "0", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["studies"] == 1
    assert document["url"].startswith("http://127.0.0.1:")
