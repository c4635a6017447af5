"""What a person may do from the dashboard, or with curl: switch a model's drafting off or on, tune it now, unload it.

A web page elsewhere must not be able to. `Access.refuse` has already refused foreign origins; here a browser has to say in
addition that the request comes from the proxy's own page, and the body has to be JSON, which no form can send.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from aiohttp import web

from autospec.errors import NothingKnownError, OverloadedError
from autospec.proxy.access import Access, refuse_action
from autospec.proxy.errors import ProxyProblem
from autospec.proxy.request import BodiesInFlight, Refused, check_name, read_body
from autospec.serving.dispatch import Dispatch, Offered
from autospec.serving.instance import in_thread

__all__ = ["ACTIONS", "Actions", "AskDaemon", "no_daemon"]

ACTIONS: Final = frozenset({"v1/drafting", "v1/tune", "v1/unload"})
# A model's name and a word.
_MOST_BYTES: Final = 16 * 1024
_WORDS: Final = {"off": True, "recommended": False}

AskDaemon = Callable[[dict[str, Any]], dict[str, Any]]
"""Sends a message to the running daemon and returns its answer; blocks, and raises `NothingKnownError` without a daemon."""


def no_daemon(_message: dict[str, Any]) -> dict[str, Any]:
    """For a proxy that knows of no daemon."""
    raise NothingKnownError("No daemon is running.", "Start it with `autospec daemon`.")


class Actions:
    """Answers POST requests to `ACTIONS`; `find` returns the offered model with a name."""

    def __init__(
        self,
        dispatch: Dispatch,
        access: Access,
        ask_daemon: AskDaemon,
        find: Callable[[str], Offered | None],
    ) -> None:
        self._dispatch = dispatch
        self._access = access
        self._ask_daemon = ask_daemon
        self._find = find

    async def answer(self, request: web.BaseRequest, what: str) -> dict[str, Any]:
        """Do it, and return the document that says what was done.

        Raises:
            Refused: The request comes from another page, or its body is not as it should be.
            AutospecError: It cannot be done.
        """
        if (problem := refuse_action(self._access, request.headers)) is not None:
            raise Refused(problem)
        asked = await _document(request)
        model = _text(asked, "model")
        match what:
            case "v1/drafting":
                done = await self._switch(model, _text(asked, "drafting"))
            case "v1/unload":
                done = await self._unload(model)
            case _:
                done = await self._tune(model)
        return {"schema": 1, **done}

    async def _switch(self, model: str, word: str) -> dict[str, Any]:
        if word not in _WORDS:
            message = f"drafting must be {' or '.join(_WORDS)}, not {word[:100]!r}."
            raise Refused(ProxyProblem(400, message, "invalid_parameter", "drafting"))
        name = await self._dispatch.switch_drafting(model, off=_WORDS[word])
        said = (
            f"Drafting is off for {name} until it is switched on again."
            if _WORDS[word]
            else f"{name} is served with its recommended drafting again."
        )
        return {"model": name, "drafting": word, "said": said}

    async def _unload(self, model: str) -> dict[str, Any]:
        try:
            name, servers = await self._dispatch.unload(model)
        except OverloadedError as error:
            # Not the code of a request that found no server: alerts are made of that.
            raise Refused(ProxyProblem(409, str(error), "in_use")) from None
        said = (
            f"{name} is being unloaded. Its next request starts it again."
            if servers
            else f"{name} is not running."
        )
        return {"model": name, "servers": servers, "said": said}

    async def _tune(self, model: str) -> dict[str, Any]:
        found = self._find(model)
        if found is None:
            raise Refused(
                ProxyProblem(404, f"There is no model {model[:200]!r}.", "model_not_found", "model")
            )
        told = await in_thread(partial(self._ask_daemon, {"ask": "tune", "model": found.name}))
        if told.get("event") != "asked":
            message = "The running daemon is of an older version, which cannot be asked. Restart it."
            raise Refused(ProxyProblem(502, message, "daemon_too_old"))
        said = f"The daemon measures {found.name} next: {told.get('why')}. A request to the proxy stops it."
        return {"model": found.name, "said": said}


async def _document(request: web.BaseRequest) -> Mapping[str, Any]:
    length = request.content_length
    if length is None or length > _MOST_BYTES:
        problem = ProxyProblem(
            413, f"Send a JSON object of at most {_MOST_BYTES} bytes.", "request_too_large"
        )
        raise Refused(problem)
    try:
        document = json.loads(await read_body(request, BodiesInFlight(_MOST_BYTES)))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Refused(ProxyProblem(400, "The body must be a JSON object.", "invalid_json"))
    return document


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Refused(ProxyProblem(400, f"The body must name `{name}` as a text.", "invalid_parameter", name))
    if name == "model":
        check_name(value)
    return value
