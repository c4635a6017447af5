"""Settings: precedence, the source of each value, and errors that name the fault."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autospec.errors import SettingsError
from autospec.settings import KEYS, load_settings, locate_config


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment that holds nothing but a home of its own."""
    return {"AUTOSPEC_HOME": str(tmp_path)}


def write(home: dict[str, str], text: str) -> Path:
    """Write the config file of that home."""
    file = Path(home["AUTOSPEC_HOME"]) / "config.toml"
    file.write_text(text, "utf-8")
    return file


def test_home_moves_all_folders_together(tmp_path: Path, home: dict[str, str]):
    """AUTOSPEC_HOME places config, state, cache, logs and the database."""
    settings = load_settings(environ=home)
    assert settings.home == tmp_path
    assert settings.config_file == tmp_path / "config.toml"
    assert (settings.state_dir, settings.cache_dir, settings.log_dir) == (
        tmp_path / "state",
        tmp_path / "cache",
        tmp_path / "logs",
    )
    assert settings.storage == f"sqlite:///{tmp_path}/state/autospec.db"
    assert settings.sources["state_dir"] == "home"


def test_without_home_the_platform_folders_hold():
    """Without AUTOSPEC_HOME the folders are the user's own, each ending in autospec's name."""
    settings = load_settings(environ={})
    assert settings.home is None
    assert settings.config_file.name == "config.toml"
    assert "autospec" in settings.state_dir.parts
    assert settings.sources["state_dir"] == "default"


def test_flag_beats_environment_beats_file_beats_default(home: dict[str, str]):
    """Each source overrides those below it, and the provenance says which won."""
    assert load_settings(environ=home).study == "default"
    write(home, 'study = "quick"')
    assert load_settings(environ=home).study == "quick"
    env = home | {"AUTOSPEC_STUDY": "thorough"}
    assert load_settings(environ=env).study == "thorough"
    settings = load_settings(environ=env, overrides={"study": "own", "budget": None})
    assert settings.study == "own"
    assert settings.sources["study"] == "flag"
    assert settings.sources["budget"] == "default"
    assert load_settings(environ=env).sources["study"] == "environment"
    assert load_settings(environ=home).sources["study"] == "file"


def test_every_kind_reads_from_the_file(home: dict[str, str]):
    """TOML values arrive with the types that Settings promises."""
    file = write(
        home,
        'model_dirs = ["models", "/abs"]\nserver_args = ["-ngl", "99"]\ntemperature = 1\n'
        'context_tokens = 8192\nforget_answers = true\nbudget = "1h30m"\nllama_server = "bin/llama-server"\n',
    )
    settings = load_settings(environ=home)
    assert settings.model_dirs == (file.parent / "models", Path("/abs"))
    assert settings.server_args == ("-ngl", "99")
    assert settings.temperature == 1.0
    assert isinstance(settings.temperature, float)
    assert settings.context_tokens == 8192
    assert settings.forget_answers is True
    assert settings.budget == "1h30m"
    assert settings.llama_server == str(file.parent / "bin/llama-server")


def test_every_kind_reads_from_the_environment(home: dict[str, str]):
    """Variables are text: lists are split as a shell or PATH would, numbers and flags are read."""
    settings = load_settings(
        environ=home
        | {
            "AUTOSPEC_MODEL_DIRS": f"/a{os.pathsep}/b",
            "AUTOSPEC_SERVER_ARGS": "-ngl 99 --alias 'two words'",
            "AUTOSPEC_TEMPERATURE": "0.7",
            "AUTOSPEC_CONTEXT_TOKENS": "512",
            "AUTOSPEC_FORGET_ANSWERS": "yes",
            "AUTOSPEC_LLAMA_SERVER": "llama-server",
        }
    )
    assert settings.model_dirs == (Path("/a"), Path("/b"))
    assert settings.server_args == ("-ngl", "99", "--alias", "two words")
    assert settings.temperature == 0.7
    assert settings.context_tokens == 512
    assert settings.forget_answers is True
    assert settings.llama_server == "llama-server"


def test_an_empty_variable_counts_as_not_set(home: dict[str, str]):
    """AUTOSPEC_STUDY= in a script does not wipe the file's value."""
    write(home, 'study = "quick"')
    assert load_settings(environ=home | {"AUTOSPEC_STUDY": ""}).study == "quick"


def test_an_unknown_key_names_the_file_and_the_nearest(home: dict[str, str]):
    """A typing error in the file is an error that helps, with exit code 2."""
    file = write(home, 'model_dir = ["x"]')
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=home)
    assert str(file) in caught.value.message
    assert "model_dir" in caught.value.message
    assert caught.value.hint == "Did you mean model_dirs?"
    assert caught.value.exit_code == 2


def test_an_unknown_variable_names_the_nearest(home: dict[str, str]):
    """A typing error in the environment is an error that helps."""
    with pytest.raises(SettingsError, match="AUTOSPEC_STORGE") as caught:
        load_settings(environ=home | {"AUTOSPEC_STORGE": "x"})
    assert caught.value.hint == "Did you mean AUTOSPEC_STORAGE?"


@pytest.mark.parametrize("variable", ["AUTOSPEC_NONSENSE", "AUTOSPEC_XYZ"])
def test_the_prefix_makes_no_variable_alike(home: dict[str, str], variable: str):
    """All of them begin with it."""
    with pytest.raises(SettingsError, match=variable) as caught:
        load_settings(environ=home | {variable: "x"})
    assert "Did you mean" not in caught.value.hint


def test_what_is_at_the_edge_is_accepted(home: dict[str, str]):
    """A free port as with --port 0, a small limit, the hottest temperature, any status, an address of any family."""
    write(
        home,
        'proxy_port = 0\nrequest_limit_mib = 0.0005\ntemperature = 2\nproxy_host = "::1"\n'
        'serve_statuses = ["proven", "stale", "provisional", "imported"]\nstorage = "sqlite://"\n',
    )
    settings = load_settings(environ=home)
    assert (settings.proxy_port, settings.request_limit_mib, settings.temperature) == (0, 0.0005, 2.0)
    assert load_settings(environ=home | {"AUTOSPEC_PROXY_PORT": "65535"}).proxy_port == 65535
    assert load_settings(environ=home | {"AUTOSPEC_SERVE_STATUSES": "stale imported"}).serve_statuses == (
        "stale",
        "imported",
    )


def test_a_wrong_database_does_not_show_its_password(home: dict[str, str]):
    """One slash too few, and the password is in no place where it would be known."""
    with pytest.raises(SettingsError, match=r"^AUTOSPEC_STORAGE must be an SQLAlchemy URL") as caught:
        load_settings(environ=home | {"AUTOSPEC_STORAGE": "postgresql:/me:hunter2@db/x"})
    assert "hunter2" not in str(caught.value)


def test_a_name_like_no_other_gets_no_guess(home: dict[str, str]):
    """Where nothing is near, the hint says where all keys are listed."""
    write(home, "zzz = 1")
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=home)
    assert "--template" in caught.value.hint


@pytest.mark.parametrize("variable", ["AUTOSPEC_TEST_ANYTHING", "AUTOSPEC_LAB", "OTHER_TOOL"])
def test_what_is_no_setting_is_left_alone(home: dict[str, str], variable: str):
    """The tests' own variables and everybody else's are not read."""
    assert load_settings(environ=home | {variable: "1"}).study == "default"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('temperature = "warm"', "a number"),
        ("temperature = -1", "a number"),
        ("temperature = true", "a number"),
        ("temperature = inf", "a number"),
        ("context_tokens = 1.5", "a whole number"),
        ("context_tokens = 0", "a whole number"),
        ('forget_answers = "yes"', "true or false"),
        ('server_args = "-ngl 99"', "a list of strings"),
        ('server_args = ["-ngl", 99]', "a list of strings"),
        ("on_change = 'notify \"me'", "a command line or a list of words"),
        ("on_change = 7", "a command line or a list of words"),
        ('model_dirs = "models"', "a list of paths"),
        ('budget = "soon"', "a duration"),
        ("study = 3", "a name or a path"),
        ('state_dir = ""', "a path"),
        ('trust = "hope"', '"proven" or "likely"'),
        ("temperature = 99", "a number from 0 to 2"),
        ("proxy_port = 99999", "a whole number from 0 to 65535"),
        ("proxy_port = -1", "a whole number from 0 to 65535"),
        ("proxy_port = true", "a whole number from 0 to 65535"),
        ("request_limit_mib = 0", "a number above 0"),
        ("request_limit_mib = 1e-9", "a number above 0"),
        ('proxy_host = "foo bar"', "an address or a name, without spaces"),
        ('serve_statuses = ["proven", "provn"]', "a list of statuses, each one of proven, "),
        ('serve_statuses = "proven"', "a list of statuses"),
        ('storage = "garbage"', "an SQLAlchemy URL"),
        ('storage = ""', "an SQLAlchemy URL"),
    ],
)
def test_a_wrong_type_names_the_key_and_what_was_expected(home: dict[str, str], line: str, expected: str):
    """Each kind refuses what it cannot mean."""
    file = write(home, line)
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=home)
    assert caught.value.message.startswith(f"{line.split(maxsplit=1)[0]} in {file} must be {expected}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AUTOSPEC_TEMPERATURE", "warm"),
        ("AUTOSPEC_TEMPERATURE", "nan"),
        ("AUTOSPEC_CONTEXT_TOKENS", "4k"),
        ("AUTOSPEC_FORGET_ANSWERS", "maybe"),
        ("AUTOSPEC_SERVER_ARGS", "'open"),
        ("AUTOSPEC_BUDGET", "20"),
        ("AUTOSPEC_PROXY_PORT", "99999"),
        ("AUTOSPEC_REQUEST_LIMIT_MIB", "0"),
        ("AUTOSPEC_SERVE_STATUSES", "provn"),
        ("AUTOSPEC_STORAGE", "garbage"),
    ],
)
def test_a_wrong_variable_is_named(home: dict[str, str], variable: str, value: str):
    """The error names the variable, for there may be several."""
    with pytest.raises(SettingsError, match=f"^{variable} must be"):
        load_settings(environ=home | {variable: value})


def test_the_file_cannot_say_where_it_is_itself(home: dict[str, str]):
    """`home` in the file is refused with the variable to set instead."""
    write(home, 'home = "/x"')
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=home)
    assert "AUTOSPEC_HOME" in caught.value.hint


def test_a_removed_folder_matters_only_to_paths_that_are_relative(
    tmp_path: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """A daemon reads its settings again and again; it ended when somebody removed the folder in which it was started."""
    gone = tmp_path / "gone"
    gone.mkdir()
    write(home, 'model_dirs = ["models"]')
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_settings(environ=home).model_dirs == (tmp_path / "models",)
    with pytest.raises(
        SettingsError, match=r"config_file is relative to the current folder, which was removed"
    ):
        load_settings(Path("a.toml"), environ=home)


def test_invalid_toml_names_the_place(home: dict[str, str]):
    """A file that is not TOML is reported with file and line."""
    file = write(home, "study = \n")
    with pytest.raises(SettingsError, match="line 1") as caught:
        load_settings(environ=home)
    assert str(file) in caught.value.message


def test_bytes_that_are_no_text_are_reported(home: dict[str, str]):
    """A file in another encoding is an error and not a traceback."""
    Path(home["AUTOSPEC_HOME"], "config.toml").write_bytes(b'study = "\xff"')
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(environ=home)


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path, home: dict[str, str]):
    """--config with a missing file fails; a missing default file does not."""
    with pytest.raises(SettingsError, match="There is no config file"):
        load_settings(tmp_path / "none.toml", environ=home)
    assert load_settings(environ=home).sources["study"] == "default"


def test_a_folder_as_config_file_is_a_plain_error(tmp_path: Path, home: dict[str, str]):
    """--config FOLDER is told in one sentence."""
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path, environ=home)


def test_the_given_file_beats_the_home_ones(tmp_path: Path, home: dict[str, str]):
    """--config reads that file and leaves the other folders in home."""
    write(home, 'study = "quick"')
    other = tmp_path / "other.toml"
    other.write_text('study = "thorough"', "utf-8")
    settings = load_settings(other, environ=home)
    assert settings.study == "thorough"
    assert settings.config_file == other
    assert settings.state_dir == tmp_path / "state"


def test_the_file_can_be_located_while_it_is_broken(home: dict[str, str]):
    """To repair a file one has to find it."""
    file = write(home, "study = ")
    assert locate_config(environ=home) == file


def test_a_moved_state_folder_takes_the_database_along(tmp_path: Path, home: dict[str, str]):
    """The default storage lies in state_dir, wherever that is."""
    settings = load_settings(environ=home | {"AUTOSPEC_STATE_DIR": "/elsewhere"})
    assert settings.storage == "sqlite:////elsewhere/autospec.db"


def test_odd_characters_in_the_state_folder_reach_the_database(tmp_path: Path, home: dict[str, str]):
    """What means something in a URL is quoted, so that SQLAlchemy opens the file in that folder."""
    from sqlalchemy.engine import make_url

    folder = tmp_path / "50% of it? yes"
    settings = load_settings(environ=home | {"AUTOSPEC_STATE_DIR": str(folder)})
    assert make_url(settings.storage).database == str(folder / "autospec.db")


def test_a_tilde_is_the_users_home(home: dict[str, str]):
    """~ works in the file as it does in a shell."""
    write(home, 'model_dirs = ["~/models"]')
    assert load_settings(environ=home).model_dirs == (Path.home() / "models",)


def test_a_password_is_not_shown(home: dict[str, str]):
    """storage_shown is what may be printed; storage is what connects."""
    url = "postgresql://me:secret@db/autospec"
    settings = load_settings(environ=home | {"AUTOSPEC_STORAGE": url})
    assert settings.storage == url
    assert settings.storage_shown == "postgresql://me:***@db/autospec"


def test_settings_are_equal_when_their_values_are(home: dict[str, str]):
    """Where a value came from does not make it another."""
    write(home, 'study = "quick"')
    assert load_settings(environ=home) == load_settings(environ=home, overrides={"study": "quick"})


def test_every_key_has_a_sentence():
    """`config show --template` prints them."""
    assert all(key.doc.endswith(".") for key in KEYS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "on_change = 'notify --title \"two words\" $HOME | cat'",
            ("notify", "--title", "two words", "$HOME", "|", "cat"),
        ),
        ('on_change = ["notify", "two words"]', ("notify", "two words")),
        ('on_change = ""', ()),
    ],
)
def test_a_command_is_split_and_never_expanded(home: dict[str, str], line: str, words: tuple[str, ...]):
    """As a line or as words; what only a shell would understand stays a word."""
    write(home, line)
    assert load_settings(environ=home).on_change == words


@pytest.mark.parametrize("name", ["queue_deadline", "daemon_idle", "daemon_budget", "daemon_step"])
def test_a_duration_that_must_be_one_is_not_empty(home: dict[str, str], name: str):
    """It was an error only where it was used: the daemon ended when a config that was edited while it ran said so."""
    file = write(home, f'{name} = ""')
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=home)
    expected = f'{name} in {file} must be a duration such as "90s", "20m" or "1h30m", not \'\'.'
    assert caught.value.message == expected


@pytest.mark.parametrize("name", ["budget", "idle_unload"])
def test_an_empty_duration_that_means_none_is_kept(home: dict[str, str], name: str):
    """No limit of the user's own; never."""
    write(home, f'{name} = ""')
    assert getattr(load_settings(environ=home), name) == ""
    write(home, f'{name} = "soon"')
    with pytest.raises(SettingsError, match="or empty, not 'soon'"):
        load_settings(environ=home)


def test_a_command_with_a_slash_is_a_file(home: dict[str, str]):
    """Relative to the config file's folder; a bare name is found on PATH."""
    file = write(home, 'on_change = "bin/hook -q"')
    assert load_settings(environ=home).on_change == (str(file.parent / "bin/hook"), "-q")
    assert load_settings(environ=home | {"AUTOSPEC_ON_CHANGE": "hook -q"}).on_change == ("hook", "-q")


@pytest.mark.parametrize("storage", ["", "sqlite:////data/a.db", "mysql://me:hunter2@hub/a"])
def test_shared_studies_need_a_database_that_locks_cells_over_machines(home: dict[str, str], storage: str):
    """Two machines would fail each other's running trials; the password stays unsaid."""
    env = home | {"AUTOSPEC_STUDY_STORAGE": "grpc://hub:13000", "AUTOSPEC_STORAGE": storage}
    with pytest.raises(SettingsError, match="study_storage needs a PostgreSQL") as caught:
        load_settings(environ=env)
    assert "hunter2" not in str(caught.value)
    assert "postgresql" in caught.value.hint


@pytest.mark.parametrize("storage", ["postgresql://me@hub/a", "postgresql+psycopg://me@hub/a"])
def test_shared_studies_go_with_a_postgresql(home: dict[str, str], storage: str):
    """With any driver."""
    settings = load_settings(
        environ=home | {"AUTOSPEC_STUDY_STORAGE": "grpc://hub:13000", "AUTOSPEC_STORAGE": storage}
    )
    assert settings.studies_url == "grpc://hub:13000"
