"""The proxy's request handler: access control, the proxy's own endpoints, and everything else to a backend."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

import autospec
from autospec.cells import PromptType
from autospec.errors import AutospecError
from autospec.proxy.access import OPEN_PATHS, Access
from autospec.proxy.api import Endpoints, meant_model, running_model
from autospec.proxy.errors import ProxyProblem, problem_of, problem_response, shape_of
from autospec.proxy.metrics import Metrics, SampleWriter
from autospec.proxy.relay import Relay
from autospec.proxy.request import (
    BodiesInFlight,
    Classify,
    ProxyRequest,
    Refused,
    forced_prompt_type,
    generates,
    parse,
    prompt_size,
    read_body,
    temperature_of,
    wants_off,
)
from autospec.proxy.upstream import Upstream
from autospec.proxy.usage import RequestOutcome, sample_of
from autospec.serving.dispatch import Dispatch, RouteRequest

__all__ = ["Proxy", "Rules"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a proxy allows."""

    access: Access = field(default_factory=Access)
    default_model: str = ""  # for requests that name no model; empty uses a running one
    request_limit_bytes: int = 64 << 20
    log_prompts: bool = False  # write prompts into the log


class Proxy:
    """Answers requests. Create it in a running event loop, and `close` it.

    `serving` makes a context around every forwarded request, and `daemon` returns the daemon's last status (empty without
    one), see `autospec.service.control`.
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
    ) -> None:
        self.in_flight = 0
        self._dispatch = dispatch
        self._rules = rules
        self._bodies = BodiesInFlight(rules.request_limit_bytes)
        self._daemon = daemon
        self._classify = classify
        self._samples = samples
        self._serving = serving
        self._started = time.time()
        self._upstream = Upstream()
        self._metrics = Metrics(lambda: self.in_flight, lambda: samples.lost)
        self._endpoints = Endpoints(dispatch, self._metrics, storage, self._about)
        self._relay = Relay(
            self._upstream,
            dispatch,
            seen=self._seen,
            retried=self._metrics.retried,
            keep_credentials=not rules.access.api_key,
        )

    async def close(self) -> None:
        """Close all connections, after the last request."""
        self._endpoints.close()
        self._upstream.close()

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
        if not response.prepared:
            _allow_origin(request, response)
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
        # A wrong header is refused before the body is read.
        forced, off = forced_prompt_type(request.headers), wants_off(request.headers)
        content = await read_body(request, self._bodies) if request.body_exists else b""
        try:
            return await self._forward(request, path, content, forced, drafting_off=off)
        finally:
            self._bodies.give_back(len(content))

    async def _forward(
        self,
        request: web.BaseRequest,
        path: str,
        content: bytes,
        forced: PromptType | None,
        *,
        drafting_off: bool,
    ) -> web.StreamResponse:
        intake = parse(content, request.headers)
        model = intake.model or (request.query.get("model", "") if request.query_string else "")
        if not model:
            model = self._meant(request.method)
        wanted = self._wanted(path, model, intake, forced, drafting_off=drafting_off)
        if self._rules.log_prompts and intake.document is not None:
            _LOG.info("proxy: %s %s", path, json.dumps(intake.document, ensure_ascii=False))
        self.in_flight += 1
        try:
            with self._serving():
                return await self._relay.answer(request, wanted, intake)
        finally:
            self.in_flight -= 1

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        """Health check without a key: forward it to a running server, never start one, ignore the body."""
        running = running_model(self._dispatch.offered(), self._rules.default_model)
        if running is None or request.method not in ("GET", "HEAD"):
            return web.json_response({"status": "ok"})
        return await self._relay.answer(request, RouteRequest(running), ProxyRequest())

    def _meant(self, method: str) -> str:
        offered = self._dispatch.offered()
        default = self._rules.default_model
        # GET (/props, /slots, the web page) goes to a running model, if there is one.
        looking = method in ("GET", "HEAD")
        return (running_model(offered, default) if looking else None) or meant_model(offered, default)

    def _wanted(
        self, path: str, model: str, intake: ProxyRequest, forced: PromptType | None, *, drafting_off: bool
    ) -> RouteRequest:
        prompt_type = self._prompt_type(path, intake, forced)
        if prompt_type is None or intake.document is None:
            return RouteRequest(model, prompt_type, drafting_off)
        text_bytes, token_ids = prompt_size(intake.document)
        return RouteRequest(
            model,
            prompt_type,
            drafting_off,
            text_bytes=text_bytes,
            token_ids=token_ids,
            temperature=temperature_of(intake.document),
        )

    def _prompt_type(self, path: str, intake: ProxyRequest, forced: PromptType | None) -> PromptType | None:
        if not generates(path) or intake.document is None:
            return None
        if forced is not None:
            return forced
        try:
            return self._classify(intake.document)
        except Exception:  # noqa: BLE001 - logged with its traceback; the prompt type is only a hint
            _LOG.exception("proxy: the classifier failed")
            return None

    def _seen(self, outcome: RequestOutcome) -> None:
        sample = sample_of(outcome)
        self._metrics.forwarded(outcome, sample)
        if sample is not None:
            self._samples.put(sample)
        _LOG.debug(
            "proxy: %s %s %s %s -> %s%s in %.0f ms",
            outcome.path,
            outcome.model,
            outcome.prompt_type or "-",
            outcome.drafting.label,
            outcome.status,
            "" if outcome.complete else " (broken off)",
            outcome.total_ms,
        )

    def _refuse(self, problem: ProxyProblem, path: str) -> web.Response:
        self._metrics.refused(problem.code)
        response = problem_response(problem, shape_of(path))
        if problem.status == 413:
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
    _allow_origin(request, response)
    return response


def _allow_origin(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Let the page read the answer; `Access.refuse` has checked its origin."""
    origin = request.headers.get("Origin")
    if origin is not None and response.status != 403:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
