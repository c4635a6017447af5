"""The service of this machine: which supervisor, and what it runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import autospec
from autospec.catalog.folders import places
from autospec.errors import ServiceError
from autospec.files import PRIVACY_HINT, launchd_dir
from autospec.service.definition import DAEMON_ARGUMENTS, Definition, ServiceManager
from autospec.service.launchd import LABEL, Launchd
from autospec.service.lifecycle import Service
from autospec.service.systemd import UNIT, Systemd
from autospec.settings import KEYS, Settings

__all__ = [
    "folder_variables",
    "privacy_warnings",
    "private_paths",
    "refuse_root",
    "service_here",
    "service_path",
    "unseen_variables",
]

# Where Homebrew on Apple silicon, Homebrew on Intel and MacPorts install a llama-server.
_PLACES: Final = {
    "darwin": ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin"),
    "linux": ("/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin"),
}
_SYSTEM: Final = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
# These determine where everything else is, so the service gets them.
_CARRIED: Final = ("AUTOSPEC_HOME", "AUTOSPEC_CONFIG_FILE")
# Where settings, state and models are. The service does not read the shell's profile, so it gets these too.
_FOLDERS: Final = (
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS"),
)
# macOS asks the user before a program may read these, and a background service has no window to ask in.
_PRIVATE: Final = ("Documents", "Desktop", "Downloads", "Library/Mobile Documents", "Library/CloudStorage")


def service_here(settings: Settings) -> Service:
    """The service as this autospec would install it.

    Raises:
        ServiceError: This system has no known supervisor.
    """
    home = Path.home()
    supervisor = _supervisor(sys.platform, home, os.environ)
    found = shutil.which(Path(settings.llama_server or "llama-server").expanduser())
    chosen = settings.sources.get("config_file") in ("flag", "environment")
    # Only a config file that the user chose is passed on.
    config = ("--config", str(settings.config_file.absolute())) if chosen else ()
    home_variable = (("AUTOSPEC_HOME", str(settings.home.absolute())),) if settings.home else ()
    variables = (*home_variable, *folder_variables(os.environ))
    definition = Definition(
        program=(*_program(Path(sys.executable)), *DAEMON_ARGUMENTS, *config),
        home=home,
        log=settings.log_dir / "daemon.log",
        path=service_path(sys.platform, home, found),
        variables=variables,
        version=autospec.__version__,
    )
    return Service(supervisor, definition)


def refuse_root(uid: int, environ: Mapping[str, str]) -> None:
    """Refuse to install the service for root.

    Raises:
        ServiceError: The user is root.
    """
    if uid != 0:
        return
    user = environ.get("SUDO_USER", "")
    who = f"Run this as {user}, without sudo" if user else "Run this as the user whose models it should serve"
    raise ServiceError(
        "The service must not run as root: it would have root's rights, use root's models and settings, "
        "and create cache files that no user can change.",
        f"{who}; in a container, run `autospec daemon --proxy` under your own supervisor.",
    )


def unseen_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Settings in this shell's environment that the service will not get."""
    return tuple(key.variable for key in KEYS if environ.get(key.variable) and key.variable not in _CARRIED)


def folder_variables(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables of this shell that name folders, with absolute paths: supervisors do not expand ``~``."""
    return tuple(
        (name, str(Path(environ[name]).expanduser().absolute())) for name in _FOLDERS if environ.get(name)
    )


def private_paths(paths: Iterable[Path], home: Path) -> tuple[Path, ...]:
    """Those of the paths, with links followed, that macOS keeps from a background service until the user allows it."""
    private = [home.resolve() / name for name in _PRIVATE] + [Path("/Volumes")]
    return tuple(path for path in paths if any(path.resolve().is_relative_to(folder) for folder in private))


def privacy_warnings(
    settings: Settings, definition: Definition, system: str = sys.platform
) -> tuple[str, ...]:
    """What the service could not read on a Mac, one sentence each: its program, its files, folders of models."""
    if system != "darwin":
        return ()
    program = Path(definition.program[0])
    needed = {
        "the program": (program, Path(sys.prefix), Path(autospec.__file__)),
        "autospec's files": (settings.config_file, settings.state_dir),
        "models": tuple(
            place.path
            for place in places(os.environ, definition.home, system, settings.model_dirs)
            if place.path.exists()
        ),
    }
    return tuple(
        f"the service may not be allowed to read {what} in {path}. {PRIVACY_HINT}"
        for what, paths in needed.items()
        for path in private_paths(paths, definition.home)[:1]
    )


def service_path(system: str, home: Path, llama_server: str | None) -> str:
    """``PATH`` for the daemon: the folder of the llama-server found in this shell, then the usual folders."""
    found = (str(Path(llama_server).absolute().parent),) if llama_server else ()
    folders = (*found, str(home / ".local" / "bin"), *_PLACES[system], *_SYSTEM)
    return os.pathsep.join(dict.fromkeys(folders))


def _supervisor(system: str, home: Path, environ: Mapping[str, str]) -> ServiceManager:
    if system == "darwin":
        return Launchd(os.getuid(), home, (launchd_dir() / f"{LABEL}.plist").read_bytes())
    if system == "linux":
        # systemd.unit(5): an XDG_CONFIG_HOME that is not absolute does not count.
        configured = Path(environ.get("XDG_CONFIG_HOME", ""))
        config_home = configured if configured.is_absolute() else home / ".config"
        return Systemd(config_home, (launchd_dir() / UNIT).read_text(encoding="utf-8"))
    raise ServiceError(
        f"The service is not available on {system}, only on macOS (launchd) and Linux (systemd).",
        "Run `autospec daemon --proxy` under your own supervisor.",
    )


def _program(python: Path) -> tuple[str, ...]:
    """The installed program, whose name supervisors and activity monitors show, or else the module."""
    # Links are not followed: a virtual environment's link leads to a Python without autospec.
    script = python.absolute().with_name("autospec")
    if os.access(script, os.X_OK):
        return (str(script),)
    # -P: an autospec.py in the working folder (the home folder) must not be imported.
    return str(python.absolute()), "-P", "-m", "autospec"
