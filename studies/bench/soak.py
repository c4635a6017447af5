"""Mixed traffic through a real proxy for a long time: is a request lost or mixed up, does memory grow, is anything left?

Run: ``python -m studies.bench.soak --model M.gguf [--llama-server PATH] [--minutes 30] [--streams 64]``

It starts `autospec proxy` in a temporary home. Each stream sends one request after another: streamed and whole answers, bodies
of 20 MB, clients that disconnect at every stage or only end their own side, and one that never reads. Meanwhile recommendations change, so that servers
are replaced, and servers are killed with SIGKILL. A grammar forces each answer to repeat its request's own number, so that an
answer of another request is seen. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from autospec.backends.registry import backend_for
from autospec.catalog.scan import scan
from autospec.cells import Cell, PromptType
from autospec.drafting import Drafting, Mode
from autospec.hardware import identify
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.settings import Settings, load_settings
from autospec.store.database import open_store

CHAT = "/v1/chat/completions"
ANSWERED, BROKEN_OFF, LEFT, LOST, MIXED = "answered", "broken off", "client left", "LOST", "MIXED UP"
LARGE_BYTES = 20_000_000
# An answer may wait for a server that starts, behind 63 others, on a machine with two cores. While servers are replaced, up to six
# of them share it: requests were seen that took more than 300 s, on servers that computed all the time.
ANSWER_TIMEOUT_S = 900.0
STARTED_WITHIN_S = 60.0
SETTLED_WITHIN_S = 45.0
ENDED_WITHIN_S = 60.0
NEVER_READS_S = 10.0
# Start and first use: code is imported, pools are filled.
WARM_UP_SHARE = 0.1
RSS_TOLERANCE = 0.10
# Unused servers stop after this time: files and processes are counted while there is none, before and after the traffic.
IDLE_UNLOAD = "5s"
SERVER_ARGS = ("-c", "16384", "-np", "4", "-t", "1")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and for how long."""

    model: Path
    llama_server: str
    seconds: float = 1800.0
    streams: int = 64
    switch_every_s: float = 20.0
    kill_every_s: float = 30.0
    seed: int = 1


@dataclass
class Result:
    """What was seen."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind of client, outcome
    draftings: Counter[str] = field(default_factory=Counter)  # of answers
    first_lost: list[str] = field(default_factory=list)
    slowest_s: float = 0.0  # of all answers
    rss_mib: list[float] = field(default_factory=list)
    # The proxy holds each body until its request is answered, so memory is compared without them.
    bodies_mib: list[float] = field(default_factory=list)
    large_in_flight: int = 0
    rest_mib: list[float] = field(default_factory=list)  # with no request: before and after the traffic
    kills: int = 0
    recommendations: int = 0
    files_before: int = 0
    files_after: int = 0
    children_before: int = 0
    children_after: int = 0
    servers: int = 0
    processes_left: int = 0
    records_left: int = 0
    exit_status: int | None = None
    tracebacks: int = 0

    def number(self, outcome: str) -> int:
        """Requests with an outcome."""
        return sum(count for (_, found), count in self.outcomes.items() if found == outcome)

    def rss_thirds_mib(self) -> tuple[float, float]:
        """Median of the first and of the last third, after the warm-up, without the large bodies in flight."""
        own = [rss - bodies for rss, bodies in zip(self.rss_mib, self.bodies_mib, strict=True)]
        warm = own[int(len(own) * WARM_UP_SHARE) :]
        third = max(1, len(warm) // 3)
        return statistics.median(warm[:third]), statistics.median(warm[-third:])

    def failures(self, *, with_rss: bool = True) -> list[str]:
        """What must not be; without `with_rss` for runs too short for a statement about memory."""
        failed = [f"{self.number(bad)} {bad}" for bad in (LOST, MIXED) if self.number(bad)]
        if not self.number(ANSWERED):
            failed.append("nothing was answered")
        if self.number(BROKEN_OFF) and not self.kills:
            failed.append("answers broke off although no server was killed")
        if self.outcomes_of("500"):
            failed.append("answers with status 500")
        first, last = self.rss_thirds_mib()
        if with_rss and last > first * (1 + RSS_TOLERANCE):
            failed.append(f"memory grew from {first:.0f} to {last:.0f} MiB")
        if self.files_after > self.files_before:
            failed.append(f"{self.files_after - self.files_before} file descriptors more than before")
        if self.children_before or self.children_after:
            failed.append("child processes although nothing was asked")
        if self.processes_left or self.records_left:
            failed.append(f"{self.processes_left} processes and {self.records_left} records left")
        if self.exit_status != 0:
            failed.append(f"the proxy ended with {self.exit_status}")
        if self.tracebacks:
            failed.append(f"{self.tracebacks} tracebacks in the proxy's log")
        return failed

    def outcomes_of(self, word: str) -> int:
        """Requests whose outcome contains a word."""
        return sum(count for (_, found), count in self.outcomes.items() if word in found)

    def lines(self) -> Iterator[str]:
        """The report."""
        first, last = self.rss_thirds_mib()
        yield f"requests sent: {sum(self.outcomes.values())}"
        for outcome in sorted({found for _, found in self.outcomes} | {LOST, MIXED}):
            yield f"  {outcome}: {self.number(outcome)}"
        for (kind, outcome), count in sorted(self.outcomes.items()):
            yield f"    {kind}, {outcome}: {count}"
        yield f"slowest answer: {self.slowest_s:.0f} s"
        yield f"recommendations written: {self.recommendations}; servers killed: {self.kills}; servers seen: {self.servers}"
        yield f"answers by drafting: {', '.join(f'{k} {n}' for k, n in sorted(self.draftings.items()))}"
        yield f"memory of the proxy: {first:.1f} MiB in the first third, {last:.1f} in the last ({100 * (last / first - 1):+.1f} %), "
        yield f"  without large bodies in flight (at most {max(self.bodies_mib):.0f} MiB); with them at most {max(self.rss_mib):.1f}"
        yield f"  with no request: {', then '.join(f'{rss:.1f}' for rss in self.rest_mib)} MiB"
        yield f"file descriptors: {self.files_before} before, {self.files_after} after"
        yield f"child processes: {self.children_before} before, {self.children_after} after"
        yield f"after the end: exit status {self.exit_status}, {self.processes_left} processes, {self.records_left} records"
        yield from self.first_lost


class Traffic:
    """The clients."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession, result: Result, seed: int) -> None:
        self._base_url = base_url
        self._session = session
        self._result = result
        self._seed = seed
        self._numbers = itertools.count(1)
        self._not_reading = asyncio.Semaphore(1)
        # Kinds of clients, and how often each comes.
        self._kinds: dict[str, tuple[Callable[[int, random.Random], Awaitable[str]], int]] = {
            "streamed": (self._streamed, 40),
            "whole": (self._whole, 20),
            "20 MB": (self._large, 4),
            "leaves in its headers": (self._leaves_in_headers, 6),
            "leaves in its body": (self._leaves_in_body, 6),
            "leaves before the first byte": (self._leaves_before_first_byte, 10),
            "leaves in mid-stream": (self._leaves_in_stream, 12),
            "never reads": (self._never_reads, 2),
            "ends its own side": (self._ends_its_side, 6),
        }

    async def stream(self, number: int, over: asyncio.Event) -> None:
        """One request after another until it is over; each kind once at first, as far as there are streams."""
        rng = random.Random(f"{self._seed} {number}")
        names = list(self._kinds)
        kind = names[number % len(names)]
        while not over.is_set():
            ask, _ = self._kinds[kind]
            begun = time.monotonic()
            mine = next(self._numbers)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    outcome = await ask(mine, rng)
            except (TimeoutError, OSError, aiohttp.ClientError, asyncio.IncompleteReadError) as error:
                outcome = LOST
                self._result.first_lost.append(
                    f"request {mine} ({kind}) after {time.monotonic() - begun:.1f} s: {error!r}"
                )
            if outcome == ANSWERED:
                self._result.slowest_s = max(self._result.slowest_s, time.monotonic() - begun)
            self._result.outcomes[kind, outcome] += 1
            kind = rng.choices(names, [weight for _, weight in self._kinds.values()])[0]

    async def _whole(self, number: int, rng: random.Random) -> str:
        words = rng.randint(2, 20)
        return await self._post_whole(number, _body(number, words), words)

    async def _large(self, number: int, rng: random.Random) -> str:
        words = rng.randint(2, 20)
        self._result.large_in_flight += 1
        try:
            # llama-server ignores unknown fields.
            body = _body(number, words) | {"padding": "x" * LARGE_BYTES}
            return await self._post_whole(number, body, words)
        finally:
            self._result.large_in_flight -= 1

    async def _post_whole(self, number: int, body: dict[str, Any], words: int) -> str:
        try:
            content = io.BytesIO(json.dumps(body).encode())  # aiohttp wants large bodies as files
            kind = {"Content-Type": "application/json"}
            async with self._session.post(self._base_url + CHAT, data=content, headers=kind) as answer:
                told = await answer.read()
        except aiohttp.ClientPayloadError:  # the client sees that the answer is incomplete
            return BROKEN_OFF
        if answer.status != 200:
            return _refusal(answer.status, told)
        self._result.draftings[answer.headers["x-autospec-drafting"]] += 1
        return self._compared(number, words, json.loads(told)["choices"][0]["message"]["content"])

    async def _streamed(self, number: int, rng: random.Random) -> str:
        words = rng.randint(2, 40)
        text, ended = "", False
        try:
            async with self._session.post(
                self._base_url + CHAT, json=_body(number, words) | {"stream": True}
            ) as answer:
                if answer.status != 200:
                    return _refusal(answer.status, await answer.read())
                # A stream whose comments began while it waited has no headers of the proxy.
                drafting = answer.headers.get("x-autospec-drafting", "not told, after comments")
                self._result.draftings[drafting] += 1
                async for line in answer.content:
                    if not line.startswith(b"data: "):
                        continue
                    if line.startswith(b"data: [DONE]"):
                        ended = True
                        continue
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        return BROKEN_OFF
                    text += "".join(c["delta"].get("content") or "" for c in event.get("choices", ()))
        except aiohttp.ClientPayloadError:
            return BROKEN_OFF
        if not ended:
            self._result.first_lost.append(f"request {number}: the stream ended without an end: {text!r}")
            return LOST
        return self._compared(number, words, text)

    def _compared(self, number: int, words: int, text: str) -> str:
        if text == _text(number, words):
            return ANSWERED
        self._result.first_lost.append(f"request {number} got {text[:100]!r}")
        return MIXED

    async def _ends_its_side(self, number: int, rng: random.Random) -> str:
        words = rng.randint(2, 20)
        try:
            async with self._connected(_post(_body(number, words)), half_closed=True) as reader:
                head = await reader.readuntil(b"\r\n\r\n")
                while head.startswith(b"HTTP/1.1 100 "):
                    head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                told = await reader.readexactly(int(length[1]) if length else 0)
                if await reader.read(1):
                    self._result.first_lost.append(f"request {number}: something came after the answer")
                    return LOST
        except (asyncio.IncompleteReadError, ConnectionError):
            # As long as no server dies, this may not be.
            return BROKEN_OFF
        status = int(head.split()[1])
        if status != 200:
            return _refusal(status, told)
        return self._compared(number, words, json.loads(told)["choices"][0]["message"]["content"])

    async def _leaves_in_headers(self, number: int, rng: random.Random) -> str:
        sent = _post(_body(number, 5))
        return await self._leave(sent[: rng.randint(1, sent.index(b"\r\n\r\n"))], rng.random() / 10)

    async def _leaves_in_body(self, number: int, rng: random.Random) -> str:
        padding = "x" * rng.choice((10, 100_000, 5_000_000))
        sent = _post(_body(number, 5) | {"padding": padding})
        return await self._leave(
            sent[: rng.randint(sent.index(b"\r\n\r\n") + 4, len(sent) - 1)], rng.random() / 10
        )

    async def _leaves_before_first_byte(self, number: int, rng: random.Random) -> str:
        return await self._leave(_post(_body(number, 40) | {"stream": rng.random() < 0.5}), rng.random() / 5)

    async def _leaves_in_stream(self, number: int, rng: random.Random) -> str:
        async with self._connected(_post(_endless(number, 1000))) as reader:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200"):
                for _ in range(rng.randint(1, 20)):
                    # An error may end the stream before; the connection stays open for two minutes then.
                    if (await reader.read(4096)).endswith(b"0\r\n\r\n") or reader.at_eof():
                        break
        return LEFT

    async def _never_reads(self, number: int, _rng: random.Random) -> str:
        async with self._not_reading, self._connected(_post(_endless(number, 2000))):
            await asyncio.sleep(NEVER_READS_S)
        return LEFT

    async def _leave(self, sent: bytes, after_s: float) -> str:
        async with self._connected(sent):
            await asyncio.sleep(after_s)
        return LEFT

    @contextlib.asynccontextmanager
    async def _connected(
        self, sent: bytes, *, half_closed: bool = False
    ) -> AsyncIterator[asyncio.StreamReader]:
        """A connection on which these bytes were sent, and no more if it is `half_closed`; it is reset at the end."""
        host, _, port = self._base_url.removeprefix("http://").partition(":")
        # Small buffers, so that what is not read soon holds up the sender.
        raw = socket.socket()
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
        try:
            writer.write(sent)
            await writer.drain()
            if half_closed:
                writer.write_eof()
            yield reader
        finally:
            writer.transport.abort()


def _text(number: int, words: int) -> str:
    return f"n{number} " * words


def _body(number: int, words: int) -> dict[str, Any]:
    """A request whose answer repeats its number so often."""
    return _asking(number, f'root ::= "{_text(number, words)}"', 16 * words)


def _endless(number: int, tokens: int) -> dict[str, Any]:
    """A streamed request whose answer repeats its number up to a limit, in large events."""
    more = {"stream": True, "logprobs": True, "top_logprobs": 20}
    return _asking(number, f'root ::= ("n{number} ")+', tokens) | more


def _asking(number: int, grammar: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say the number {number} often."}]
    return {"model": "main", "messages": messages, "grammar": grammar, "max_tokens": tokens, "temperature": 0}


def _post(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _refusal(status: int, content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
        return f"refused, {status} {error.get('code') or error.get('type')}"
    except (ValueError, KeyError, TypeError):
        return f"refused, {status} without a reason"


async def _every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await act()


class Home:
    """The proxy's home, the proxy, and what happens to its servers."""

    def __init__(self, plan: Plan, folder: Path, result: Result) -> None:
        self._folder = folder
        self._result = result
        self._rng = random.Random(plan.seed)
        self._draftings = itertools.cycle(
            Drafting(Mode.NGRAM_MOD, ngram_n=4, n_max=n, n_min=0) for n in range(4, 16)
        )
        self._seen: set[psutil.Process] = set()
        self._servers: set[psutil.Process] = set()
        (folder / "models").mkdir()
        (folder / "models" / "main.gguf").symlink_to(plan.model.resolve())
        (folder / "config.toml").write_text(
            f'model_dirs = ["models"]\nbackend = "llama-server"\nidle_unload = "{IDLE_UNLOAD}"\n'
            f"llama_server = {json.dumps(plan.llama_server)}\nserver_args = {json.dumps(SERVER_ARGS)}\n",
            encoding="utf-8",
        )
        self._environ = {"AUTOSPEC_HOME": str(folder), "HOME": str(folder)}
        self.settings: Settings = load_settings(environ=self._environ)
        self.proxy: psutil.Popen | None = None

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Run the proxy; it gets SIGTERM at the end, and what it leaves is counted."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOSPEC_", "NOTIFY_"))}
        command = [sys.executable, "-m", "autospec", "proxy", "--port", "0"]
        log = self._folder / "proxy.log"
        with log.open("wb") as said:
            self.proxy = psutil.Popen(
                command, env=environ | self._environ, stdout=said, stderr=subprocess.STDOUT
            )
            try:
                yield self._address(log)
            finally:
                self.look()
                self.proxy.send_signal(signal.SIGTERM)
                with contextlib.suppress(psutil.TimeoutExpired):
                    self._result.exit_status = self.proxy.wait(ENDED_WITHIN_S)
                left = [process for process in self._seen if process.is_running()]
                self._result.processes_left = len(left)
                self._result.records_left = len(list((self.settings.state_dir / "launches").glob("*.json")))
                for process in (self.proxy, *left):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        self._result.tracebacks = log.read_text(encoding="utf-8", errors="replace").count("Traceback")

    def _address(self, log: Path) -> str:
        end = time.monotonic() + STARTED_WITHIN_S
        while time.monotonic() < end:
            if found := re.search(r"Serving on (http://\S+)", log.read_text(encoding="utf-8")):
                return found[1]
            time.sleep(0.1)
        raise SystemExit(f"The proxy did not start: {log.read_text(encoding='utf-8')}")

    def look(self) -> tuple[int, int]:
        """The proxy's open files and children now; all its processes are remembered."""
        assert self.proxy is not None
        children = self.proxy.children(recursive=True)
        self._seen.update(children)
        self._servers.update(process for process in children if _is_server(process))
        self._result.servers = len(self._servers)
        return self.proxy.num_fds(), len(children)

    async def alone(self, most_files: int = sys.maxsize) -> tuple[int, int]:
        """As `look`, when all servers have stopped and the connections are closed, or when it takes too long."""
        end = time.monotonic() + SETTLED_WITHIN_S
        while True:
            files, children = self.look()
            if (children == 0 and files <= most_files) or time.monotonic() > end:
                self._result.rest_mib.append(self._rss_mib())
                return files, children
            await asyncio.sleep(0.5)

    async def sample(self) -> None:
        """Note the proxy's memory."""
        assert self.proxy is not None
        self.look()
        self._result.rss_mib.append(self._rss_mib())
        self._result.bodies_mib.append(self._result.large_in_flight * LARGE_BYTES / 2**20)

    def _rss_mib(self) -> float:
        assert self.proxy is not None
        return float(self.proxy.memory_info().rss / 2**20)

    async def kill(self) -> None:
        """Kill one server."""
        assert self.proxy is not None
        servers = [process for process in self.proxy.children(recursive=True) if _is_server(process)]
        if servers:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._rng.choice(servers).kill()
                self._result.kills += 1

    async def recommend(self) -> None:
        """Write a recommendation of another drafting than the last."""
        await asyncio.to_thread(self._recommend, next(self._draftings))
        self._result.recommendations += 1

    def _recommend(self, drafting: Drafting) -> None:
        model, hardware = scan(self.settings).find("main"), identify()
        build = backend_for("llama-server", self.settings).capabilities().build
        found = Recommendation(
            model.name, str(model.path), "llama-server", build.version, PromptType.CHAT, Verdict.ENABLE, drafting, drafting,
            20.0, 60.0, 3.0, (2.0, 4.0), 8, 0.9, "For the soak.", Status.PROVEN,
            time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()), {"settings": list(self.settings.server_args)},
        )  # fmt: skip
        store = open_store(self.settings.storage)
        try:
            cell = Cell(model.ref, PromptType.CHAT, build, hardware, self.settings.server_args)
            store.save_recommendation(found, hardware, cell)
        finally:
            store.close()


def _is_server(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "llama-server" in process.name()
    return False


async def _drive(plan: Plan, home: Home, base_url: str, result: Result) -> None:
    headers = {"x-autospec-prompt-type": "chat"}
    async with aiohttp.ClientSession(
        headers=headers, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        traffic = Traffic(base_url, session, result, plan.seed)
        async with session.post(base_url + CHAT, json=_body(0, 2)) as answer:  # starts the first server
            if answer.status != 200:
                raise SystemExit(f"The first request failed: {await answer.text()}")
            await answer.read()
        result.files_before, result.children_before = await home.alone()
        over = asyncio.Event()
        disturbers = [
            asyncio.create_task(_every(plan.switch_every_s, home.recommend)),
            asyncio.create_task(_every(plan.kill_every_s, home.kill)),
        ]
        sampler = asyncio.create_task(_every(0.5, home.sample))
        clients = asyncio.gather(*(traffic.stream(number, over) for number in range(plan.streams)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(plan.seconds):
                # None of them ends by itself: an error is raised here.
                await asyncio.gather(asyncio.shield(clients), *disturbers, sampler)
        over.set()
        await clients
    result.files_after, result.children_after = await home.alone(result.files_before)


def soak(plan: Plan) -> Result:
    """Run it."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="autospec-soak-") as folder:
        home = Home(plan, Path(folder), result)
        with home.serving() as base_url:
            asyncio.run(_drive(plan, home, base_url, result))
    return result


def main() -> int:
    """Read the command line and print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a small GGUF file")
    parser.add_argument("--llama-server", default=shutil.which("llama-server") or "")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--switch-every", type=float, default=20.0, metavar="S")
    parser.add_argument("--kill-every", type=float, default=30.0, metavar="S")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    plan = Plan(
        asked.model,
        asked.llama_server,
        60 * asked.minutes,
        asked.streams,
        asked.switch_every,
        asked.kill_every,
        asked.seed,
    )
    result = soak(plan)
    print("\n".join(result.lines()))
    failures = result.failures()
    print("\n".join(f"FAILED: {failure}" for failure in failures) or "all well")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
