"""Studies behind Optuna's gRPC proxy: its client, whose every failure is a `StoreError`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage

from autospec.errors import StoreError

__all__ = ["GRPC_READY_S", "open_grpc_studies"]

# A proxy in the same house answers in milliseconds; one that is down should not hold the tune up.
GRPC_READY_S = 10.0
_GRPC_PORT = 13000
_START_IT = (
    "Start it there with optuna.storages.run_grpc_proxy_server, or empty `study_storage` in the config."
)


def open_grpc_studies(url: str, ready_s: float) -> BaseStorage:
    """The proxy's client. It is experimental in Optuna, which says so on every use: once in our words is enough.

    Args:
        url: ``grpc://HOST[:PORT]``.
        ready_s: How long the proxy is waited for.

    Raises:
        StoreError: The proxy does not answer; also from every method of the client, once the proxy has gone away.
    """
    try:
        address = urlsplit(url)
        host, port = address.hostname or "localhost", address.port or _GRPC_PORT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=ready_s)
        import grpc  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise StoreError(
            f"Optuna's gRPC proxy needs a package that is not installed: {error}.",
            "pip install 'autospec[grpc]'.",
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{url} is no address of a gRPC proxy: {error}.", "Write it as grpc://HOST:PORT."
        ) from error
    except ConnectionError as error:
        raise StoreError(f"Optuna's gRPC proxy at {host}:{port} does not answer.", _START_IT) from error
    for name, member in vars(BaseStorage).items():
        # All of Optuna's storage interface, so that no call of it, here or within Optuna, gets past.
        if callable(member) and not name.startswith("_"):
            setattr(storage, name, _plain(getattr(storage, name), grpc.RpcError, f"{host}:{port}"))
    return storage


def _plain(method: Callable[..., Any], failure: type[Exception], where: str) -> Callable[..., Any]:
    """The method with gRPC's errors as a `StoreError`."""

    @functools.wraps(method)
    def guarded(*args: Any, **named: Any) -> Any:
        try:
            return method(*args, **named)
        except failure as error:
            # A failed call is its own error, and tells its status; the class alone promises no such thing.
            code = error.code().name if hasattr(error, "code") else ""
            words = error.details() if hasattr(error, "details") else str(error)
            what = "has gone away" if code == "UNAVAILABLE" else f"failed: {words}"
            raise StoreError(f"Optuna's gRPC proxy at {where} {what}.", _START_IT) from error

    return guarded
