"""The proxy's cost and gain: ``python studies/bench/proxy.py [--seconds 8] [--repeats 5] [--mixed MODEL]``.

**Overhead**, compared with direct requests to the same backend, in alternating blocks of one run. The backend is a stand-in that
streams tokens at a fixed pace without computing, so that no model hides the proxy. The output is the time from sending a request
to its first byte, direct and through the proxy, at 1, 8 and 64 streams, with the differences of the quantiles; and the proxy
process's processor time per streamed token. A pipe that does not read the bytes shows the minimum of any proxy on this event
loop and machine. ``--floors`` adds two servers that only relay (`studies/bench/floors.py`): aiohttp's, and a bare one.

The proxy is measured twice: with its own HTTP client, and with aiohttp's in its place (``--client`` chooses one). The second
table has the ratios of the two. Every figure is the median of the repeats, with the smallest and the largest; only p99 is
computed from the requests of all repeats together, because one block has too few.

**Gain** (``--mixed``): tokens per second of the suite's prove prompts through the proxy, each with the drafting recommended for
its type, compared with every single recommended drafting, and off, on servers asked directly. Needs a tuned model.

An answer has 25 tokens, a short one; ``BENCH_TOKENS=150`` spreads the cost of a request over a longer one.

Clients keep their connections, like SDKs. Client, proxy and backend are three processes on the same machine.
"""

# ruff: noqa: E402 - the lending stand-in of the tests is found by the path that is set first
from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from autospec.backends.protocol import LaunchSettings
from autospec.backends.registry import backend_for
from autospec.catalog.scan import scan
from autospec.drafting import OFF
from autospec.hardware import identify
from autospec.prompts.suite import Half, Prompt, load_suite
from autospec.proxy.app import Rules
from autospec.proxy.serve import (
    listen,
    loop_name,
    prompt_type_of,
    rules_for,
    run,
    run_on_best_loop,
)
from autospec.report.selection import Question, select
from autospec.settings import load_settings
from autospec.store.reader import read_recommendations
from studies.bench.aiohttp_upstream import AiohttpUpstream
from studies.bench.floors import FLOORS
from studies.bench.pipe import pipe
from tests.proxy.harness import LentServer, OneModel

STREAMS = (1, 8, 64)
CLIENTS = ("ours", "aiohttp")
# 50 tokens per second and stream: at 64 streams more than any server on one machine.
TOKEN_INTERVAL_S = float(os.environ.get("BENCH_INTERVAL_MS", "20")) / 1000
TOKENS = int(os.environ.get("BENCH_TOKENS", "25"))
# A small model on a fast machine reads a short prompt in about this time, and the proxy's work meanwhile delays nothing. A
# stand-in that answers at once (BENCH_PROMPT_MS=0) shows more than a client ever waits.
PROMPT_S = float(os.environ.get("BENCH_PROMPT_MS", "10")) / 1000
TOKEN = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" token"}}],"created":1763900000,'
    b'"id":"chatcmpl-0123456789abcdefghijklmnopqrstuv","model":"main","system_fingerprint":"b11434-0123abcd",'
    b'"object":"chat.completion.chunk"}\n\n'
)
# Like a client's requests: different texts, one system prompt.
BODY = (
    json.dumps(
        {
            "model": "main",
            "stream": True,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant. " * 20},
                {"role": "user", "content": "NUMBER" + ": write a palindrome in Kotlin, please.\n" * 20},
            ],
        }
    )
    .replace("NUMBER", "%06d")
    .encode()
)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY % 0) + BODY
_NUMBERS = itertools.count(os.getpid() % 1000 * 1000)
END = b"0\r\n\r\n"


async def stand_in() -> None:
    """Stream tokens for every request; prints its port."""
    tail = json.dumps(
        {"timings": {"prompt_n": 9, "prompt_ms": 1.0, "predicted_n": TOKENS, "predicted_ms": 500.0}}
    ).encode()
    last = b"data: " + tail + b"\n\ndata: [DONE]\n\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await asyncio.sleep(PROMPT_S)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                begun = time.perf_counter()
                for number in range(TOKENS):
                    writer.write(b"%x\r\n%s\r\n" % (len(TOKEN), TOKEN))
                    await asyncio.sleep(
                        max(0.0, begun + (number + 1) * TOKEN_INTERVAL_S - time.perf_counter())
                    )
                writer.write(b"%x\r\n%s\r\n" % (len(last), last) + END)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def proxy(backend: str, folder: str, client: str) -> None:
    """The proxy over the stand-in; prints its port."""
    dispatch = OneModel([LentServer(backend, build="b11434")])
    storage = f"sqlite:///{folder}/{client}.db"
    if client == "aiohttp":
        mock.patch("autospec.proxy.app.Upstream", AiohttpUpstream).start()
    async with listen(
        dispatch, Rules(), host="127.0.0.1", port=0, storage=storage, classify=prompt_type_of
    ) as listening:
        print(listening.base_url.rpartition(":")[2], flush=True)
        await asyncio.Event().wait()


async def one_stream(port: int, until: float, first_bytes_ms: list[float]) -> int:
    """Send requests on one connection; return the received tokens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    tokens = 0
    while time.perf_counter() < until:
        begun = time.perf_counter()
        writer.write(REQUEST % next(_NUMBERS))
        received = await reader.readuntil(b"\r\n\r\n")
        part = await reader.read(65536)
        first_bytes_ms.append((time.perf_counter() - begun) * 1000)
        assert received.startswith(b"HTTP/1.1 200"), received
        last = part
        while not last.endswith(END):
            part = await reader.read(65536)
            assert part, "the stream broke"
            last = (last + part)[-8:]
        tokens += TOKENS
    writer.close()
    return tokens


async def block(port: int, streams: int, seconds: float) -> tuple[list[float], int]:
    """All streams for some seconds, with staggered starts."""
    until = time.perf_counter() + seconds
    first_bytes_ms: list[float] = []

    async def later(number: int) -> int:
        await asyncio.sleep(number * TOKENS * TOKEN_INTERVAL_S / streams)
        return await one_stream(port, until, first_bytes_ms)

    tokens = await asyncio.gather(*(later(number) for number in range(streams)))
    return first_bytes_ms, sum(tokens)


@contextlib.contextmanager
def child(*args: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run this file in another process; return its port and process."""
    with subprocess.Popen(
        [sys.executable, __file__, *args],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline()), psutil.Process(running.pid)
        finally:
            running.terminate()


def cpu_s(process: psutil.Process) -> float:
    """Processor time of all threads so far."""
    tasks = Path(f"/proc/{process.pid}/task")
    if tasks.exists():
        # Nanoseconds. psutil's times have steps of 10 ms: a quarter of what a block of one stream takes.
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


def quantile(values: list[float], q: float) -> float:
    """By linear interpolation."""
    return statistics.quantiles(values, n=1000, method="inclusive")[round(q * 1000) - 1]


@dataclass(frozen=True, slots=True)
class Way:
    """How the clients reach the backend."""

    port: int
    process: psutil.Process | None  # between clients and backend


@dataclass(frozen=True, slots=True)
class Block:
    """The results of one way's requests in one repeat."""

    first_bytes_ms: list[float]
    cpu_per_token_us: float  # of the process in between, 0 without one

    @property
    def p50_ms(self) -> float:
        """The median time to the first byte."""
        return statistics.median(self.first_bytes_ms)


def run_block(way: Way, streams: int, seconds: float) -> Block:
    """Measure one way once."""
    before_s = cpu_s(way.process) if way.process else 0.0
    first_bytes_ms, tokens = asyncio.run(block(way.port, streams, seconds))
    spent_s = cpu_s(way.process) - before_s if way.process else 0.0
    return Block(first_bytes_ms, 1e6 * spent_s / tokens)


# The blocks of each way, in the order of the repeats.
Blocks = dict[str, list[Block]]


def p99_ms(blocks: Sequence[Block]) -> float:
    """Of the requests of all blocks."""
    return quantile([value for one in blocks for value in one.first_bytes_ms], 0.99)


def added_p50_ms(blocks: Blocks, way: str) -> list[float]:
    """By repeat, compared with the direct requests of the same repeat."""
    return [one.p50_ms - direct.p50_ms for one, direct in zip(blocks[way], blocks["direct"], strict=True)]


def cpu_us(blocks: Blocks, way: str) -> list[float]:
    """Processor time per token, by repeat."""
    return [one.cpu_per_token_us for one in blocks[way]]


def ratio(first: Sequence[float], second: Sequence[float]) -> str:
    """Of the values of the same repeats."""
    return spread([a / b for a, b in zip(first, second, strict=True)], ".2f")


def spread(values: Sequence[float], form: str) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


@contextlib.contextmanager
def open_ways(loop: str, clients: Sequence[str], floors: Sequence[str] = ()) -> Iterator[dict[str, Way]]:
    """Start the backend, the pipe, the floors, and a proxy for each client."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        backend, _ = stack.enter_context(child("--stand-in"))
        ways = {"direct": Way(backend, None)}
        ways["pipe"] = Way(*stack.enter_context(child("--loop", loop, "--pipe", str(backend))))
        for floor in floors:
            command = ("--loop", loop, "--floor", floor, f"http://127.0.0.1:{backend}")
            ways[floor] = Way(*stack.enter_context(child(*command)))
        for client in clients:
            command = ("--loop", loop, "--proxy", f"http://127.0.0.1:{backend}", folder, client)
            ways[client] = Way(*stack.enter_context(child(*command)))
        for way in ways.values():
            run_block(way, 2, 1.0)  # warm up
        yield ways


def overhead(
    seconds: float,
    repeats: int,
    loop: str,
    numbers: Sequence[int],
    clients: Sequence[str],
    *,
    floors: Sequence[str],
) -> None:
    """Print what the proxy adds, on one event loop."""
    print(f"\n## {loop}\n")
    print(
        "| streams | way | requests | first byte p50, p99 | added p50 | added p99 | CPU per token | ÷ pipe |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    results: dict[int, Blocks] = {}
    with open_ways(loop, clients, floors) as ways:
        for streams in numbers:
            blocks: Blocks = {name: [] for name in ways}
            for number in range(repeats):
                # Forward and back, so that drift affects all alike.
                for name in ways if number % 2 == 0 else reversed(ways):
                    blocks[name].append(run_block(ways[name], streams, seconds))
            for name in ways:
                print(f"| {streams} | {name} | {_figures(blocks, name)} |", flush=True)
            results[streams] = blocks
    if len(clients) > 1:
        _compare(results)


def _figures(blocks: Blocks, name: str) -> str:
    first_bytes_ms = [value for one in blocks[name] for value in one.first_bytes_ms]
    p50, p99 = statistics.median(first_bytes_ms), p99_ms(blocks[name])
    figures = f"{len(first_bytes_ms)} | {p50:.2f}, {p99:.2f} ms"
    if name == "direct":
        return f"{figures} | – | – | – | –"
    added_p99 = p99 - p99_ms(blocks["direct"])
    spent, least = cpu_us(blocks, name), cpu_us(blocks, "pipe")
    return (
        f"{figures} | {spread(added_p50_ms(blocks, name), '.2f')} ms | {added_p99:.2f} ms "
        f"| {spread(spent, '.0f')} µs | {ratio(spent, least)}"
    )


def _compare(results: dict[int, Blocks]) -> None:
    print("\nThe proxy's own client ÷ aiohttp's:\n")
    print("| streams | CPU per token | added p50 | added p99 |")
    print("|---:|---:|---:|---:|")
    for streams, blocks in results.items():
        direct = p99_ms(blocks["direct"])
        ours, theirs = (p99_ms(blocks[client]) - direct for client in CLIENTS)
        print(
            f"| {streams} | {ratio(*(cpu_us(blocks, client) for client in CLIENTS))} "
            f"| {ratio(*(added_p50_ms(blocks, client) for client in CLIENTS))} | {ours / theirs:.2f} |"
        )


def mixed(name: str, rounds: int, max_tokens: int, per_type: int) -> None:
    """Print the second table: prompts of all tuned types in turns, through the proxy and with each single setting."""
    settings = load_settings()
    model = scan(settings).find(name)
    known = select(read_recommendations(settings.storage), identify(), Question(model.name)).recommendations
    draftings = list(dict.fromkeys([OFF, *(r.drafting for r in known)]))
    suite = load_suite(Path(settings.suite) if settings.suite else None)
    tuned = [t for t in suite.types() if t in {r.prompt_type for r in known}]
    in_turns = zip(*(suite.of(t, Half.PROVE)[: per_type or None] for t in tuned), strict=False)
    prompts = list(itertools.chain.from_iterable(in_turns))
    for r in known:
        print(f"{r.prompt_type}: {r.verdict}, {r.drafting.label}")
    backend = backend_for(settings.backend or None, settings)
    speeds: dict[str, list[float]] = {}
    for number in range(rounds):
        ways = [*draftings, None]
        for way in ways if number % 2 == 0 else reversed(ways):
            if way is None:
                with child("--serve", model.name) as (port, _):
                    speed = ask_all(f"http://127.0.0.1:{port}", model.name, prompts, max_tokens)
            else:
                config = LaunchSettings(args=settings.server_args, serving=True)
                server = backend.launch(str(model.path), way, config)
                try:
                    speed = ask_all(server.base_url, model.name, prompts, max_tokens)
                finally:
                    server.stop()
            speeds.setdefault("proxy, per type" if way is None else f"always {way.label}", []).append(speed)
    print(f"| {model.name} | tokens/s of the whole mix | rounds |")
    print("|---|---:|---|")
    for label, values in sorted(speeds.items(), key=lambda item: -statistics.mean(item[1])):
        print(f"| {label} | {statistics.mean(values):.1f} | {', '.join(f'{v:.1f}' for v in values)} |")
    through = speeds.pop("proxy, per type")
    best = max(speeds, key=lambda label: statistics.mean(speeds[label]))
    ratios = [ours / theirs for ours, theirs in zip(through, speeds[best], strict=True)]
    print(f"\nProxy ÷ best single setting ({best}), by round: {', '.join(f'{r:.3f}' for r in ratios)}")


def ask_all(base_url: str, model: str, prompts: Sequence[Prompt], max_tokens: int) -> float:
    """Ask every prompt once in sequence; return tokens per second overall."""
    tokens, spent_s = 0, 0.0
    with httpx.Client(base_url=base_url, trust_env=False, timeout=600.0) as client:
        warm = {"model": model, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 8}
        client.post("/v1/chat/completions", json=warm).raise_for_status()
        for prompt in prompts:
            body = {
                "model": model,
                "messages": list(prompt.messages),
                "max_tokens": min(max_tokens, prompt.max_tokens),
                "temperature": 0,
            }
            begun = time.perf_counter()
            answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            spent_s += time.perf_counter() - begun
            tokens += answer["timings"]["predicted_n"]
    return tokens / spent_s


async def serve_model(name: str) -> None:
    """The whole proxy, like `autospec proxy --model`; prints its port."""
    settings = load_settings()
    await run(
        settings,
        rules_for(settings, default_model=name),
        port=0,
        ready=lambda url: print(url.rpartition(":")[2], flush=True),
        ending=lambda _: None,
    )


def run_on(loop: str, work: Coroutine[Any, Any, None]) -> None:
    """Run the proxy on the chosen event loop."""
    if loop == "uvloop":
        run_on_best_loop(work)
    else:
        asyncio.run(work)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each block")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of each kind")
    parser.add_argument(
        "--client", choices=[*CLIENTS, "both"], default="both", help="the proxy's HTTP client"
    )
    parser.add_argument("--streams", type=int, action="append", help=f"at a time; {STREAMS} if left out")
    parser.add_argument("--mixed", metavar="MODEL", help="the gain instead, for a tuned model")
    parser.add_argument("--max-tokens", type=int, default=128, help="of each answer in --mixed")
    parser.add_argument(
        "--per-type", type=int, default=0, help="prompts of each type in --mixed; all if left out"
    )
    parser.add_argument(
        "--loop", choices=["asyncio", "uvloop"], help="the proxy's event loop; all installed if left out"
    )
    parser.add_argument("--stand-in", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--proxy", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--floor", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--floors", action="store_true", help="also servers that only relay")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        if args.stand_in:
            asyncio.run(stand_in())
        elif args.proxy:
            run_on(args.loop, proxy(*args.proxy))
        elif args.pipe:
            run_on(args.loop, pipe(args.pipe))
        elif args.floor:
            run_on(args.loop, FLOORS[args.floor[0]](args.floor[1]))
        elif args.serve:
            run_on_best_loop(serve_model(args.serve))
        elif args.mixed:
            mixed(args.mixed, args.repeats, args.max_tokens, args.per_type)
        else:
            clients = CLIENTS if args.client == "both" else (args.client,)
            print(f"The server reads a prompt in {1000 * PROMPT_S:g} ms and gives {TOKENS} tokens.")
            for loop in [args.loop] if args.loop else dict.fromkeys(["asyncio", loop_name()]):
                overhead(
                    args.seconds,
                    args.repeats,
                    loop,
                    args.streams or STREAMS,
                    clients,
                    floors=tuple(FLOORS) if args.floors else (),
                )
            print(
                "\nCPU per token is all of the proxy's work, requests included, divided by the tokens streamed; "
                "the pipe reads nothing of what passes."
            )


if __name__ == "__main__":
    main()
