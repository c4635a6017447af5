"""The proxy's request handler: access control, the proxy's own endpoints, and everything else to a backend."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

import autospec
from autospec.cells import Aim, PromptType
from autospec.errors import AutospecError
from autospec.hardware.awake import AwakeForRequests
from autospec.proxy.access import OPEN_PATHS, Access, allow_page, refuse_slot_files
from autospec.proxy.actions import Actions, AskDaemon, no_daemon
from autospec.proxy.api import Endpoints, find_offered, meant_model, running_model
from autospec.proxy.dashboard import LiveFigures
from autospec.proxy.errors import ProxyProblem, problem_of, problem_response, shape_of
from autospec.proxy.metrics import Metrics, SampleWriter
from autospec.proxy.relay import Relay
from autospec.proxy.request import (
    BodiesInFlight,
    Classify,
    ProxyRequest,
    Refused,
    RequestBody,
    answers_of,
    check_name,
    embeds,
    forced_prompt_type,
    generates,
    has_images,
    hears,
    parse,
    prompt_size,
    read_body,
    sets_drafting,
    starts_model,
    temperature_of,
    wants_off,
)
from autospec.proxy.upstream import Upstream
from autospec.proxy.usage import RequestOutcome, label_of, sample_of
from autospec.serving.dispatch import Dispatch, Prompt, PromptFacts, RouteRequest

__all__ = ["Proxy", "Rules"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a proxy allows."""

    access: Access = field(default_factory=Access)
    default_model: str = ""  # for requests that name no model; empty uses a running one
    request_limit_bytes: int = 64 << 20
    log_prompts: bool = False  # write prompts into the log
    comments: bool = True  # to streaming clients whose request waits for a server


# Requests that change nothing (RFC 9110 §9.2.1) read a running server. Monitors, dashboards and browsers (icons, `/.well-known/…`) send
# them for ever, to whatever path, and must not load a model again after each unload. Two kinds of GET start one: llama.cpp's own page,
# which a person opens in a browser, and what the page asks for before a chat, because it may be open still, or in the browser's cache.
# Some monitors ask for HTML, too (Uptime Kuma); only browsers say that they open a page: Chrome, Firefox and Safari by
# Upgrade-Insecure-Requests (since 2015, 2016 and 2017), and by Sec-Fetch-Dest where they trust the address (https, this machine).
_READING = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_PAGES = frozenset({"/", "/index.html"})
_OF_PAGES = frozenset({"/props", "/tools"})
# What dashboards and browsers ask for by themselves, also of an attached server, which may load a model for its first request.
_POLLED = ("/metrics", "/slots", ".ico", ".png", "/robots.txt")


def _may_start(request: web.BaseRequest, path: str) -> bool:
    """True if a request that changes nothing may start a model."""
    if request.method != "GET":
        return False
    return path in _OF_PAGES or (path in _PAGES and _opens_a_page(request.headers))


def _opens_a_page(headers: Mapping[str, str]) -> bool:
    navigates = "Upgrade-Insecure-Requests" in headers or headers.get("Sec-Fetch-Dest") == "document"
    return navigates and "text/html" in headers.get("Accept", "")


def _is_polled(path: str) -> bool:
    return path.endswith(_POLLED) or path.startswith("/.well-known/")


class Proxy:
    """Answers requests. Create it in a running event loop, and `close` it.

    `serving` makes a context around every request that has a server, `daemon` returns the daemon's last message (empty without one), and
    `ask_daemon` asks it something, see `autospec.service.control`.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        rules: Rules,
        *,
        classify: Classify,
        storage: str,
        samples: SampleWriter,
        serving: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        daemon: Callable[[], Mapping[str, Any]] = dict,
        ask_daemon: AskDaemon = no_daemon,
        aim: Aim = Aim.SPEED,
    ) -> None:
        self.in_flight = 0
        self._awake = AwakeForRequests()
        self._dispatch = dispatch
        self._rules = rules
        self._bodies = BodiesInFlight(rules.request_limit_bytes)
        self._daemon = daemon
        self._classify = classify
        self._samples = samples
        self._started = time.time()
        self._upstream = Upstream()
        self._metrics = Metrics(lambda: self.in_flight, lambda: samples.lost, dispatch.status)
        self._live = LiveFigures()
        self._endpoints = Endpoints(
            dispatch,
            self._metrics,
            storage,
            self._about,
            live=self._live,
            actions=Actions(
                dispatch, rules.access, ask_daemon, lambda name: find_offered(dispatch.offered(), name)
            ),
            ask_daemon=ask_daemon,
            aim=aim,
        )
        self._relay = Relay(
            self._upstream,
            dispatch,
            seen=self._seen,
            left=self._left,
            retried=self._metrics.retried,
            refused=self._metrics.refused,
            serving=serving,
            keep_credentials=not rules.access.api_key,
            comments=rules.comments,
        )

    async def close(self) -> None:
        """Close all connections, after the last request."""
        self._endpoints.close()
        self._upstream.close()

    def count_refused(self, code: str) -> None:
        """Count an error that the HTTP server answered by itself."""
        self._metrics.refused(code)

    def stop_events(self) -> None:
        """End the event streams, which never end by themselves."""
        self._endpoints.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; errors are in the format that the client reads."""
        path = request.path
        try:
            response = await self._answer(request, path)
        except Refused as refused:
            response = self._refuse(refused.problem, path)
        except AutospecError as error:
            response = self._refuse(problem_of(error), path)
        except web.RequestPayloadError:
            response = self._refuse(
                ProxyProblem(400, "The body is damaged or incomplete.", "invalid_http"), path
            )
            response.force_close()
        except ConnectionError:
            raise  # the client disconnected
        except Exception:  # noqa: BLE001 - logged with its traceback; the proxy must not end
            _LOG.exception("proxy: unexpected failure on %s %s", request.method, path)
            if request.writer.output_size > 0:
                raise ConnectionError("the answer has begun") from None
            response = self._refuse(
                ProxyProblem(500, "The proxy failed; see its log.", "internal_error"), path
            )
        if not response.prepared and response.status != 403:
            allow_page(request.headers, response.headers)
        return response

    async def _answer(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if (problem := self._rules.access.refuse(request.headers, path, request.method)) is not None:
            raise Refused(problem)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return _preflight(request)
        if request.method == "CONNECT" or path == "*":
            raise Refused(ProxyProblem(405, "This is not a forward proxy.", "method_not_allowed"))
        if (own := await self._endpoints.answer(request, path)) is not None:
            return own
        if path in OPEN_PATHS:
            return await self._health(request)
        if request.method == "POST":
            problem = refuse_slot_files(path, request.raw_path, request.query)
            if problem is not None:
                raise Refused(problem)
        # A wrong header is refused before the body is read.
        forced, off = forced_prompt_type(request.headers), wants_off(request.headers)
        content = await self._content(request)
        try:
            wanted, body = self._read(request, path, content, forced, drafting_off=off)
            return await self._forward(request, wanted, body)
        finally:
            self._bodies.give_back(len(content))

    async def _content(self, request: web.BaseRequest) -> bytes:
        """The body."""
        if not request.body_exists:
            return b""
        try:
            return await read_body(request, self._bodies)
        except asyncio.CancelledError:  # the client disconnected
            self._metrics.left()
            raise

    async def _forward(
        self, request: web.BaseRequest, wanted: RouteRequest, body: RequestBody
    ) -> web.StreamResponse:
        self.in_flight += 1
        self._awake.begin()
        try:
            return await self._relay.answer(request, wanted, body)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._awake.end()

    def _read(
        self,
        request: web.BaseRequest,
        path: str,
        content: bytes,
        forced: PromptType | None,
        *,
        drafting_off: bool,
    ) -> tuple[RouteRequest, RequestBody]:
        """What a request wants, and its body. Only an unread prompt still holds the parsed document."""
        intake = parse(content, request.headers) if request.body_exists else ProxyRequest()
        named = intake.model or (request.query.get("model", "") if request.query_string else "")
        check_name(named)
        model, is_probe = self._model(request, path, named)
        if self._rules.log_prompts and intake.document is not None:
            _LOG.info("proxy: %s %s", path, json.dumps(intake.document, ensure_ascii=False))
        document = intake.document
        if document is None or not generates(path):
            wanted = RouteRequest(
                model,
                drafting_off=drafting_off,
                is_probe=is_probe,
                images=hears(path),
                embeds=embeds(path),
            )
        else:
            wanted = RouteRequest(
                model,
                Prompt(lambda: self._facts(document, forced)),
                drafting_off,
                images=has_images(document),
                temperature=temperature_of(document),
                is_probe=is_probe,
                answers=answers_of(document),
                sets_drafting=sets_drafting(document),
            )
        return wanted, intake.body(path)

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        """Health check without a key: forward it to a running server, never start one, ignore the body."""
        running = running_model(self._dispatch.offered(), self._rules.default_model)
        if running is None or request.method not in ("GET", "HEAD"):
            return web.json_response({"status": "ok"})
        return await self._relay.answer(request, RouteRequest(running, is_probe=True), RequestBody())

    def _model(self, request: web.BaseRequest, path: str, named: str) -> tuple[str, bool]:
        """The model that a request is for, and whether it is a probe, which is only for a running one.

        A probe that names none (/props, /slots, the web page) means a running one, if there is one. Requests that need no model are
        probes, too: Ollama's clients ask POST /api/show for each model, and llama.cpp's page POST /v1/streams/lookup.
        """
        default = self._rules.default_model
        reads = request.method in _READING
        if not reads and starts_model(path):
            return named or meant_model(self._dispatch.offered(), default), False
        offered = self._dispatch.offered()
        found = find_offered(offered, named) if named else None
        if named and found is None:
            return named, False  # to be refused by the dispatch
        running = (found.name if found.running else None) if found else running_model(offered, default)
        # An attached server runs already, and has lists and versions of its own.
        is_attached = all(o.backend == "attached" for o in ([found] if found else offered))
        if is_attached and not reads:
            return named or meant_model(offered, default), False
        may_attach = is_attached and request.method == "GET" and not _is_polled(path)
        if running is None and not reads:
            message = f"No server runs that {request.method} {path[:100]} could be for, and it starts none."
            raise Refused(ProxyProblem(404, message, "not_found"))
        if running is None and not may_attach and not _may_start(request, path):
            what = f"{found.name} is not running." if found else "No model is running."
            message = f"{what} The first request to a model starts it."
            raise Refused(ProxyProblem(503, message, "no_model_running"))
        return named or running or meant_model(offered, default), running is not None

    def _facts(self, document: Mapping[str, Any], forced: PromptType | None) -> PromptFacts:
        text_bytes, token_ids = prompt_size(document)
        return PromptFacts(forced or self._prompt_type(document), text_bytes, token_ids)

    def _prompt_type(self, document: Mapping[str, Any]) -> PromptType | None:
        try:
            return self._classify(document)
        except Exception:  # noqa: BLE001 - logged with its traceback; the prompt type is only a hint
            _LOG.exception("proxy: the classifier failed")
            return None

    def _seen(self, outcome: RequestOutcome) -> None:
        sample = sample_of(outcome)
        self._metrics.forwarded(outcome, sample)
        if sample is not None:
            self._samples.put(sample)
            self._live.add(sample)
        _LOG.debug(
            "proxy: %s %s %s %s -> %s%s in %.0f ms",
            outcome.path,
            outcome.model,
            outcome.prompt_type or "-",
            label_of(outcome.drafting),
            outcome.status,
            "" if outcome.complete else " (broken off)",
            outcome.total_ms,
        )

    def _left(self, wanted: RouteRequest, waited_s: float) -> None:
        found = None
        with suppress(AutospecError):
            found = find_offered(self._dispatch.offered(), wanted.model)
        self._metrics.left(found.name if found else "", waited_s, is_probe=wanted.is_probe)

    def _refuse(self, problem: ProxyProblem, path: str) -> web.Response:
        self._metrics.refused(problem.code)
        response = problem_response(problem, shape_of(path))
        if problem.status in (408, 413):  # the rest of the body is not wanted
            response.force_close()
        return response

    def _about(self) -> Mapping[str, Any]:
        return {
            "version": autospec.__version__,
            "started_at": self._started,
            "uptime_s": round(time.time() - self._started, 1),
            "in_flight": self.in_flight,
            "default_model": self._rules.default_model or None,
            "samples_written": self._samples.written,
            "samples_lost": self._samples.lost,
            "daemon": dict(self._daemon()) or None,
        }


def _preflight(request: web.BaseRequest) -> web.Response:
    """Answer a browser's preflight request (CORS)."""
    response = web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
            "Access-Control-Max-Age": "600",
        },
    )
    allow_page(request.headers, response.headers)
    return response
