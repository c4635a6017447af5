"""The service of this machine: which supervisor, and what it runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import autospec
from autospec.errors import ServiceError
from autospec.files import launchd_dir
from autospec.service.definition import DAEMON_ARGUMENTS, Definition, ServiceManager
from autospec.service.launchd import LABEL, Launchd
from autospec.service.lifecycle import Service
from autospec.service.systemd import UNIT, Systemd
from autospec.settings import KEYS, Settings

__all__ = ["refuse_root", "service_here", "service_path", "unseen_variables"]

# Where Homebrew on Apple silicon, Homebrew on Intel and MacPorts install a llama-server.
_PLACES: Final = {
    "darwin": ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin"),
    "linux": ("/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin"),
}
_SYSTEM: Final = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
# These determine where everything else is, so the service gets them.
_CARRIED: Final = ("AUTOSPEC_HOME", "AUTOSPEC_CONFIG_FILE")


def service_here(settings: Settings) -> Service:
    """The service as this autospec would install it.

    Raises:
        ServiceError: This system has no known supervisor.
    """
    home = Path.home()
    supervisor = _supervisor(sys.platform, home, os.environ)
    found = shutil.which(settings.llama_server or "llama-server")
    chosen = settings.sources.get("config_file") in ("flag", "environment")
    # Only a config file that the user chose is passed on.
    config = ("--config", str(settings.config_file.absolute())) if chosen else ()
    home_variable = (("AUTOSPEC_HOME", str(settings.home.absolute())),) if settings.home else ()
    definition = Definition(
        program=(*_program(Path(sys.executable)), *DAEMON_ARGUMENTS, *config),
        home=home,
        log=settings.log_dir / "daemon.log",
        path=service_path(sys.platform, home, found),
        variables=home_variable,
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
