"""`autospec` without a command: what is on this machine, and what to type next. It starts nothing and runs no program.

Metadata comes from the cache of an earlier search. Without one, model files are only counted: reading all of them may take
long.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autospec.cli.models import known_here, proven_words
from autospec.formats import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autospec.cli.shell import Shell
    from autospec.recommendations import StoredRecommendation
    from autospec.settings import Settings

__all__ = ["Found", "first_steps", "lines_of", "look"]

# The package of each backend that is one; llama-server is a program.
_PACKAGES = {"embedded": "xllamacpp", "mlx": "mlx_lm", "llama-cpp-python": "llama_cpp"}
# A daemon or proxy on this machine accepts a connection in a few milliseconds.
_CONNECT_S = 0.2
# Models named in a line.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Found:
    """What is here.

    Attributes:
        backends: What can run models, each with its place.
        models: Names of main models that can be tuned.
        drafted: Those of them that a draft fits; ``None`` if metadata was not read.
        proven: What is proven, one clause for each model.
        looked_in: Folders that were searched for models.
        proxy: The address of a running proxy; empty if none answers.
        daemon: Whether a daemon runs.
        service: Whether the service is installed.
        config_file: The config file, whether it exists or not.
    """

    backends: tuple[str, ...]
    models: tuple[str, ...]
    drafted: tuple[str, ...] | None
    proven: tuple[str, ...]
    looked_in: tuple[Path, ...]
    proxy: str = ""
    daemon: bool = False
    service: bool = False
    config_file: Path = Path()


def first_steps(shell: Shell) -> None:
    """Print what is here and what to type next."""
    for line in lines_of(look(shell)):
        shell.prose(line)


def lines_of(found: Found) -> list[str]:
    """The lines to print, each a sentence or two."""
    lines = [
        "autospec measures whether speculative decoding makes your models faster on this machine.",
        "",
        f"Backends: {', '.join(found.backends)}." if found.backends else "Backends: none is installed.",
        _models(found),
        f"Results: {'; '.join(found.proven)}." if found.proven else "Results: nothing is proven yet.",
        _running(found),
        "",
    ]
    return [*lines, "What to type next:", *(f"  {step}" for step in _next(found))]


def look(shell: Shell) -> Found:
    """Find out what is here.

    Raises:
        SettingsError: The config file or the environment is wrong.
    """
    from autospec.service.control import daemon_listens

    settings = shell.settings
    models, drafted, looked_in = _catalog(shell)
    known = known_here(shell)
    return Found(
        backends=_backends(settings),
        models=models,
        drafted=drafted,
        proven=_proven(known),
        looked_in=looked_in,
        proxy=_proxy(settings),
        daemon=daemon_listens(settings.state_dir),
        service=_service(settings),
        config_file=settings.config_file,
    )


def _models(found: Found) -> str:
    if not found.models:
        folders = ", ".join(map(str, found.looked_in))
        return f"Models: none found in {folders}."
    names = ", ".join(found.models[:_NAMED])
    more = len(found.models) - _NAMED
    text = f"Models: {len(found.models)} ({names}{f' and {more} more' if more > 0 else ''})"
    if found.drafted is None:
        return f"{text}, not read yet; `autospec models` reads them and finds the drafts that fit."
    return f"{text}; a draft fits {len(found.drafted)} of them."


def _running(found: Found) -> str:
    proxy = f"the proxy at {found.proxy}" if found.proxy else "no proxy"
    daemon = "the daemon" if found.daemon else "no daemon"
    service = ", and the service is installed" if found.service else ""
    return f"Running: {proxy} and {daemon}{service}."


def _next(found: Found) -> list[str]:
    """Commands, the most useful one first, each with a remark that a shell takes for a comment."""
    steps = []
    if not found.backends:
        steps.append(("pip install xllamacpp", "or: brew install llama.cpp"))
    if not found.models:
        steps.append(("export AUTOSPEC_MODEL_DIRS=/your/models", "or download a model with LM Studio"))
    if found.backends and found.models:
        if found.proven:
            steps.append(("autospec recommend", "what to run"))
            if not found.proxy:
                steps.append(("autospec proxy", "serve your models with it"))
        steps.append(("autospec tune", "choose a model from a list and measure it"))
    steps += [("autospec doctor", "what is missing, and how to fix it"), ("autospec --help", "all commands")]
    lines = [f"{command}   # {remark}" for command, remark in steps]
    if not found.models:
        lines.append(
            f'To use this folder every time (not only in this shell), put model_dirs = ["/your/models"] into {found.config_file}.'
        )
    return lines


def _catalog(shell: Shell) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[Path, ...]]:
    """Main models, those that a draft fits (``None`` if nothing was read), and the folders that were searched."""
    from autospec.catalog.scan import CACHE_FILE, model_files, scan

    settings = shell.settings
    if not (settings.cache_dir / CACHE_FILE).exists():
        names, looked_in = model_files(settings)
        return names, None, looked_in
    from autospec.cli.models import count_drafts

    catalog = scan(settings)
    drafts = count_drafts(catalog, settings)
    main = [m for m in catalog.models if m.head is None]
    drafted = tuple(m.name for m in main if drafts.get(m.path))
    return tuple(m.name for m in main), drafted, catalog.looked_in


def _backends(settings: Settings) -> tuple[str, ...]:
    found = []
    program = shutil.which(Path(settings.llama_server or "llama-server").expanduser())
    if program is not None:
        found.append(f"llama-server ({program})")
    for name, package in _PACKAGES.items():
        if importlib.util.find_spec(package) is not None:
            found.append(f"{name} ({package})")
    if settings.attached_url:
        found.append(f"attached ({settings.attached_url})")
    return tuple(found)


def _proven(known: Sequence[StoredRecommendation]) -> tuple[str, ...]:
    names = dict.fromkeys(s.recommendation.model for s in known)
    told = [
        f"{name}: {words.removeprefix('proven: ')}" for name in names if (words := proven_words(known, name))
    ]
    more = len(told) - _NAMED
    return (*told[:_NAMED], f"{counted(more, 'more model')}") if more > 0 else tuple(told)


def _proxy(settings: Settings) -> str:
    """The address of a proxy that answers where the settings put it; only addresses of this machine are asked."""
    from http import HTTPStatus
    from http.client import HTTPConnection, HTTPException

    host = "127.0.0.1" if settings.proxy_host in ("localhost", "0.0.0.0", "::") else settings.proxy_host  # noqa: S104
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ""
    connection = HTTPConnection(host, settings.proxy_port, timeout=_CONNECT_S)
    try:
        connection.request("GET", "/autospec/v1/status")
        status = connection.getresponse().status
    except (OSError, HTTPException):
        return ""
    finally:
        connection.close()
    # Other programs do not have this path; with a key of its own the proxy asks for it.
    ours = status in (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED)
    return f"http://{host}:{settings.proxy_port}/v1" if ours else ""


def _service(settings: Settings) -> bool:
    from autospec.errors import ServiceError
    from autospec.service.lifecycle import service_here

    try:
        return service_here(settings).supervisor.file.exists()
    except ServiceError:  # this system has no supervisor that autospec knows
        return False
