"""All settings in one list: `Settings` names each with its type, default, kind and description.

`load_settings` reads them: a flag beats the environment, which beats the config file, which beats the default. The sections
``[models."NAME"]`` of the config file are `ModelSettings`; only the file has them.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from autospec.cells import Aim
from autospec.errors import SettingsError, UsageError, did_you_mean
from autospec.recommendations import Status

__all__ = [
    "KEYS",
    "MODEL_KEYS",
    "Adapter",
    "Key",
    "ModelSettings",
    "Settings",
    "is_temperature",
    "load_settings",
    "locate_config",
    "parse_duration",
    "parse_hours",
]

_PREFIX: Final = "AUTOSPEC_"


def _key(kind: str, doc: str, *, in_file: bool = True) -> dict[str, Any]:
    """Metadata of a field of `Settings` that makes it a setting."""
    return {"kind": kind, "doc": doc, "in_file": in_file}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, and how much of it is added to the model."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A section ``[models."NAME"]`` of the config file.

    Attributes:
        name: NAME as typed: a model's name, a part of it, or a path (`autospec.catalog.resolve`).
        server_args: Arguments after those of the setting ``server_args``; the last of repeated flags counts.
        context_tokens: Context of every launch of this model, measured or served; 0 leaves it to the arguments.
        mmproj: Projector of the model; ``None`` if the section does not say, empty for none.
        lora: Adapters, in their order.
        aliases: More names of the model, for clients and for commands.
    """

    name: str
    server_args: tuple[str, ...] = ()
    context_tokens: int = 0
    mmproj: str | None = None
    lora: tuple[Adapter, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The section's heading, for messages."""
        return f'[models."{self.name}"]'


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, resolved. `load_settings` makes it.

    A field with `_key` metadata is a setting. One without a default gets its value from `load_settings`. Durations stay
    as typed; `parse_duration` reads them.

    Attributes:
        sources: For each setting the source of its value: ``flag``, ``environment``, ``file``, ``home`` (follows from
            AUTOSPEC_HOME), ``state_dir`` (follows from that setting) or ``default``.
        models: The sections ``[models."NAME"]`` of the config file.
    """

    # fmt: off
    home: Path | None = field(metadata=_key("path", "One folder for config, state, cache and logs.", in_file=False))
    config_file: Path = field(metadata=_key("path", "The config file.", in_file=False))
    state_dir: Path = field(metadata=_key("path", "Folder for recommendations, studies and the logs of servers."))
    cache_dir: Path = field(metadata=_key(
        "path", "Folder for data that can be rebuilt, such as model metadata."))
    log_dir: Path = field(metadata=_key("path", "Folder for the logs of daemon and proxy, and for crash reports."))
    model_dirs: tuple[Path, ...] = field(default=(), metadata=_key(
        "paths", "More folders to search for models, besides the known caches."))
    storage: str = field(metadata=_key("url", "SQLAlchemy URL of the database."))
    backend: str = field(default="", metadata=_key("text", "Backend to use; empty chooses one that is installed."))
    llama_server: str = field(default="", metadata=_key(
        "name", "The llama-server program; empty uses the one on PATH."))
    server_args: tuple[str, ...] = field(default=(), metadata=_key(
        "words", "Extra command-line arguments for every server."))
    aim: str = field(default="speed", metadata=_key(
        "aim", "What drafting must improve: speed, or energy (joules per token). Energy needs a counter that this user may read."))
    study: str = field(default="default", metadata=_key(
        "name", "Study definition: quick, default, thorough, or a TOML file."))
    suite: str = field(default="", metadata=_key("file", "Prompt suite (JSONL); empty uses the built-in one."))
    budget: str = field(default="", metadata=_key(
        "duration or empty", "Time limit of a tune, e.g. 20m; empty uses the limit of the study."))
    temperature: float = field(default=0.0, metadata=_key(
        "temperature", "Sampling temperature of measured requests; 0 is greedy."))
    context_tokens: int = field(default=4096, metadata=_key(
        "count", "Context length of measured servers if server_args sets none; memory estimates use it too."))
    mmproj_auto: bool = field(default=True, metadata=_key(
        "flag", "The proxy passes --mmproj where exactly one projector lies beside a model and its section in [models] names none."))
    forget_answers: bool = field(default=False, metadata=_key(
        "flag", "Delete the recorded answers (token ids) when a tune ends."))
    proxy_host: str = field(default="127.0.0.1", metadata=_key(
        "host", "Address that the proxy listens on; any address except loopback needs proxy_api_key."))
    proxy_port: int = field(default=8686, metadata=_key("port", "Port that the proxy listens on; 0 chooses a free one."))
    proxy_api_key: str = field(default="", metadata=_key(
        "text", "API key that clients of the proxy must send; empty requires none."))
    proxy_hosts: tuple[str, ...] = field(default=(), metadata=_key(
        "words", "Additional host names under which clients may reach the proxy."))
    proxy_origins: tuple[str, ...] = field(default=(), metadata=_key(
        "words", "Web origins that may call the proxy, e.g. https://chat.example.org."))
    request_limit_mib: float = field(default=64.0, metadata=_key(
        "size", "Largest request body that the proxy accepts, in MiB."))
    idle_unload: str = field(default="15m", metadata=_key(
        "duration or empty", "The proxy stops a server after this time without requests; empty keeps servers running."))
    memory_limit: float = field(default=0.0, metadata=_key(
        "number", "Memory limit for the servers of the proxy, in GiB; 0: the memory of the graphics cards; without a card, 75 % of the system's memory."))
    queue_limit: int = field(default=256, metadata=_key(
        "count", "How many requests may wait for a server of the proxy."))
    queue_deadline: str = field(default="5m", metadata=_key(
        "duration", "How long a request may wait for a server, including the time to load the model."))
    stream_comments: bool = field(default=True, metadata=_key(
        "flag", "Send comments to streaming clients while their request waits for a server, so that they do not give up."))
    serve_statuses: tuple[str, ...] = field(default=("proven", "stale"), metadata=_key(
        "statuses", "Statuses (proven, stale, provisional, imported) of the recommendations by which the proxy drafts; with any other status it does not draft."))
    trust: str = field(default="proven", metadata=_key(
        "trust", "proven, or likely: then the proxy also drafts where the verdict is still undecided but a gain is likely, whatever serve_statuses says."))
    on_change: tuple[str, ...] = field(default=(), metadata=_key(
        "command", "Command that the daemon runs when recommendations change; it gets the changes as JSON on stdin."))
    daemon_idle: str = field(default="5m", metadata=_key(
        "duration", "Idle time (no requests, no keyboard or mouse input) before the daemon starts measuring."))
    daemon_hours: str = field(default="", metadata=_key(
        "hours", "Hours in which the daemon may measure, e.g. 22:00-07:00; empty allows any time."))
    daemon_budget: str = field(default="2h", metadata=_key(
        "duration", "Longest time per day that the daemon may measure."))
    daemon_step: str = field(default="10m", metadata=_key(
        "duration", "Longest time of one step of the daemon; a step measures one model on one prompt type."))
    attached_url: str = field(default="", metadata=_key(
        "text", "Address of a running server that autospec did not start, for the attached backend."))
    attached_remote: bool = field(default=False, metadata=_key("flag", "Allow an attached server on another machine."))
    study_storage: str = field(default="", metadata=_key(
        "text", "Address of Optuna's gRPC proxy for studies of several machines, e.g. grpc://hub:13000; storage must be PostgreSQL. Empty keeps the studies in storage."))
    # fmt: on
    models: tuple[ModelSettings, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def named_by(self, name: str) -> str:
        """The name for which a section has this alias, for commands that do not search the disk; the name itself if none has."""
        wanted = name.casefold()
        owners = (s.name for s in self.models if wanted in map(str.casefold, s.aliases))
        return next(owners, name)

    @property
    def studies_url(self) -> str:
        """Where Optuna's studies are: in the database, or behind a gRPC proxy."""
        return self.study_storage or self.storage

    @property
    def proxy_api_key_shown(self) -> str:
        """Stars if there is a key, for people and logs."""
        return "***" if self.proxy_api_key else ""

    @property
    def storage_shown(self) -> str:
        """The database's URL without its password, for people and logs."""
        return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", self.storage)


@dataclass(frozen=True, slots=True)
class Key:
    """One setting, read off a field of `Settings`.

    Attributes:
        name: Its name in the file; upper-cased with ``AUTOSPEC_`` before it in the environment.
        kind: Which of `_KINDS` its values are.
        doc: One sentence for the template and for `config show`.
        in_file: False for the two settings that say where the file is.
        default: The value if nobody sets one; ``None`` where `load_settings` works it out.
    """

    name: str
    kind: str
    doc: str
    in_file: bool
    default: object

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return _PREFIX + self.name.upper()


KEYS: Final = tuple(
    Key(name=f.name, default=None if f.default is MISSING else f.default, **f.metadata)
    for f in fields(Settings)
    if f.metadata
)
_BY_NAME: Final = {key.name: key for key in KEYS}
# The tests' own variables, the mark that every child of a guard carries, and a key, which belongs neither into a file
# nor into `config show`.
_NOT_SETTINGS: Final = re.compile(r"AUTOSPEC_(TEST_.*|LAB|LAUNCH_ID|ATTACHED_KEY)")


def load_settings(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Read all sources and resolve every setting.

    An empty variable and an override of ``None`` count as not set. A relative path in the config file starts at the
    file's folder, elsewhere at the current folder.

    Args:
        config: The file given by ``--config``; it must exist.
        environ: The environment; by default that of the process.
        overrides: Values from flags, by name.

    Raises:
        SettingsError: A key is unknown, a value has the wrong type, two values contradict each other, or the file cannot be read.
    """
    outside, defaults = _outside_the_file(config, environ, overrides or {})
    file, _ = (defaults | outside)["config_file"]
    inside, models = _from_file(file, must_exist="config_file" in outside)
    given = defaults | {name: (value, "file") for name, value in inside.items()} | outside
    values = {name: value for name, (value, _) in given.items()}
    sources = {name: source for name, (_, source) in given.items()}
    if values["storage"] is None:
        database = str(values["state_dir"] / "autospec.db")
        # The two characters that mean something in this part of a URL.
        values["storage"] = "sqlite:///" + database.replace("%", "%25").replace("?", "%3F")
        sources["storage"] = "default" if sources["state_dir"] == "default" else "state_dir"
    settings = Settings(**values, models=models, sources=sources)
    _check_study_storage(settings)
    return settings


def locate_config(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The config file that `load_settings` would read, without reading it, because it may be broken.

    Raises:
        SettingsError: The environment is wrong.
    """
    outside, defaults = _outside_the_file(config, environ, {})
    file: Path = (defaults | outside)["config_file"][0]
    return file


def _check_study_storage(settings: Settings) -> None:
    """Machines that share studies must lock cells across machines, which only PostgreSQL can."""
    if settings.study_storage and not re.match(r"postgresql(\+\w+)?:", settings.storage):
        raise SettingsError(
            f"study_storage needs a PostgreSQL database as storage, so that two machines do not measure the same cell; "
            f"storage is {settings.storage_shown}.",
            "Set storage to a PostgreSQL URL (postgresql+psycopg://USER@HOST/NAME), or leave study_storage empty.",
        )


# Name → value and its source. `Any`, because each kind has its own type.
_Sourced = dict[str, tuple[Any, str]]


def _outside_the_file(
    config: Path | None, environ: Mapping[str, str] | None, overrides: Mapping[str, object]
) -> tuple[_Sourced, _Sourced]:
    """What environment and flags set, and the defaults that follow."""
    # Not looked up before it is needed: a daemon's folder may have been removed since its start.
    here = Path()
    variables = _from_environment(os.environ if environ is None else environ, here)
    found: _Sourced = {name: (value, "environment") for name, value in variables.items()}
    for name, value in (*overrides.items(), ("config_file", config)):
        if value is not None:
            found[name] = (_checked(_BY_NAME[name], value, here, f"The value for {name}"), "flag")
    home = found["home"][0] if "home" in found else None
    defaults: _Sourced = {key.name: (key.default, "default") for key in KEYS}
    for name, folder in _folders(home).items():
        defaults[name] = (folder, "home" if home else "default")
    return found, defaults


def _folders(home: Path | None) -> dict[str, Path]:
    if home is not None:
        config, state, cache, log = home, home / "state", home / "cache", home / "logs"
    else:
        import platformdirs  # noqa: PLC0415 - not needed where AUTOSPEC_HOME is set

        dirs = platformdirs.PlatformDirs("autospec", appauthor=False)
        config, state = dirs.user_config_path, dirs.user_state_path
        cache, log = dirs.user_cache_path, dirs.user_log_path
    return {"config_file": config / "config.toml", "state_dir": state, "cache_dir": cache, "log_dir": log}


def _from_environment(environ: Mapping[str, str], here: Path) -> dict[str, object]:
    known = {key.variable: key for key in KEYS}
    values: dict[str, object] = {}
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or _NOT_SETTINGS.fullmatch(variable):
            continue
        if variable not in known:
            raise SettingsError(
                f"The environment variable {variable} is not a setting of autospec.",
                _nearest(variable, known, _PREFIX),
            )
        if text := environ[variable]:
            key = known[variable]
            values[key.name] = _from_text(key, text, here, variable)
    return values


def _from_file(file: Path, *, must_exist: bool) -> tuple[dict[str, object], tuple[ModelSettings, ...]]:
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise SettingsError(
                f"There is no config file {file}.",
                f"Write one with `autospec config show --template > {shlex.quote(str(file))}`.",
            ) from None
        return {}, ()
    except OSError as error:
        raise SettingsError(f"The config file {file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # of the text, of a number's digits, of nesting
        raise SettingsError(f"The config file {file} is not valid TOML: {error}.") from None
    settable = {key.name: key for key in KEYS if key.in_file}
    values: dict[str, object] = {}
    models = _model_sections(document.pop(_MODELS, {}), file)
    for name, value in document.items():
        if name not in settable:
            if name in _BY_NAME:
                raise SettingsError(
                    f"{name} cannot be set in {file}, because it determines where that file is.",
                    f"Set {_BY_NAME[name].variable} in the environment.",
                )
            raise SettingsError(f"{file} has an unknown key {name}.", _nearest(name, [*settable, _MODELS]))
        values[name] = _checked(settable[name], value, file.parent, f"{name} in {file}")
    return values, models


def _model_sections(sections: object, file: Path) -> tuple[ModelSettings, ...]:
    """The sections ``[models."NAME"]`` of the file."""
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise SettingsError(
            f"{_MODELS} in {file} must hold a section for each model.",
            f"Write {_EXAMPLE} and the keys below it.",
        )
    found = tuple(_model_section(name, section, file) for name, section in sections.items())
    owner: dict[str, ModelSettings] = {}
    for section in found:
        for alias in section.aliases:
            rival = owner.setdefault(alias, section)
            if rival is not section:
                raise SettingsError(
                    f"The alias {alias} stands in two sections of {file}: {rival.title} and {section.title}.",
                    "Remove one of the two.",
                )
    return found


def _model_section(name: str, section: Mapping[str, object], file: Path) -> ModelSettings:
    title = f'[models."{name}"]'
    for key, value in section.items():
        if key not in _MODEL_KINDS:
            if isinstance(value, dict):
                # A name with a dot and without quotes is a path of sections to TOML.
                hint = f"A model's name needs quotes if it has other characters than letters, digits, - and _: {_EXAMPLE}."
            else:
                hint = did_you_mean(key, _MODEL_KINDS, 0.5) or f"The keys are {', '.join(MODEL_KEYS)}."
            raise SettingsError(f"{file} has an unknown key {key} in {title}.", hint)
    values: dict[str, Any] = {}
    for key, value in section.items():
        kind = _MODEL_KINDS[key]
        try:
            values[key] = kind.form(value, file.parent)
        except (TypeError, ValueError):
            raise SettingsError(
                f"{key} of {title} in {file} must be {kind.expected}, not {value!r}.", MODEL_KEYS[key]
            ) from None
    return ModelSettings(name, **values)


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = did_you_mean(name, known, 0.5, prefix=prefix)
    return near or "`autospec config show --template` lists all settings."


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
        raise UsageError(f"A duration must be longer than 0, not {text!r}.", "Write e.g. 20m.")
    return seconds


def parse_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Begin and end, in minutes of the day, of each span in a text such as ``22:00-07:00, 12:00-13:00``.

    Raises:
        UsageError: A part of the text is not a span of hours.
    """
    spans = []
    for part in filter(None, text.replace(" ", "").split(",")):
        found = re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", part)
        hour, minute, to_hour, to_minute = map(int, found.groups()) if found else (99, 0, 0, 0)
        begin, end = 60 * hour + minute, 60 * to_hour + to_minute
        if max(minute, to_minute) > 59 or max(begin, end) > 24 * 60 or begin == end:
            raise UsageError(f"{part!r} is not a span of hours.", "Write e.g. 22:00-07:00.")
        spans.append((begin, end))
    return tuple(spans)


def is_temperature(value: object) -> bool:
    """Whether a value can be a sampling temperature."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _HOTTEST


# Of numbers: far beyond what any setting means, and still a whole number of bytes in GiB.
_MOST: Final = 1e12
# Servers take higher temperatures; their text is noise.
_HOTTEST: Final = 2.0
_HIGHEST_PORT: Final = 65535
# What SQLAlchemy asks of a URL first of all. It is not imported here, because `recommend` must answer at once.
_DATABASE_URL: Final = re.compile(r"[\w+]+://")
_TRUE_WORDS: Final = ("1", "true", "yes", "on")
_FALSE_WORDS: Final = ("0", "false", "no", "off")


def _text(value: object, _base: Path) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _name(value: object, base: Path) -> str:
    # A name with a slash is a file.
    name = _text(value, base)
    return str(_path(name, base)) if os.sep in name or name.endswith(".toml") else name


def _file(value: object, base: Path) -> str:
    return str(_path(value, base)) if value else _text(value, base)


def _path(value: object, base: Path) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError
    try:
        path = Path(value).expanduser()
    except RuntimeError:  # ~name of a user who does not exist here
        path = Path(value)
    return path if path.is_absolute() else base.absolute() / path


def _paths(value: object, base: Path) -> tuple[Path, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_path(item, base) for item in value)


def _words(value: object, base: Path) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_text(item, base) for item in value)


def _command(value: object, base: Path) -> tuple[str, ...]:
    # Split like a shell does, but run without one: $, | and > are plain words unless the user writes `sh -c "…"`.
    words = _words(shlex.split(value) if isinstance(value, str) else value, base)
    if not words or os.sep not in words[0]:
        return words
    return str(_path(words[0], base)), *words[1:]


def _duration(value: object, base: Path) -> str:
    parse_duration(text := _text(value, base))
    return text


def _duration_or_empty(value: object, base: Path) -> str:
    return _duration(value, base) if value else _text(value, base)


def _hours(value: object, base: Path) -> str:
    parse_hours(text := _text(value, base))
    return text


def _number(value: object, _base: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not 0 <= value <= _MOST:
        raise ValueError
    return float(value)


def _size(value: object, base: Path) -> float:
    size = _number(value, base)
    if size * 2**20 < 1:  # less than a byte
        raise ValueError
    return size


def _temperature(value: object, base: Path) -> float:
    if not is_temperature(number := _number(value, base)):
        raise ValueError
    return number


def _host(value: object, base: Path) -> str:
    if any(map(str.isspace, host := _text(value, base))):
        raise ValueError
    return host


def _url(value: object, base: Path) -> str:
    if not _DATABASE_URL.match(url := _text(value, base)):
        raise ValueError
    return url


def _statuses(value: object, base: Path) -> tuple[str, ...]:
    words = _words(value, base)
    if not set(words) <= set(Status):
        raise ValueError
    return words


def _whole(least: int, most: float = math.inf) -> Callable[[object, Path], int]:
    def form(value: object, _base: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        if not least <= value <= most:
            raise ValueError
        return value

    return form


def _flag(value: object, _base: Path) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _one_of(*words: str) -> Callable[[object, Path], str]:
    def form(value: object, base: Path) -> str:
        if (word := _text(value, base)) not in words:
            raise ValueError
        return word

    return form


def _env_flag(text: str) -> object:
    word = text.strip().lower()
    if word not in (*_TRUE_WORDS, *_FALSE_WORDS):
        raise ValueError
    return word in _TRUE_WORDS


def _env_paths(text: str) -> object:
    return [part for part in text.split(os.pathsep) if part]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of values."""

    expected: str  # what an error says that a value must be
    form: Callable[[object, Path], object]  # checks a value and resolves its paths against a folder
    parse: Callable[[str], object] = str  # reads a value from the environment, where everything is text
    secret: bool = False  # whether an error leaves the value out, which may hold a password


_KINDS: Final = {
    "text": _Kind("a string", _text),
    "name": _Kind("a name or a path", _name),
    "file": _Kind("a path", _file),
    "path": _Kind("a path", _path),
    "paths": _Kind("a list of paths", _paths, _env_paths),
    "words": _Kind('a list of strings, e.g. ["-ngl", "99"]', _words, shlex.split),
    "command": _Kind("a command line or a list of words", _command),
    "duration": _Kind('a duration such as "90s", "20m" or "1h30m"', _duration),
    "duration or empty": _Kind('a duration such as "90s", "20m" or "1h30m", or empty', _duration_or_empty),
    "number": _Kind(f"a number from 0 to {_MOST:g}", _number, float),
    "count": _Kind("a whole number of at least 1", _whole(1), int),
    "size": _Kind(f"a number above 0, up to {_MOST:g}", _size, float),
    "temperature": _Kind(f"a number from 0 to {_HOTTEST:g}", _temperature, float),
    "port": _Kind(f"a whole number from 0 to {_HIGHEST_PORT}", _whole(0, _HIGHEST_PORT), int),
    "host": _Kind("an address or a name, without spaces", _host),
    "url": _Kind(
        'an SQLAlchemy URL such as "sqlite:////home/me/autospec.db" or "postgresql+psycopg://me@hub/autospec"',
        _url,
        secret=True,
    ),
    "statuses": _Kind(f"a list of statuses, each one of {', '.join(Status)}", _statuses, shlex.split),
    "flag": _Kind("true or false", _flag, _env_flag),
    "hours": _Kind('hours of the day such as "22:00-07:00"; separate several with commas', _hours),
    "aim": _Kind('"speed" or "energy"', _one_of(*Aim)),
    "trust": _Kind('"proven" or "likely"', _one_of("proven", "likely")),
}


_MODELS: Final = "models"
_EXAMPLE: Final = '[models."qwen3-8b-q4_k_m"]'
# What each key of a section means, for the template and for errors.
MODEL_KEYS: Final = {
    "server_args": "Command-line arguments for every server of this model, after those of server_args.",
    "context_tokens": "Context length of every server of this model.",
    "mmproj": "The projector (mmproj) for images; empty loads none.",
    "lora": "LoRA adapters, each a path or {path = PATH, scale = NUMBER}.",
    "aliases": "More names under which clients and commands find this model.",
}


def _adapters(value: object, base: Path) -> tuple[Adapter, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_adapter(item, base) for item in value)


def _adapter(value: object, base: Path) -> Adapter:
    scale = 1.0
    if isinstance(value, dict):
        if not {"path"} <= set(value) <= {"path", "scale"}:
            raise ValueError
        scale, value = _scale(value.get("scale", 1.0)), value["path"]
    path = _path(value, base)
    # llama-server parts adapters at commas, and the scale from the path at a colon.
    if "," in str(path) or (scale != 1.0 and ":" in str(path)):
        raise ValueError
    return Adapter(path, scale)


def _scale(value: object) -> float:
    # A negative scale takes the adapter's effect away from the model.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def _aliases(value: object, base: Path) -> tuple[str, ...]:
    names = _words(value, base)
    # llama-server parts aliases at commas.
    if not all(name.strip() == name and name and "," not in name for name in names):
        raise ValueError
    return names


_MODEL_KINDS: Final = {
    "server_args": _KINDS["words"],
    "context_tokens": _KINDS["count"],
    "mmproj": _Kind("a path, or empty for none", _file),
    "lora": _Kind(
        'a list of paths without commas, each "a.gguf" or {path = "a.gguf", scale = 0.5} (no colon in that path)',
        _adapters,
    ),
    "aliases": _Kind('a list of names without commas, e.g. ["fast"]', _aliases),
}


def _checked(key: Key, value: object, base: Path, where: str) -> object:
    """The value as `Settings` holds it; `where` names the value in the error."""
    try:
        return _KINDS[key.kind].form(value, base)
    except (TypeError, ValueError, UsageError):
        raise _wrong(key, where, value) from None
    except FileNotFoundError:
        message = f"{where} is relative to the current folder, which was removed: {value}."
        raise SettingsError(message, "Go to another folder, or write the whole path.") from None


def _from_text(key: Key, text: str, base: Path, where: str) -> object:
    try:
        value = _KINDS[key.kind].parse(text)
    except ValueError:
        raise _wrong(key, where, text) from None
    return _checked(key, value, base, where)


def _wrong(key: Key, where: str, value: object) -> SettingsError:
    kind = _KINDS[key.kind]
    given = "" if kind.secret else f", not {value!r}"
    return SettingsError(f"{where} must be {kind.expected}{given}.", key.doc)
