"""Ports on the loopback address, and whose process listens there."""

from __future__ import annotations

import socket
from contextlib import suppress

import psutil

__all__ = ["HOST", "family", "free_port", "is_free", "listens"]

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that is free now, chosen by the kernel."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nobody has the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections which have just been closed do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def family(pids: frozenset[int]) -> list[psutil.Process]:
    """The processes of a launch with their children: `llama-server` may be a wrapper script."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            found |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return list(found.values())


def listens(family: list[psutil.Process], port: int) -> bool:
    """Whether it is our process that listens there; true where the system does not tell."""
    for process in family:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.AccessDenied:
            return True
        except psutil.Error:
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return True
    return False
