"""Reading the settings: flag > environment > config file > default, each value with the source it came from."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autospec.errors import SettingsError
from autospec.settings.forms import checked, from_text
from autospec.settings.keys import KEYS, PREFIX, Key

__all__ = ["Settings", "load_settings", "locate_config"]

# Read by the tests themselves, the mark that every child of a guard carries, and a key, which belongs neither into a file nor
# into `config show`; not settings.
_NOT_SETTINGS: Final = re.compile(r"AUTOSPEC_(TEST_.*|LAB|LAUNCH_ID|ATTACHED_KEY)")
_BY_NAME: Final = {key.name: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, resolved. Made by `load_settings`.

    Attributes are the `KEYS`, which say what each is for.

    Attributes:
        home: ``AUTOSPEC_HOME``, or ``None`` where the platform's folders are used.
        config_file: The config file, whether it exists or not.
        budget: Duration as typed; `parse_duration` reads it.
        sources: For each key where its value came from: ``flag``, ``environment``, ``file``,
            ``home`` (follows from AUTOSPEC_HOME), ``state_dir`` (follows from that key) or ``default``.
    """

    home: Path | None
    config_file: Path
    state_dir: Path
    cache_dir: Path
    log_dir: Path
    model_dirs: tuple[Path, ...]
    storage: str
    backend: str
    llama_server: str
    server_args: tuple[str, ...]
    study: str
    suite: str
    budget: str
    temperature: float
    context_tokens: int
    forget_answers: bool
    proxy_host: str
    proxy_port: int
    proxy_api_key: str
    proxy_hosts: tuple[str, ...]
    proxy_origins: tuple[str, ...]
    request_limit_mib: float
    idle_unload: str
    memory_limit: float
    queue_limit: int
    queue_deadline: str
    serve_statuses: tuple[str, ...]
    trust: str
    on_change: tuple[str, ...]
    daemon_idle: str
    daemon_hours: str
    daemon_budget: str
    daemon_step: str
    attached_url: str
    attached_remote: bool
    study_storage: str
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def studies_url(self) -> str:
        """Where Optuna's studies are: in the database, or behind a gRPC proxy."""
        return self.study_storage or self.storage

    @property
    def proxy_api_key_shown(self) -> str:
        """Whether there is a key, for people and logs."""
        return "***" if self.proxy_api_key else ""

    @property
    def storage_shown(self) -> str:
        """The database's URL for people and logs: without its password."""
        return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", self.storage)


def load_settings(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Read all sources and resolve every key.

    An empty variable counts as not set, and so does an override of ``None``. Relative paths belong to the
    config file's folder in the file, and to the current folder elsewhere.

    Args:
        config: The file given by ``--config``; it must exist.
        environ: The environment; the process's own by default.
        overrides: Values from flags, by key.

    Raises:
        SettingsError: An unknown key, a wrong type, values that do not go together, or a file that cannot be read.
    """
    found = _outside_the_file(config, os.environ if environ is None else environ, overrides or {})
    home = found["home"][0] if "home" in found else None
    assert home is None or isinstance(home, Path)
    folders = _folders(home)
    file = found["config_file"][0] if "config_file" in found else folders["config_file"]
    assert isinstance(file, Path)
    for name, value in _from_file(file, must_exist="config_file" in found).items():
        found.setdefault(name, (value, "file"))

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in KEYS:
        if key.name in found:
            values[key.name], sources[key.name] = found[key.name]
        elif key.name in folders:
            values[key.name], sources[key.name] = folders[key.name], "home" if home else "default"
        else:
            values[key.name], sources[key.name] = key.default, "default"
    if values["storage"] is None:
        file = str(values["state_dir"] / "autospec.db")
        # The two characters that mean something in this part of a URL.
        values["storage"] = "sqlite:///" + file.replace("%", "%25").replace("?", "%3F")
        sources["storage"] = "default" if sources["state_dir"] == "default" else "state_dir"
    settings = Settings(**values, sources=sources)
    _check_study_storage(settings)
    return settings


def locate_config(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The config file that `load_settings` would read, without reading it: it may be the one to repair.

    Raises:
        SettingsError: The environment is wrong.
    """
    found = _outside_the_file(config, os.environ if environ is None else environ, {})
    home, file = found.get("home", (None, ""))[0], found.get("config_file", (None, ""))[0]
    assert home is None or isinstance(home, Path)
    return file if isinstance(file, Path) else _folders(home)["config_file"]


def _check_study_storage(settings: Settings) -> None:
    """Studies that several machines share need cells that are locked over all of them: PostgreSQL alone can."""
    if settings.study_storage and not re.match(r"postgresql(\+\w+)?:", settings.storage):
        raise SettingsError(
            f"study_storage needs a PostgreSQL as `storage`, which keeps two machines off one cell; "
            f"{settings.storage_shown} cannot.",
            "Set storage to the address of a PostgreSQL (postgresql+psycopg://USER@HOST/NAME), or leave study_storage empty.",
        )


def _outside_the_file(
    config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]
) -> dict[str, tuple[object, str]]:
    """Values and sources of what environment and flags set."""
    here = Path.cwd()
    found = {name: (value, "environment") for name, value in _from_environment(environ, here).items()}
    flags = {name: value for name, value in overrides.items() if value is not None}
    if config is not None:
        flags["config_file"] = config
    for name, value in flags.items():
        found[name] = (checked(_BY_NAME[name], value, here, f"The value for {name}"), "flag")
    return found


def _folders(home: Path | None) -> dict[str, Path]:
    if home is not None:
        return {
            "config_file": home / "config.toml",
            "state_dir": home / "state",
            "cache_dir": home / "cache",
            "log_dir": home / "logs",
        }
    import platformdirs  # noqa: PLC0415 - not needed where AUTOSPEC_HOME is set

    dirs = platformdirs.PlatformDirs("autospec", appauthor=False)
    return {
        "config_file": dirs.user_config_path / "config.toml",
        "state_dir": dirs.user_state_path,
        "cache_dir": dirs.user_cache_path,
        "log_dir": dirs.user_log_path,
    }


def _from_environment(environ: Mapping[str, str], here: Path) -> dict[str, object]:
    known = {key.variable: key for key in KEYS}
    values: dict[str, object] = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or _NOT_SETTINGS.fullmatch(variable):
            continue
        if variable not in known:
            raise SettingsError(
                f"The environment variable {variable} is no setting of autospec.", _nearest(variable, known)
            )
        if text := environ[variable]:
            key = known[variable]
            values[key.name] = from_text(key, text, here, variable)
    return values


def _from_file(file: Path, *, must_exist: bool) -> dict[str, object]:
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise SettingsError(
                f"There is no config file {file}.",
                f"Write one with `autospec config show --template > {shlex.quote(str(file))}`.",
            ) from None
        return {}
    except OSError as error:
        raise SettingsError(f"The config file {file} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The config file {file} is not valid TOML: {error}.") from None
    settable = {key.name: key for key in KEYS if key.in_file}
    values: dict[str, object] = {}
    for name, value in document.items():
        if name not in settable:
            if name in _BY_NAME:
                raise SettingsError(
                    f"{name} cannot be set in {file}, because it says where that file is.",
                    f"Set {_BY_NAME[name].variable} in the environment.",
                )
            raise SettingsError(f"{file} has an unknown key {name}.", _nearest(name, settable))
        values[name] = checked(settable[name], value, file.parent, f"{name} in {file}")
    return values


def _nearest(name: str, known: Mapping[str, Key]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]}?"
    return "`autospec config show --template` lists all keys."
