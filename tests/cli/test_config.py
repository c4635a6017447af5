"""`autospec config`: path, show and check."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from autospec.cli import cli
from autospec.files import studies_dir
from autospec.settings import KEYS, load_settings


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file of its own."""
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path))
    return tmp_path


def config(*args: str) -> Result:
    """Run `autospec config …`."""
    return CliRunner().invoke(cli, ["config", *args])


def test_path_prints_the_file_alone(own_home: Path):
    """Ready for `$EDITOR "$(autospec config path)"`."""
    assert config("path").stdout == f"{own_home / 'config.toml'}\n"


def test_path_works_while_the_file_is_broken(own_home: Path):
    """One needs the path to repair it."""
    (own_home / "config.toml").write_text("broken", "utf-8")
    result = config("path", "--json")
    assert json.loads(result.stdout) == {"schema": 1, "path": str(own_home / "config.toml"), "exists": True}


def test_show_names_value_and_source_of_every_key(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """The table says which source won."""
    (own_home / "config.toml").write_text('study = "quick"', "utf-8")
    monkeypatch.setenv("AUTOSPEC_BUDGET", "5m")
    rows = {line.split()[0]: line.split()[1:] for line in config("show").stdout.splitlines()}
    assert rows["study"] == ["quick", "file"]
    assert rows["budget"] == ["5m", "AUTOSPEC_BUDGET"]
    assert rows["temperature"] == ["0.0", "default"]
    assert set(rows) == {key.name for key in KEYS} | {"key"}


def test_show_as_json_holds_the_same(monkeypatch: pytest.MonkeyPatch):
    """Lists stay lists, paths become text."""
    monkeypatch.setenv("AUTOSPEC_SERVER_ARGS", "-ngl 99")
    document = json.loads(config("show", "--json").stdout)
    assert document["schema"] == 1
    assert set(document["settings"]) == {key.name for key in KEYS}
    assert document["settings"]["server_args"]["value"] == ["-ngl", "99"]
    assert document["settings"]["server_args"]["source"] == "environment"


def test_show_hides_the_databases_password(monkeypatch: pytest.MonkeyPatch):
    """What is shown is pasted into issues."""
    monkeypatch.setenv("AUTOSPEC_STORAGE", "postgresql://me:hunter2@db/x")
    assert "hunter2" not in config("show").stdout + config("show", "--json").stdout


def test_the_template_is_a_valid_file_that_changes_nothing(own_home: Path):
    """Written as it is, every default stays."""
    before = load_settings()
    (own_home / "config.toml").write_text(config("show", "--template").stdout, "utf-8")
    assert load_settings() == before


def test_the_template_uncommented_is_valid_too(own_home: Path):
    """Every example in it is a value that its key takes."""
    text = config("show", "--template").stdout
    lines = [line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")]
    assert set(tomllib.loads("\n".join(lines))) == {key.name for key in KEYS if key.in_file} | {"models"}
    (own_home / "config.toml").write_text("\n".join(lines), "utf-8")
    assert load_settings().sources["budget"] == "file"


def test_check_refuses_shared_studies_without_a_postgresql(own_home: Path):
    """A wrong setting like any other: exit 2 before a tune finds it out."""
    (own_home / "config.toml").write_text('study_storage = "grpc://hub:13000"', "utf-8")
    checked = config("check")
    assert checked.exit_code == 2
    assert "needs a PostgreSQL" in checked.stderr


def test_check_says_ok(own_home: Path):
    """With and without a file."""
    assert config("check").stdout.startswith("ok: there is no ")
    (own_home / "config.toml").write_text('study = "quick"', "utf-8")
    assert config("check").stdout == f"ok: {own_home / 'config.toml'}\n"
    assert json.loads(config("check", "--json").stdout)["ok"] is True


def test_check_fails_with_2_and_the_reason(own_home: Path):
    """A wrong key is named with the nearest."""
    (own_home / "config.toml").write_text('sudy = "quick"', "utf-8")
    result = config("check", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "sudy" in result.stderr
    assert "Did you mean study?" in result.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('backend = "llamaserver"', "There is no backend llamaserver."),
        ('study = "qick"', "There is no study definition named qick."),
        ('study = "/nope.toml"', "The study file /nope.toml cannot be read"),
        ('suite = "/nope"', "The suite /nope cannot be read"),
        ('storage = "garbage"', "storage in "),
        ('storage = "garbage://me:hunter2@hub/x"', "SQLAlchemy knows no database garbage"),
        ('storage = "postgresql://me:hunter2@hub:port/x"', "The storage URL is malformed."),
        ('serve_statuses = ["provn"]', "serve_statuses in "),
        ("temperature = 99", "temperature in "),
        ('proxy_host = "foo bar"', "proxy_host in "),
    ],
)
def test_check_refuses_what_names_nothing(own_home: Path, line: str, words: str):
    """Exit 2 and the reason, as its help promises, and no password."""
    (own_home / "config.toml").write_text(line, "utf-8")
    result = config("check")
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "hunter2" not in result.stderr


def test_check_reads_what_is_named(own_home: Path):
    """A study and a suite of the user's, and a database that is not opened."""
    (own_home / "mine.toml").write_text((studies_dir() / "quick.toml").read_text("utf-8"), "utf-8")
    prompts = [
        {"id": name, "prompt_type": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        for name in "ab"
    ]
    (own_home / "mine.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    (own_home / "config.toml").write_text(
        'backend = "embedded"\nstudy = "mine.toml"\nsuite = "mine.jsonl"\nstorage = "postgresql+psycopg://me@hub/x"',
        "utf-8",
    )
    result = config("check")
    assert result.exit_code == 0, result.stderr
