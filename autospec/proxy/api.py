"""The proxy's own endpoints, ``/autospec/…`` and the list of models, and the choice of a model for requests without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from aiohttp import web
from multidict import CIMultiDict

from autospec.catalog.resolve import ambiguous, answering
from autospec.cells import Aim, PromptType
from autospec.errors import ModelChoiceError, NothingKnownError, StoreError
from autospec.hardware import identify
from autospec.proxy.access import allow_page
from autospec.proxy.actions import ACTIONS, Actions, AskDaemon
from autospec.proxy.dashboard import PAGE_PATHS, LiveFigures, page
from autospec.proxy.errors import ProxyProblem
from autospec.proxy.metrics import CONTENT_TYPE, Metrics, grafana_dashboard
from autospec.proxy.request import Refused
from autospec.recommendations import Recommendation
from autospec.report.selection import Question, select
from autospec.serving.dispatch import Dispatch, Offered
from autospec.serving.instance import in_thread
from autospec.store.reader import newest_recommendation, read_overall, read_recommendations

__all__ = ["Endpoints", "find_offered", "meant_model", "running_model"]

# A tune takes minutes, so two seconds of delay do not matter. Only polled while a client listens.
_POLL_S = 2.0
# Comments keep the connection alive: intermediate proxies close silent ones after 30 to 60 s.
_COMMENT_S = 15.0
# Required by OpenAI's and Anthropic's clients; the catalogue does not know when a model was created.
_EPOCH = "1970-01-01T00:00:00Z"
_OWN = "/autospec/"
T = TypeVar("T")
_MODELS = ("/v1/models", "/models")
_MODELS_BELOW = ("/v1/models/", "/models/")
# Each listener polls the database; more than this is a client's mistake.
_MOST_LISTENERS = 32
# A database that hangs keeps the thread of each read, also of a client that has left: every listener's, and a few more.
_MOST_READS = _MOST_LISTENERS + 8
# Fields of a recommendation in an event: without the evidence, which ``/autospec/v1/recommendations`` has.
_SHORT = frozenset(Recommendation.__dataclass_fields__) - {"evidence", "model_path"}


class _Reads:
    """Reads of the database, in threads; only so many at once."""

    def __init__(self) -> None:
        self._running = 0

    async def run(self, work: Callable[[], T]) -> T:
        """The result of a read; raises `StoreError` if earlier ones hang."""
        if self._running >= _MOST_READS:
            raise StoreError("The database does not answer.", "Try again later.")
        self._running += 1
        read = in_thread(work)
        read.add_done_callback(self._ended)
        return await asyncio.shield(read)  # counted until its thread ends, also if its client has left

    def _ended(self, read: asyncio.Future[Any]) -> None:
        self._running -= 1
        if not read.cancelled():
            read.exception()


async def _recommendation_events(
    storage: str, aim: Aim, closing: asyncio.Event, reads: _Reads
) -> AsyncIterator[bytes]:
    """Server-sent events until `closing` is set: first all recommendations of an aim, then every change."""
    known: dict[str, dict[str, Any]] = {}
    newest = -1
    silent_s = 0.0
    while True:
        try:
            number = await reads.run(partial(newest_recommendation, storage))
            if number != newest:
                stored = await reads.run(partial(read_recommendations, storage))
                now = {s.cell_key: s.recommendation.to_json() for s in stored if s.recommendation.aim is aim}
                changed = [
                    {name: value for name, value in r.items() if name in _SHORT}
                    for key, r in now.items()
                    if known.get(key) != r
                ]
                yield _event("recommendations", {"schema": 1, "changed": changed})
                known, newest, silent_s = now, number, 0.0
        except StoreError as error:
            yield _event("error", {"message": str(error)})
        if silent_s >= _COMMENT_S:
            yield b": nothing new\n\n"
            silent_s = 0.0
        try:
            await asyncio.wait_for(closing.wait(), _POLL_S)
        except TimeoutError:
            silent_s += _POLL_S
        else:
            return


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _models_document(offered: Sequence[Offered]) -> dict[str, Any]:
    """``GET /v1/models``: OpenAI's list, with the additional fields of Anthropic's."""
    data = [_model_document(o) for o in offered]
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def _model_document(offered: Offered) -> dict[str, Any]:
    """``GET /v1/models/ID``."""
    return {
        "id": offered.name,
        "object": "model",
        "created": 0,
        "owned_by": "autospec",
        "type": "model",
        "display_name": offered.name,
        "created_at": _EPOCH,
        "aliases": list(offered.aliases),
        "autospec": {
            "backend": offered.backend,
            "running": [d.to_json() for d in offered.running],
            "size_bytes": offered.size_bytes,
        },
    }


def find_offered(offered: Sequence[Offered], name: str) -> Offered | None:
    """The model that a request with this name gets; ``None`` if there is none.

    Raises:
        ModelChoiceError: Several models match the name.
    """
    found = answering(offered, name, lambda o: (o.name, *o.aliases))
    distinct = {o.fingerprint or o.name: o.name for o in reversed(found)}
    if len(distinct) > 1:
        raise ambiguous(name, reversed(distinct.values()))
    return found[0] if found else None


def running_model(offered: Sequence[Offered], default: str) -> str | None:
    """A running model: the default one, else the one that was used last, else the first; ``None`` if none runs."""
    running = sorted((o for o in offered if o.running), key=lambda o: not o.last_used)
    preferred = None
    if default:
        with suppress(ModelChoiceError):  # requests for the default get this error
            preferred = find_offered(offered, default)
    chosen = preferred if preferred in running else (running[0] if running else None)
    return chosen.name if chosen else None


def meant_model(offered: Sequence[Offered], default: str) -> str:
    """The model for a request that names none: the default, the one that was used last, a running one, or the only one.

    Raises:
        Refused: There are several models, or none.
    """
    if default:
        return default
    if (latest := next((o for o in offered if o.last_used), None)) is not None:
        return latest.name
    if (running := running_model(offered, "")) is not None:
        return running
    if len(offered) == 1:
        return offered[0].name
    if not offered:
        message = "No models were found. `autospec models` shows where autospec looks for them."
        raise Refused(ProxyProblem(404, message, "model_not_found", "model"))
    names = ", ".join(o.name for o in offered)
    message = f"The request names no model, and no model is running. Name one in `model`, or start the proxy with --model. The models here are: {names}."
    raise Refused(ProxyProblem(400, message, "model_required", "model"))


class Endpoints:
    """Answers the requests that are not for a backend; `about` returns the proxy's part of the status.

    None of them counts as traffic: a page that asks for these documents for ever keeps no model loaded and stops no measurement.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        metrics: Metrics,
        storage: str,
        about: Callable[[], Mapping[str, Any]],
        *,
        live: LiveFigures,
        actions: Actions,
        ask_daemon: AskDaemon,
        aim: Aim = Aim.SPEED,
    ) -> None:
        self._dispatch = dispatch
        self._metrics = metrics
        self._storage = storage
        self._aim = aim
        self._about = about
        self._live = live
        self._actions = actions
        self._ask_daemon = ask_daemon
        self._closing = asyncio.Event()
        self._listeners = 0
        self._reads = _Reads()

    def close(self) -> None:
        """End the event streams."""
        self._closing.set()

    async def answer(self, request: web.BaseRequest, path: str) -> web.StreamResponse | None:
        """The answer, or ``None`` if the request is for a backend.

        Raises:
            AutospecError: E.g. the database cannot be read, or holds nothing.
            Refused: An unknown path, method or parameter.
        """
        is_models = path in _MODELS or path.startswith(_MODELS_BELOW)
        if not is_models and not path.startswith(_OWN) and path not in PAGE_PATHS:
            return None
        what = path.removeprefix(_OWN).rstrip("/")
        if request.method == "POST" and what in ACTIONS:
            return _json(await self._actions.answer(request, what))
        if request.method not in ("GET", "HEAD"):
            # Also /models/load and /models/unload of llama.cpp's router, which would be reasons to start the model.
            about = " Its first request starts a model." if is_models else ""
            raise Refused(ProxyProblem(405, f"{path} is read-only: use GET.{about}", "method_not_allowed"))
        if is_models:
            return self._models(path)
        found = page(path)
        found = self._known(what) if found is None else found
        return await self._looked_up(request, path, what) if found is None else found

    def _known(self, what: str) -> web.Response | None:
        """A document from memory; ``None`` if it is none of those."""
        match what:
            case "metrics" | "dashboard":
                return self._monitoring(what)
            case "v1/status":
                return _json({"schema": 1, "proxy": dict(self._about()), **self._dispatch.status()})
            case "v1/plan":
                return _json(self._dispatch.plan())
            case "v1/live":
                return _json(self._live.to_json())
            case _:
                return None

    async def _looked_up(self, request: web.BaseRequest, path: str, what: str) -> web.StreamResponse:
        """A document from the database or from the daemon."""
        match what:
            case "v1/recommendations":
                return await self._recommendations(request.query)
            case "v1/daemon":
                return _json(await self._daemon())
            case "v1/events":
                return await self._events(request)
            case _ if what in ACTIONS:
                message = f"{path} changes something: use POST with a JSON body."
                raise Refused(ProxyProblem(405, message, "method_not_allowed"))
            case _:
                message = (
                    f"There is no {path}. The paths are /autospec/ (a page), /autospec/v1/status, plan, live, daemon, "
                    "recommendations, events, /autospec/metrics and /autospec/dashboard."
                )
                raise Refused(ProxyProblem(404, message, "not_found"))

    def _monitoring(self, what: str) -> web.Response:
        if what == "dashboard":
            return web.Response(text=grafana_dashboard(), content_type="application/json")
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    def _models(self, path: str) -> web.Response:
        offered = self._dispatch.offered()
        name = path.removeprefix("/v1").removeprefix("/models").removeprefix("/")
        if not name:
            return _json(_models_document(offered))
        found = find_offered(offered, name)
        if found is None:
            names = ", ".join(o.name for o in offered) or "none"
            message = f"There is no model {name[:200]!r}. The models here are: {names}."
            raise Refused(ProxyProblem(404, message, "model_not_found", "model"))
        return _json(_model_document(found))

    async def _daemon(self) -> dict[str, Any]:
        """That no daemon runs is an answer and no error: a page asks for ever, and errors are counted."""
        try:
            status = await in_thread(partial(self._ask_daemon, {"ask": "status"}))
        except NothingKnownError as error:
            return {"schema": 1, "daemon": None, "why": str(error)}
        return {"schema": 1, "daemon": status, "why": None}

    async def _recommendations(self, query: Mapping[str, str]) -> web.Response:
        unknown = sorted(set(query) - {"model", "prompt_type", "backend"})
        if unknown:
            message = f"There is no parameter {unknown[0][:100]!r}. The parameters are model, prompt_type and backend."
            raise Refused(ProxyProblem(400, message, "invalid_parameter", unknown[0][:100]))
        text = query.get("prompt_type", "")
        try:
            prompt_type = PromptType(text) if text else None
        except ValueError:
            message = f"prompt_type must be one of {', '.join(PromptType)}, not {text[:100]!r}."
            raise Refused(ProxyProblem(400, message, "invalid_parameter", "prompt_type")) from None
        model = query.get("model", "")
        model = next((o.name for o in self._dispatch.offered() if model in o.aliases), model)
        question = Question(model, prompt_type, query.get("backend", ""), aim=self._aim)

        def work() -> dict[str, Any]:
            stored, overall = read_recommendations(self._storage), read_overall(self._storage)
            return select(stored, identify(), question, overall).document()

        return _json(await self._reads.run(work))

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = CIMultiDict({"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        allow_page(request.headers, headers)  # now, because the stream begins here
        if request.method == "HEAD":
            return web.Response(headers=headers)
        if self._listeners >= _MOST_LISTENERS:
            message = f"{_MOST_LISTENERS} listeners are connected already. Close one."
            raise Refused(ProxyProblem(503, message, "too_many_listeners"))
        response = web.StreamResponse(headers=headers)
        self._listeners += 1
        try:
            await response.prepare(request)
            async for part in _recommendation_events(self._storage, self._aim, self._closing, self._reads):
                await response.write(part)
        finally:
            self._listeners -= 1
        return response


def _json(document: Mapping[str, Any]) -> web.Response:
    return web.Response(
        body=json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n",
        content_type="application/json",
    )
