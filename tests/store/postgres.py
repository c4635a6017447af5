"""A private PostgreSQL for tests: a cluster of its own in a temporary folder, run by a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["cluster"]

_START_S = 60


def _program(name: str) -> str:
    """Debian keeps the server's programs off PATH, one folder for each version."""
    found = shutil.which(name) or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed (apt install postgresql)")
    return found


def _owner() -> str | None:
    """PostgreSQL refuses root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("this is root, and there is no other user to run PostgreSQL as")


@contextmanager
def cluster() -> Iterator[str]:
    """Start one.

    Yields:
        Its URL for SQLAlchemy, up to the database's name, which is ``postgres``.
    """
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    initdb, pg_ctl, owner = _program("initdb"), _program("pg_ctl"), _owner()
    # Its path must be short: the server puts a socket there.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        data, log = str(folder / "data"), str(folder / "log")
        _run([initdb, "-D", data, "-A", "trust", "-U", "tester", "-E", "UTF8", "--no-sync"], owner, folder)
        _run(
            [pg_ctl, "-D", data, "-l", log, "-o", options, "-w", "-t", str(_START_S), "start"], owner, folder
        )
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            _run([pg_ctl, "-D", data, "-m", "immediate", "-w", "stop"], owner, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], owner: str | None, folder: Path) -> None:
    # Into a file: the server inherits the output, and a pipe would stay open as long as it runs.
    said = folder / "said"
    with said.open("ab") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, user=owner, cwd=folder, check=False,
            timeout=_START_S + 30,
        )  # fmt: skip
    assert done.returncode == 0, said.read_text(errors="replace")
