"""The proxy as a program: the parts put together, a socket, and an end in good order.

From settings to a supervisor that is ready to lend.

The event loop that the proxy runs on: uvloop where it is installed (the extra ``fast``), else asyncio's own.

A byte pipe with nothing else in it took 89-107 µs of processor time per token on asyncio's loop and 49-74 on uvloop's, in
one run on two cores, nearly all of it system calls and the loop around them: this is the floor under every proxy here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from autospec.backends.registry import backend_for
from autospec.cells import Hardware
from autospec.errors import AutospecError, UsageError
from autospec.hardware import identify
from autospec.prompts.classifier import classify
from autospec.proxy.access import Access, check_bind
from autospec.proxy.app import Proxy, Rules
from autospec.proxy.errors import ProxyServer
from autospec.proxy.metrics import SampleWriter
from autospec.proxy.request import Classify
from autospec.recommendations import Recommendation
from autospec.service.proxy_link import ProxyLink
from autospec.serving.config import ProxyConfig, ProxyDependencies
from autospec.serving.dispatch import Dispatch
from autospec.serving.model_registry import ModelRegistry, engines_of, read_offers
from autospec.serving.supervisor import Supervisor
from autospec.serving.threads import in_thread
from autospec.settings import Settings
from autospec.store.database import open_store
from autospec.store.reader import newest_recommendation, read_recommendations

__all__ = [
    "ListeningProxy",
    "listen",
    "loop_name",
    "make_classify",
    "make_dispatch",
    "open_supervisor",
    "rules_for",
    "run",
    "run_on_best_loop",
]


_log = logging.getLogger(__name__)


async def open_supervisor(
    settings: Settings, machine_is_free: Callable[[], Awaitable[object]] | None = None
) -> Supervisor:
    """Probe the backends, scan the disk, read the recommendations. Starts no server yet.

    Args:
        settings: For backends, models, storage and limits.
        machine_is_free: Awaited before each launch.

    Raises:
        AutospecError: Settings that cannot be meant, a backend that was named and is not there, a database that cannot
            be read.
    """
    hardware = await in_thread(identify)
    terms = ProxyConfig.of(settings, hardware)

    def offers() -> ModelRegistry:
        # The backends are probed each time: a build may be replaced while the proxy runs.
        return read_offers(settings, *engines_of(settings, backend_for))

    def save(recommendation: Recommendation, machine: Hardware, cell_key: str) -> None:
        store = open_store(settings.storage)
        try:
            store.save_recommendation(recommendation, machine, cell_key)
        finally:
            store.close()

    sources = ProxyDependencies(
        hardware=hardware,
        offers=offers,
        newest=lambda: newest_recommendation(settings.storage),
        recommendations=lambda: read_recommendations(settings.storage, _log.warning),
        save=save,
        machine_is_free=machine_is_free,
    )
    return await Supervisor.start(terms, sources)


# Answers in flight may end; who asked for a novel has to ask again. A second signal does not wait.
_GRACE_S = 20.0
# Clients reconnect at once when a server restarts: 64 streams and their pages must find room.
_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class ListeningProxy:
    """A proxy that answers.

    Attributes:
        base_url: What clients are pointed at, with ``/v1`` left to them.
        proxy: The handler.
    """

    base_url: str
    proxy: Proxy


async def make_dispatch(
    settings: Settings, machine_is_free: Callable[[], Awaitable[object]] | None = None
) -> Dispatch:
    """What lends servers to the proxy; the one place that chooses it.

    Args:
        settings: For backends, models, storage and limits.
        machine_is_free: Awaited before each launch, see `ProxyLink.machine_is_free`; ``None`` where no daemon can measure.

    Raises:
        AutospecError: There is no way to serve models.
    """
    return await open_supervisor(settings, machine_is_free)


def make_classify() -> Classify:
    """What tells the kind of a prompt; the one place that chooses it."""
    classify({"prompt": "warm up"})  # reads the word lists now and not in the first request
    return lambda _path, document: classify(document).prompt_type


def rules_for(settings: Settings, *, default_model: str = "", log_prompts: bool = False) -> Rules:
    """What the settings allow.

    Args:
        settings: For the keys that begin with ``proxy_``, and the limit.
        default_model: For requests that name none.
        log_prompts: Write prompts into the log.

    Raises:
        UsageError: Others could reach the proxy without a key.
    """
    check_bind(settings.proxy_host, settings.proxy_api_key)
    access = Access(
        api_key=settings.proxy_api_key,
        hosts=frozenset(name.lower() for name in settings.proxy_hosts),
        origins=frozenset(settings.proxy_origins),
    )
    return Rules(access, default_model, int(settings.request_limit_mib * 2**20), log_prompts)


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
    grace_s: float = _GRACE_S,
) -> AsyncIterator[ListeningProxy]:
    """A proxy for as long as the context lasts; leaving it lets requests in flight end.

    Args:
        dispatch: Lends servers; closed by whoever made it.
        rules: From `rules_for`.
        host: Address or name.
        port: 0 takes a free one.
        storage: The database's URL, for recommendations and samples.
        classify: The kind of prompt in a body.
        serving: Made around every forwarded request.
        daemon: What the daemon last said that it does.
        grace_s: How long requests in flight may go on.

    Raises:
        AutospecError: The port is taken, or the address is not this machine's.
    """
    samples = SampleWriter(open_store(storage))
    proxy = Proxy(
        dispatch,
        rules,
        classify=classify,
        storage=storage,
        hardware=identify,
        samples=samples,
        serving=serving,
        daemon=daemon,
    )
    runner = web.ServerRunner(ProxyServer(proxy.handle), shutdown_timeout=grace_s)
    try:
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=_BACKLOG)
        try:
            await site.start()
        except OSError as error:
            raise _cannot_listen(error, host, port) from error
        # What was imported lives as long as the process: searched for garbage, it would hold up streams for milliseconds.
        gc.collect()
        gc.freeze()
        taken = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        yield ListeningProxy(f"http://{shown}:{taken}", proxy)
    finally:
        proxy.stop_events()
        await _close(runner.cleanup, proxy.close, partial(asyncio.to_thread, samples.close))


async def run(
    settings: Settings,
    make_dispatch: Callable[[ProxyLink], Awaitable[Dispatch]],
    rules: Rules,
    *,
    port: int,
    classify: Classify,
    ready: Callable[[str], None],
    ending: Callable[[int], None],
) -> None:
    """Serve until SIGINT or SIGTERM, then end in good order.

    Args:
        settings: For address and storage.
        make_dispatch: Makes what lends servers, inside of the event loop; given the link to the daemon.
        rules: From `rules_for`.
        port: 0 takes a free one.
        classify: The kind of prompt in a body.
        ready: Called with the base URL once clients are answered.
        ending: Called with the number of requests in flight when the end has been asked for.

    Raises:
        AutospecError: It cannot listen, or there is no way to serve models.
    """
    task = asyncio.current_task()
    assert task is not None
    # A daemon that measures hears of every request, and gives the machine back within a second.
    link = ProxyLink(settings.state_dir)
    dispatch = await make_dispatch(link)
    try:
        await link.start()
        with _signals(task) as asked:
            async with listen(
                dispatch,
                rules,
                host=settings.proxy_host,
                port=port,
                storage=settings.storage,
                classify=classify,
                serving=link.serving,
                daemon=lambda: link.daemon,
            ) as listening:
                ready(listening.base_url)
                await asked.wait()
                ending(listening.proxy.in_flight)
    finally:
        await _close(link.close, dispatch.close)


async def _close(*closers: Callable[[], Awaitable[object]]) -> None:
    """Close everything in order; a second signal ends the patience with one, and the rest is closed all the same."""
    for close in closers:
        with contextlib.suppress(asyncio.CancelledError):
            await close()


@contextmanager
def _signals(task: asyncio.Task[None]) -> Iterator[asyncio.Event]:
    """An event that the first signal sets; a second one ends the waiting for requests in flight."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            task.cancel()
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield asked
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _cannot_listen(error: OSError, host: str, port: int) -> AutospecError:
    if error.errno == errno.EADDRINUSE:
        return AutospecError(
            f"Port {port} is taken, perhaps by another autospec proxy.",
            f"Stop that one, or choose another port: --port {port + 1}.",
        )
    if error.errno == errno.EACCES:
        return AutospecError(f"Port {port} needs more rights than yours.", "Choose one above 1023.")
    return UsageError(
        f"Nothing can listen on {host}: {error.strerror or error}.",
        "Use 127.0.0.1, or an address of this machine.",
    )


def loop_name() -> str:
    """``uvloop`` or ``asyncio``."""
    return "asyncio" if _uvloop() is None else "uvloop"


def run_on_best_loop(work: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`."""
    found = _uvloop()
    with asyncio.Runner(loop_factory=None if found is None else found.new_event_loop) as runner:
        runner.run(work)


def _uvloop() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - an extra, and not on every platform
    except ImportError:
        return None
    return uvloop
