"""The proxy's own endpoints: ``/autospec/…`` and the merged list of models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from autospec.cells import Hardware, PromptType
from autospec.proxy.changes import recommendation_events
from autospec.proxy.dispatch import Dispatch
from autospec.proxy.intake import Refused
from autospec.proxy.metrics import CONTENT_TYPE, Metrics
from autospec.proxy.models import find_offered, model_document, models_document
from autospec.proxy.problems import Problem
from autospec.report.selection import Question, select
from autospec.store.reader import read_recommendations

__all__ = ["Endpoints"]

_OWN = "/autospec/"
_MODELS = ("/v1/models", "/models")
# Each listener polls the database's files; more of them are a mistake in somebody's page.
_MOST_LISTENERS = 32


class Endpoints:
    """Answers what is not for a backend.

    Args:
        dispatch: For models, status and plan.
        metrics: For ``/autospec/metrics``.
        storage: The database's URL.
        hardware: This machine, worked out at the first use: it asks the system.
        about: Facts for the status that only the proxy knows.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        metrics: Metrics,
        storage: str,
        hardware: Callable[[], Hardware],
        about: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._dispatch = dispatch
        self._metrics = metrics
        self._storage = storage
        self._hardware = hardware
        self._about = about
        self._closing = asyncio.Event()
        self._listeners = 0

    def close(self) -> None:
        """End the event streams."""
        self._closing.set()

    async def answer(self, request: web.BaseRequest, path: str) -> web.StreamResponse | None:
        """The answer, or ``None`` where the path is a backend's.

        Raises:
            AutospecError: Nothing is known, the database cannot be read, and so on.
            Refused: A path or a method that is not there.
        """
        is_models = path in _MODELS or path.startswith(tuple(f"{p}/" for p in _MODELS))
        if request.method not in ("GET", "HEAD"):
            if path.startswith(_OWN):
                raise Refused(Problem(405, f"{path} can only be read: use GET.", "method_not_allowed"))
            return None  # POST /models/load and the like are a router's
        if is_models:
            return self._models(path)
        if not path.startswith(_OWN):
            return None
        match path.removeprefix(_OWN).rstrip("/"):
            case "metrics":
                return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})
            case "v1/recommendations":
                return await self._recommendations(request.query)
            case "v1/status":
                return _json({"schema": 1, "proxy": dict(self._about()), **self._dispatch.status()})
            case "v1/plan":
                return _json(self._dispatch.plan())
            case "v1/events":
                return await self._events(request)
            case _:
                raise Refused(
                    Problem(
                        404,
                        f"There is no {path}. There are /autospec/v1/status, plan, recommendations, events "
                        "and /autospec/metrics.",
                        "not_found",
                    )
                )

    def _models(self, path: str) -> web.Response:
        offered = self._dispatch.offered()
        if path in _MODELS:
            return _json(models_document(offered))
        name = unquote(path.removeprefix("/v1").removeprefix("/models/"))
        found = find_offered(offered, name)
        if found is None:
            names = ", ".join(o.name for o in offered) or "none"
            message = f"There is no model {name[:200]!r}. The models here are: {names}."
            raise Refused(Problem(404, message, "model_not_found", "model"))
        return _json(model_document(found))

    async def _recommendations(self, query: Mapping[str, str]) -> web.Response:
        unknown = sorted(set(query) - {"model", "prompt_type", "backend"})
        if unknown:
            message = f"There is no parameter {unknown[0][:100]!r}: use model, prompt_type or backend."
            raise Refused(Problem(400, message, "invalid_parameter", unknown[0][:100]))
        text = query.get("prompt_type", "")
        try:
            prompt_type = PromptType(text) if text else None
        except ValueError:
            message = f"prompt_type is one of {', '.join(PromptType)}, not {text[:100]!r}."
            raise Refused(Problem(400, message, "invalid_parameter", "prompt_type")) from None
        question = Question(query.get("model", ""), prompt_type, query.get("backend", ""))

        def work() -> dict[str, Any]:
            stored = read_recommendations(self._storage)
            return select(stored, self._hardware(), question).document()

        return _json(await asyncio.to_thread(work))

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._listeners >= _MOST_LISTENERS:
            message = f"{_MOST_LISTENERS} listeners are connected already; close one."
            raise Refused(Problem(503, message, "too_many_listeners"))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._listeners += 1
        try:
            await response.prepare(request)
            async for part in recommendation_events(self._storage, self._closing):
                await response.write(part)
        finally:
            self._listeners -= 1
        return response


def _json(document: Mapping[str, Any]) -> web.Response:
    return web.Response(
        body=json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n",
        content_type="application/json",
    )
