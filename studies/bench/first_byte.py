"""Where the proxy's time before the first byte goes: ``python studies/bench/first_byte.py [--requests 150] [--repeats 5]``.

One client asks one request after the other, and the proxy notes the processor time of its own thread at each step of a request, up
to the first bytes to the client. Processor time counts only this thread, so other programs delay nothing here, although they
empty the caches. Two tables: requests in close succession, and with the pauses of ``studies/bench/proxy.py`` (10 ms for the prompt,
20 ms per token), after which the code and data of the proxy have to come from memory again.

Client and backend are processes of their own; the backend is the stand-in of ``studies/bench/proxy.py``. A note costs 1 to 2 µs,
which is part of each row. A row that comes before ``sent`` delays the request, one behind ``answer arrives`` its answer; what is
between the two happens while the server works.
"""

# ruff: noqa: SLF001 - the steps that are noted are the proxy's own
from __future__ import annotations

import argparse
import asyncio
import functools
import inspect
import itertools
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from aiohttp.http_writer import StreamWriter

sys.path.insert(0, str(Path(__file__).parents[2]))

from autospec.proxy import app, http_server, relay, upstream
from autospec.proxy.app import Rules
from autospec.proxy.serve import listen, loop_name, prompt_type_of
from studies.bench import proxy as bench
from tests.proxy.harness import LentServer, OneModel

# The first requests fill caches and open the connection.
WARM_UP = 30
FIRST, SENT, ARRIVES, LAST = "request arrives", "sent", "answer arrives", "first bytes sent to the client"
# Each step ends where the function begins (its first name) or returns (its second).
STEPS: tuple[tuple[Any, str, str, str], ...] = (
    (http_server.ClientConnection, "data_received", FIRST, "HTTP parsed"),
    (app.Proxy, "handle", "aiohttp's tasks, request object", ""),
    (app, "read_body", "access, own endpoints", "body read"),
    (app, "parse", "", "JSON parsed"),
    (OneModel, "lease", "what it wants, headers", "server lent"),
    (upstream, "_head", "headers, the way to the connection", "head built"),
    (upstream._BackendConnection, "write", "answer's parser", SENT),
    (upstream._BackendConnection, "data_received", ARRIVES, "answer parsed"),
    (relay._Passage, "_response", "task woken, headers read", "response made"),
    (StreamWriter, "write", "aiohttp's headers", LAST),
)
Notes = list[tuple[str, int]]


def noting(notes: Notes, function: Callable[..., Any], begins: str, returns: str) -> Callable[..., Any]:
    """The function, which notes the processor time when it begins and returns."""

    def note(name: str) -> None:
        if name:
            notes.append((name, time.thread_time_ns()))

    async def awaited(*args: Any, **named: Any) -> Any:
        note(begins)
        result = await function(*args, **named)
        note(returns)
        return result

    def called(*args: Any, **named: Any) -> Any:
        note(begins)
        result = function(*args, **named)
        note(returns)
        return result

    return functools.wraps(function)(awaited if inspect.iscoroutinefunction(function) else called)


async def noted(backend_port: int, requests: int) -> Notes:
    """What the proxy notes while another process asks it."""
    notes: Notes = []
    for owner, name, begins, returns in STEPS:
        setattr(owner, name, noting(notes, getattr(owner, name), begins, returns))
    with tempfile.TemporaryDirectory() as folder:
        async with listen(
            OneModel([LentServer(f"http://127.0.0.1:{backend_port}", build="b11434")]),
            Rules(),
            host="127.0.0.1",
            port=0,
            storage=f"sqlite:///{folder}/notes.db",
            classify=noting(notes, prompt_type_of, "to the prompt", "prompt read"),
        ) as listening:
            port = listening.base_url.rpartition(":")[2]
            client = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "--client", port, "--requests", str(requests)
            )
            assert await client.wait() == 0
    return notes


def ask(port: int, requests: int) -> None:
    """Send requests on one connection, one after the other."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for number in range(requests):
            connection.sendall(bench.REQUEST % number)
            last = b""
            while not last.endswith(bench.END):
                last = (last + connection.recv(65536))[-8:]


def steps_us(notes: Notes) -> dict[str, list[float]]:
    """The time of each step, and of its way: of each request in turn."""
    found: dict[str, list[float]] = defaultdict(list)
    numbers = [number for number, (name, _) in enumerate(notes) if name == FIRST]
    for begin, end in zip(numbers[WARM_UP:], [*numbers[WARM_UP + 1 :], None], strict=False):
        request = notes[begin:end]
        seen = {FIRST: request[0][1]}
        for (_, before_ns), (name, now_ns) in itertools.pairwise(request):
            if name in seen:  # a later part of the request or of its answer
                continue
            seen[name] = now_ns
            found[name].append((now_ns - before_ns) / 1000)
            if name == LAST:
                break
        if LAST in seen:  # else the whole answer came at once
            found["= before the server gets it"].append((seen[SENT] - seen[FIRST]) / 1000)
            found["= before the client gets it"].append((seen[LAST] - seen[ARRIVES]) / 1000)
    return found


def table(requests: int, repeats: int, *, pauses: bool) -> None:
    """Print the median of each step, and the smallest and largest of the repeats."""
    pace = {} if pauses else {"BENCH_PROMPT_MS": "0", "BENCH_INTERVAL_MS": "1"}
    results: dict[str, list[float]] = {}
    with mock.patch.dict(os.environ, {"BENCH_TOKENS": "1", **pace}), bench.child("--stand-in") as (port, _):
        for _ in range(repeats):
            for name, values in run_here(port, requests).items():
                results.setdefault(name, []).append(statistics.median(values))
    print(f"\n| {'with pauses' if pauses else 'in close succession'} | µs of processor time |\n|---|---:|")
    for name, medians in results.items():
        print(f"| {name} | {bench.spread(medians, '.0f')} |")


def run_here(port: int, requests: int) -> dict[str, list[float]]:
    """The steps of one repeat."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, *_ in STEPS]
    notes: Notes = []

    async def work() -> None:
        notes.extend(await noted(port, requests + WARM_UP))

    try:
        bench.run_on(loop_name(), work())
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
    return steps_us(notes)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=150, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        ask(args.client, args.requests)
        return
    print(f"On {loop_name()}.")
    for pauses in (False, True):
        table(args.requests, args.repeats, pauses=pauses)


if __name__ == "__main__":
    main()
