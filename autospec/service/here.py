"""This machine's service: which supervisor, and what it has to run."""

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

# Where a llama-server is put by Homebrew on Apple silicon and on Intel, by MacPorts, and by hand.
_PLACES: Final = {
    "darwin": ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin"),
    "linux": ("/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin"),
}
_SYSTEM: Final = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
# These say where everything else is; a service without them would be another set-up than the one that was installed.
_CARRIED: Final = ("AUTOSPEC_HOME", "AUTOSPEC_CONFIG_FILE")


def service_here(settings: Settings) -> Service:
    """The service as this autospec would install it.

    Args:
        settings: The user's, whose config file the daemon is to read.

    Raises:
        ServiceError: No supervisor is known for this system.
    """
    home = Path.home()
    supervisor = _supervisor(sys.platform, home, os.environ)
    found = shutil.which(settings.llama_server or "llama-server")
    chosen = settings.sources.get("config_file") in ("flag", "environment")
    # A file that was named is given by its absolute path; the default one may come and go.
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
    """Refuse to install for root.

    Raises:
        ServiceError: The user is root.
    """
    if uid != 0:
        return
    user = environ.get("SUDO_USER", "")
    who = f"Say it as {user}, without sudo" if user else "Say it as the user whose models it is to serve"
    raise ServiceError(
        "The service belongs to a user and not to root: it would serve with root's rights, see root's models and settings, "
        "and write files into the caches that no user can change.",
        f"{who}; in a container run `autospec daemon --proxy` under your own supervisor.",
    )


def unseen_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Settings in this shell's environment that the service will not have."""
    return tuple(key.variable for key in KEYS if environ.get(key.variable) and key.variable not in _CARRIED)


def service_path(system: str, home: Path, llama_server: str | None) -> str:
    """``PATH`` for the daemon: the usual folders, after that of the llama-server that is found now.

    Args:
        system: ``darwin`` or ``linux``.
        home: The user's home folder.
        llama_server: Absolute path of the llama-server that is used in this shell, if any.
    """
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
        f"There is no service for {system}, only for macOS (launchd) and Linux (systemd).",
        "Run `autospec daemon --proxy` under your own supervisor.",
    )


def _program(python: Path) -> tuple[str, ...]:
    """The installed program, by whose name supervisors and the user's activity monitor show it, or else the module.

    Links are not followed: that of a virtual environment leads to a Python that knows nothing of autospec.
    """
    script = python.absolute().with_name("autospec")
    if os.access(script, os.X_OK):
        return (str(script),)
    # -P: the working folder is the home folder, and an autospec.py there is not the one.
    return str(python.absolute()), "-P", "-m", "autospec"
