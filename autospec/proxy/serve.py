"""The proxy as a program: it opens the supervisor, listens on a socket, and shuts down in order.

It runs on uvloop if that is installed (the extra ``fast``), else on asyncio's own loop. A plain byte pipe took 89-107 µs of
processor time per token on asyncio's loop and 49-74 µs on uvloop's, nearly all of it system calls and the loop itself
(one run on two cores): a proxy cannot cost less.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from autospec.backends.registry import backend_for
from autospec.cells import Aim, Hardware, PromptType
from autospec.errors import AutospecError, UsageError
from autospec.hardware import identify
from autospec.prompts.classifier import classify
from autospec.prompts.request_text import keywords
from autospec.proxy.access import Access, check_bind
from autospec.proxy.actions import AskDaemon, no_daemon
from autospec.proxy.app import Proxy, Rules
from autospec.proxy.http_server import ProxyServer
from autospec.proxy.metrics import SampleWriter
from autospec.proxy.request import Classify
from autospec.recommendations import Recommendation
from autospec.service.control import ask_daemon
from autospec.service.proxy_link import ProxyLink
from autospec.serving.dispatch import Dispatch
from autospec.serving.instance import in_thread
from autospec.serving.model_registry import ModelRegistry, engines_of, read_registry
from autospec.serving.reconciler import ProxyDependencies
from autospec.serving.server_pool import MeasuringDaemon
from autospec.serving.supervisor import Supervisor
from autospec.settings import Settings
from autospec.store.database import Store, open_store
from autospec.store.reader import newest_recommendation, read_recommendations

__all__ = [
    "ListeningProxy",
    "listen",
    "loop_name",
    "open_supervisor",
    "prompt_type_of",
    "rules_for",
    "run",
    "run_on_best_loop",
]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# OPEN_MAX of macOS, which refuses more.
_OPEN_FILES = 10240

# From glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 1 << 20

# How long answers in progress may continue at shutdown; a second signal ends the wait. With the time for the samples and the
# servers it stays below what the daemon gives its proxy (`autospec.service.managers.STOP_WITHIN_S`).
_GRACE_S = 15.0
_SAMPLES_S = 5.0  # likewise for the last samples
# All clients reconnect at once when the proxy restarts: 64 streams and their pages.
_BACKLOG = 512


async def open_supervisor(settings: Settings, daemon: MeasuringDaemon | None = None) -> Supervisor:
    """Probe the backends, scan the disk, read the recommendations. Starts no server yet.

    Raises:
        AutospecError: A setting is invalid, the chosen backend is missing, or the database cannot be read.
    """
    hardware = await in_thread(identify)

    def registry() -> ModelRegistry:
        # Probes the backends each time: a build may be replaced while the proxy runs.
        return read_registry(settings, *engines_of(settings, backend_for))

    def save(recommendation: Recommendation, machine: Hardware, cell_key: str) -> None:
        store = open_store(settings.storage)
        try:
            store.save_recommendation(recommendation, machine, cell_key)
        finally:
            store.close()

    dependencies = ProxyDependencies(
        hardware=hardware,
        registry=registry,
        newest=lambda: newest_recommendation(settings.storage),
        recommendations=lambda: read_recommendations(settings.storage, _log.warning),
        save=save,
        daemon=daemon,
    )
    return await Supervisor.start(settings, dependencies)


@dataclass(frozen=True, slots=True)
class ListeningProxy:
    """A proxy that accepts requests at `base_url`, which does not include ``/v1``."""

    base_url: str
    proxy: Proxy


def prompt_type_of(document: Mapping[str, Any]) -> PromptType:
    """The prompt type of a request's JSON body."""
    return classify(document).prompt_type


def rules_for(settings: Settings, *, default_model: str = "", log_prompts: bool = False) -> Rules:
    """Derive the rules from the settings.

    Args:
        settings: For the keys that begin with ``proxy_``, and the limit.
        default_model: For requests that name no model.
        log_prompts: Write prompts into the log.

    Raises:
        UsageError: Other machines could reach the proxy without a key.
    """
    check_bind(settings.proxy_host, settings.proxy_api_key)
    access = Access(
        api_key=settings.proxy_api_key,
        hosts=frozenset(name.lower() for name in settings.proxy_hosts),
        origins=frozenset(settings.proxy_origins),
    )
    limit_bytes = int(settings.request_limit_mib * 2**20)
    return Rules(access, default_model, limit_bytes, log_prompts, settings.stream_comments)


@asynccontextmanager
async def listen(
    dispatch: Dispatch,
    rules: Rules,
    *,
    host: str,
    port: int,
    storage: str,
    classify: Classify,
    serving: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    daemon: Callable[[], Mapping[str, Any]] = dict,
    ask_daemon: AskDaemon = no_daemon,
    grace_s: float = _GRACE_S,
    aim: Aim = Aim.SPEED,
    store: Store | None = None,
) -> AsyncIterator[ListeningProxy]:
    """Run a `Proxy` on a socket while the context lasts; leaving it lets requests in progress end within `grace_s`.

    `store` is that of `storage` if it is open already; it is closed at the end.

    Raises:
        AutospecError: The port is in use, or the address is not this machine's.
    """
    samples = SampleWriter(store or await _opened(storage))
    proxy = Proxy(
        dispatch,
        rules,
        classify=classify,
        storage=storage,
        samples=samples,
        serving=serving,
        daemon=daemon,
        ask_daemon=ask_daemon,
        aim=aim,
    )
    # aiohttp waits this long for an answer, and then as long again before it cancels the answer (`RequestHandler.shutdown`).
    runner = web.ServerRunner(ProxyServer(proxy.handle, proxy.count_refused), shutdown_timeout=grace_s / 2)
    try:
        await runner.setup()
        try:
            await _site(runner, host, port).start()
        except OSError as error:
            raise _cannot_listen(error, host, port) from error
        # Imported objects live as long as the process; garbage collection over them would stall streams for milliseconds.
        gc.collect()
        gc.freeze()
        taken = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        yield ListeningProxy(f"http://{shown}:{taken}", proxy)
    finally:
        proxy.stop_events()
        await _close(runner.cleanup, proxy.close, partial(_end, samples))


def _site(runner: web.ServerRunner, host: str, port: int) -> web.BaseSite:
    """Where to listen. With ``::`` that is IPv4 too, as for most servers; asyncio's own sockets would leave it out."""
    if host != "::" or not socket.has_dualstack_ipv6():
        return web.TCPSite(runner, host, port, backlog=_BACKLOG)
    both = socket.create_server((host, port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    return web.SockSite(runner, both, backlog=_BACKLOG)


async def run(
    settings: Settings,
    rules: Rules,
    *,
    port: int,
    ready: Callable[[str], None],
    ending: Callable[[int], None],
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, then shut down in order.

    Args:
        settings: For address and storage.
        rules: From `rules_for`.
        port: 0 chooses a free port.
        ready: Called with the base URL when the proxy listens.
        ending: Called with the number of requests in progress after the first signal.

    Raises:
        AutospecError: It cannot listen, or models cannot be served.
    """
    task = asyncio.current_task()
    assert task is not None
    # A measuring daemon is told of every request and frees the machine within a second.
    link = ProxyLink(settings.state_dir)
    keywords()  # read the word lists now and not in the first request
    dispatch = await open_supervisor(settings, link)
    with _signals(task) as asked:
        try:
            await link.start()
            if (store := await _unless(asked, _opened(settings.storage))) is None:
                return
            async with listen(
                dispatch,
                rules,
                host=settings.proxy_host,
                port=port,
                storage=settings.storage,
                classify=prompt_type_of,
                serving=link.serving,
                daemon=lambda: link.daemon,
                ask_daemon=partial(ask_daemon, settings.state_dir),
                aim=dispatch.aim,
                store=store,
            ) as listening:
                ready(listening.base_url)
                await asked.wait()
                ending(listening.proxy.in_flight)
        finally:
            # The link last: without it a daemon takes the machine while servers are still ending.
            await _close(dispatch.close, link.close)


def _opened(storage: str) -> asyncio.Future[Store]:
    """The database, opened in a thread: it may hang, and machines that share it wait for each other where tables are created."""
    return in_thread(partial(open_store, storage), orphaned=lambda store: store.close())


async def _unless(asked: asyncio.Event, work: asyncio.Future[T]) -> T | None:
    """The result of work in a thread; ``None`` if a signal comes first."""
    signalled = asyncio.ensure_future(asked.wait())
    either: set[asyncio.Future[Any]] = {work, signalled}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()
        if not work.done():
            work.cancel()
    return None if work.cancelled() else work.result()


async def _end(samples: SampleWriter) -> None:
    """Wait for the last samples, unless their database hangs."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_SAMPLES_S):
            await in_thread(samples.close)


async def _close(*closers: Callable[[], Awaitable[object]]) -> None:
    """Close everything in order; a second signal cancels one closer, the others still run."""
    for close in closers:
        with contextlib.suppress(asyncio.CancelledError):
            await close()


@contextmanager
def _signals(task: asyncio.Task[None]) -> Iterator[asyncio.Event]:
    """An event that the first signal sets; each further SIGINT or SIGTERM cancels what the task waits for.

    Leave it last: afterwards these signals end the program at once, with servers that still run.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            task.cancel()
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
        # A terminal that is closed may send it twice, for itself and by its shell: until the end it asks, and no more.
        loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        yield asked
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _cannot_listen(error: OSError, host: str, port: int) -> AutospecError:
    if error.errno == errno.EADDRINUSE:
        return AutospecError(
            f"Port {port} is in use, perhaps by another autospec proxy.",
            f"Stop that program, or choose another port: --port {port + 1}.",
        )
    if error.errno == errno.EACCES:
        return AutospecError(
            f"This user has no permission to listen on port {port}.", "Choose a port above 1023."
        )
    return UsageError(
        f"The proxy cannot listen on {host}: {error.strerror or error}.",
        "Use 127.0.0.1 or another address of this machine.",
    )


def loop_name() -> str:
    """``uvloop`` or ``asyncio``."""
    return "asyncio" if _uvloop() is None else "uvloop"


def run_on_best_loop(work: Coroutine[Any, Any, None]) -> None:
    """Like `asyncio.run`."""
    _allow_open_files()
    _give_back_memory()
    found = _uvloop()
    with asyncio.Runner(loop_factory=None if found is None else found.new_event_loop) as runner:
        runner.run(work)


def _allow_open_files() -> None:
    """Raise the limit of open files: a request in flight takes two, and macOS gives a process 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _give_back_memory() -> None:
    """Make glibc take large blocks from the system and give them back: bodies of requests of many MB come and go.

    By itself it raises the limit with the first such block that is freed, and keeps later ones in its heap, in pieces.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, or none to be found
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _uvloop() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - optional, and not on every platform
    except ImportError:
        return None
    return uvloop
