"""Optuna's own dashboard on a copy of the studies.

optuna-dashboard can rename and delete studies and trials, and cannot be told not to. It therefore gets a copy in memory: what is
changed there is gone when it ends, and trials that are made meanwhile are not in it.
"""

from __future__ import annotations

import importlib
import warnings
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autospec.distribution import install_line
from autospec.errors import AutospecError, NothingKnownError

__all__ = ["copy_of_studies", "server_for"]

# What the values of all studies are.
_VALUE = "speed ratio to off"
# Parts of a cell that get an attribute of their own.
_CELL = ("model", "prompt_type", "backend", "build", "hardware")


def copy_of_studies(url: str) -> tuple[Any, int]:
    """A storage in memory with a copy of every study, and how many there are.

    Each copy says in attributes of its own what it is a study of, beside what autospec keeps with it.

    Raises:
        NothingKnownError: There are no studies.
        StoreError: The storage cannot be used.
    """
    from autospec.report.studies import read_studies  # noqa: PLC0415 - loads Optuna, as the next ones do

    known = read_studies(url)
    if not known:
        raise NothingKnownError("There are no studies yet.", "`autospec tune --model M` creates one.")
    import optuna  # noqa: PLC0415

    from autospec.tuning.study import open_storage  # noqa: PLC0415

    storage, copies = open_storage(url), optuna.storages.InMemoryStorage()
    for study in known:
        optuna.copy_study(from_study_name=study.name, from_storage=storage, to_storage=copies)
        copy = optuna.load_study(study_name=study.name, storage=copies)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            copy.set_metric_names([_VALUE])
        for part in _CELL:
            if study.cell.get(part):
                copy.set_user_attr(part, study.cell[part])
        if (best := study.best) is not None and best.drafting is not None:
            copy.set_user_attr("best drafting", best.drafting.label)
            copy.set_user_attr("best ratio", best.value)
    return copies, len(known)


class _Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing."""


class _Threads(ThreadingMixIn, WSGIServer):
    """A page asks several things at once."""

    daemon_threads = True


def server_for(storage: Any, host: str, port: int) -> WSGIServer:
    """The dashboard's server on a storage, not yet serving.

    Raises:
        AutospecError: optuna-dashboard is not installed, or the port is taken.
    """
    try:
        dashboard = importlib.import_module("optuna_dashboard")
    except ImportError as error:
        raise AutospecError(
            f"Optuna's dashboard is not installed ({error.name}).", install_line("dashboard")
        ) from error
    try:
        return make_server(host, port, dashboard.wsgi(storage), server_class=_Threads, handler_class=_Quiet)
    except OSError as error:
        raise AutospecError(
            f"Port {port} cannot be used: {error.strerror or error}.", "Choose another with --port."
        ) from error
