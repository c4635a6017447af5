"""The list of all settings: names, kinds, defaults, and a sentence for each.

Values of settings: what a user may write for each kind, and the form in which `Settings` holds it.

Reading the settings: flag > environment > config file > default, each value with the source it came from.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autospec.errors import SettingsError, UsageError

__all__ = [
    "KEYS",
    "PREFIX",
    "Key",
    "Settings",
    "checked",
    "from_text",
    "load_settings",
    "locate_config",
    "parse_duration",
    "parse_hours",
]


PREFIX: Final = "AUTOSPEC_"


@dataclass(frozen=True, slots=True)
class Key:
    """One setting.

    Attributes:
        name: Its name in the file; upper-cased with ``AUTOSPEC_`` before it in the environment.
        kind: ``text``, ``name`` (a name or a path), ``file``, ``path``, ``paths``, ``words``, ``command``, ``duration``, ``number``,
            ``count``, ``flag``, ``hours`` or ``trust``.
        default: What holds when nobody sets it; ``None`` where `load_settings` works it out.
        doc: One sentence for the template and for `config show`.
        in_file: False for the two keys that say where the file is.
    """

    name: str
    kind: str
    default: object
    doc: str
    in_file: bool = True

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper()


KEYS: Final = (
    Key("home", "path", None, "One folder for config, state, cache and logs.", in_file=False),
    Key("config_file", "path", None, "The config file.", in_file=False),
    Key("state_dir", "path", None, "Where recommendations and studies are kept."),
    Key("cache_dir", "path", None, "What can be made again: model metadata, recorded texts."),
    Key("log_dir", "path", None, "Server logs and crash reports."),
    Key("model_dirs", "paths", (), "Further folders to look for models in, besides the known caches."),
    Key("storage", "text", None, "SQLAlchemy URL of the database."),
    Key("backend", "text", "", "The kind of server; empty chooses what is installed."),
    Key("llama_server", "name", "", "The llama-server to run; empty takes the one on PATH."),
    Key("server_args", "words", (), "Your own launch settings, given to every server."),
    Key("study", "name", "default", "Study definition: quick, default, thorough, or a TOML file."),
    Key("suite", "file", "", "Prompt suite (JSONL); empty takes the shipped one."),
    Key("budget", "duration", "", "How long a tune may take, e.g. 20m; empty leaves it to the study."),
    Key("temperature", "number", 0.0, "Sampling temperature of measured requests; 0 is greedy."),
    Key(
        "context_tokens",
        "count",
        4096,
        "Context length of measured servers where your own settings name none; memory estimates count with it.",
    ),
    Key("forget_answers", "flag", False, "Forget the recorded answers (token ids) when a tune ends."),
    Key(
        "proxy_host",
        "text",
        "127.0.0.1",
        "Where the proxy listens; another address than loopback needs a key.",
    ),
    Key("proxy_port", "count", 8686, "The proxy's port."),
    Key("proxy_api_key", "text", "", "What clients of the proxy must send; empty for none."),
    Key("proxy_hosts", "words", (), "Further names under which the proxy may be reached."),
    Key("proxy_origins", "words", (), "Web pages that may use the proxy, e.g. https://chat.example.org."),
    Key("request_limit_mib", "number", 64.0, "Largest request that the proxy takes."),
    Key("idle_unload", "duration", "15m", "The proxy stops servers unused for this long; empty never does."),
    Key("memory_limit", "number", 0.0, "GiB that the proxy's servers may take; 0 is 75 % of the memory."),
    Key("queue_limit", "count", 256, "Requests that may wait for a server of the proxy."),
    Key("queue_deadline", "duration", "5m", "How long a request may wait for a server; loading counts."),
    Key(
        "serve_statuses",
        "words",
        ("proven", "stale"),
        "Recommendations that the proxy acts on: proven, stale, provisional, imported; others are off.",
    ),
    Key(
        "trust",
        "trust",
        "proven",
        "What the proxy drafts with: proven, or likely, which is also what is likely while its proof is not finished.",
    ),
    Key(
        "on_change",
        "command",
        (),
        "A command that the daemon gives each change of a recommendation, as JSON on stdin.",
    ),
    Key(
        "daemon_idle",
        "duration",
        "5m",
        "How long nobody must have asked or typed before the daemon measures.",
    ),
    Key("daemon_hours", "hours", "", "When the daemon may measure, e.g. 22:00-07:00; empty is any time."),
    Key("daemon_budget", "duration", "2h", "How long the daemon may measure a day."),
    Key("daemon_step", "duration", "10m", "How long one step of the daemon may take: one cell at a time."),
    Key("attached_url", "text", "", "Address of a server that somebody else runs, for the backend attached."),
    Key("attached_remote", "flag", False, "Allow an attached server that is not on this machine."),
    Key(
        "study_storage",
        "text",
        "",
        "Optuna's gRPC proxy for the studies, e.g. grpc://hub:13000, where `storage` is a PostgreSQL; empty keeps them in `storage`.",
    ),
)


_EXPECTED: Final = {
    "text": "a string",
    "name": "a name or a path",
    "file": "a path",
    "path": "a path",
    "paths": "a list of paths",
    "words": 'a list of strings, e.g. ["-ngl", "99"]',
    "command": "a command line or a list of words",
    "duration": 'a duration such as "90s", "20m" or "1h30m"',
    "number": "a number of at least 0",
    "count": "a whole number of at least 1",
    "flag": "true or false",
    "hours": 'hours of the day such as "22:00-07:00"; several with commas',
    "trust": '"proven" or "likely"',
}
_TRUST: Final = ("proven", "likely")
_FLAGS: Final = {"1": True, "true": True, "yes": True, "on": True} | dict.fromkeys(
    ("0", "false", "no", "off"), False
)


def parse_duration(text: str) -> float:
    """Seconds in a duration such as ``90s``, ``20m``, ``1h30m`` or ``1.5h``.

    Raises:
        UsageError: It is not a duration, or not a positive one.
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    compact = text.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", compact)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    order = [unit for _, unit in parts]
    complete = "".join(number + unit for number, unit in parts) == compact
    if not complete or len(set(order)) != len(order) or order != sorted(order, key="hms".index):
        raise UsageError(
            f"{text!r} is not a duration.", "Write hours, minutes and seconds, e.g. 90s, 20m or 1h30m."
        )
    if not 0 < seconds < math.inf:
        raise UsageError(f"A duration must be longer than nothing, not {text!r}.", "Write e.g. 20m.")
    return seconds


def parse_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Minutes of the day at which stretches such as ``22:00-07:00, 12:00-13:00`` begin and end; none for an empty text.

    Raises:
        UsageError: It is none.
    """
    stretches = []
    for part in filter(None, text.replace(" ", "").split(",")):
        found = re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", part)
        hour, minute, to_hour, to_minute = map(int, found.groups()) if found else (99, 0, 0, 0)
        begin, end = 60 * hour + minute, 60 * to_hour + to_minute
        if max(minute, to_minute) > 59 or max(begin, end) > 24 * 60 or begin == end:
            raise UsageError(f"{part!r} is no stretch of hours.", "Write e.g. 22:00-07:00.")
        stretches.append((begin, end))
    return tuple(stretches)


def checked(key: Key, value: object, base: Path, where: str) -> object:
    """The value in the form `Settings` holds it, paths resolved against `base`.

    Raises:
        SettingsError: It is not of the key's kind; `where` says which value that is.
    """
    try:
        return _FORMS[key.kind](value, base)
    except (TypeError, ValueError, UsageError):
        raise _wrong(key, where, value) from None


def from_text(key: Key, text: str, base: Path, where: str) -> object:
    """The same of a value that is text, as everything in the environment is.

    Raises:
        SettingsError: As `checked`.
    """
    try:
        value = _parsed(key.kind, text)
    except (ValueError, KeyError):
        raise _wrong(key, where, text) from None
    return checked(key, value, base, where)


def _parsed(kind: str, text: str) -> object:
    match kind:
        case "paths":
            return [part for part in text.split(os.pathsep) if part]
        case "words":
            return shlex.split(text)
        case "number":
            return float(text)
        case "count":
            return int(text)
        case "flag":
            return _FLAGS[text.strip().lower()]
        case _:
            return text


def _wrong(key: Key, where: str, value: object) -> SettingsError:
    return SettingsError(f"{where} must be {_EXPECTED[key.kind]}, not {value!r}.", key.doc)


def _text(value: object, _base: Path) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _name(value: object, base: Path) -> str:
    # A bare name is looked up where such things are; anything with a slash is a file.
    name = _text(value, base)
    return str(_path(name, base)) if os.sep in name or name.endswith(".toml") else name


def _file(value: object, base: Path) -> str:
    return str(_path(value, base)) if value else _text(value, base)


def _path(value: object, base: Path) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError
    try:
        return base.absolute() / Path(value).expanduser()
    except RuntimeError:  # ~name of somebody who has no home here
        return base.absolute() / value


def _paths(value: object, base: Path) -> tuple[Path, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_path(item, base) for item in value)


def _words(value: object, base: Path) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_text(item, base) for item in value)


def _command(value: object, base: Path) -> tuple[str, ...]:
    # Split as a shell would, and run without one: $, | and > mean nothing unless the user writes `sh -c "…"`.
    words = _words(shlex.split(value) if isinstance(value, str) else value, base)
    if not words or os.sep not in words[0]:
        return words
    return str(_path(words[0], base)), *words[1:]


def _duration(value: object, base: Path) -> str:
    text = _text(value, base)
    if text:
        parse_duration(text)
    return text


def _hours(value: object, base: Path) -> str:
    text = _text(value, base)
    parse_hours(text)
    return text


def _number(value: object, _base: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not 0 <= value < math.inf:
        raise ValueError
    return float(value)


def _count(value: object, _base: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    if value < 1:
        raise ValueError
    return value


def _flag(value: object, _base: Path) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _trust(value: object, base: Path) -> str:
    word = _text(value, base)
    if word not in _TRUST:
        raise ValueError
    return word


_FORMS: Final[dict[str, Callable[[object, Path], object]]] = {
    "text": _text,
    "name": _name,
    "file": _file,
    "path": _path,
    "paths": _paths,
    "words": _words,
    "command": _command,
    "duration": _duration,
    "number": _number,
    "count": _count,
    "flag": _flag,
    "hours": _hours,
    "trust": _trust,
}


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
