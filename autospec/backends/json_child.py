"""The server side of a child that is asked in JSON: one process, one thread, one request after another.

It imports the standard library only. The clients are `json_http.JsonClient` and `token_http.TokenReader`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

__all__ = ["Route", "reading_routes", "serve"]

Route = Callable[[dict[str, Any]], dict[str, Any]]


def serve(host: str, port: int, routes: Mapping[str, Route]) -> None:
    """Answer until killed: any ``GET`` shows that the process is ready, ``POST`` asks a route.

    Args:
        host: Where to listen.
        port: Where to listen.
        routes: Path → function from the decoded body to the answer. The client gets what it raises as an error.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(HTTPStatus.OK, {"status": "ok"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self._answer(HTTPStatus.OK, routes[self.path](asked))
            except Exception as error:  # noqa: BLE001 - the client reports whatever a library raises
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"})

        def log_message(self, *_: object) -> None:
            """Keep requests out of the log."""

        def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
            body = json.dumps(_finite(document)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer((host, port), Handler) as server:
        server.serve_forever()


def _finite(document: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in document.items()}


# (token, its probability among the ten most likely), as `Proposal`.
_Told = tuple[int, float]


def reading_routes(
    evaluate: Callable[[Sequence[int], int], Iterable[_Told]], ends: Callable[[int], bool]
) -> dict[str, Route]:
    """The routes ``/score`` and ``/propose`` of one model.

    Args:
        evaluate: The most likely token after ``ids[first]`` and each later one of ``ids``.
        ends: True for a token that ends a text.
    """

    def score(asked: dict[str, Any]) -> dict[str, Any]:
        """The model's proposal at each token of an answer, given the answer's own tokens before it."""
        prompt, answer = asked["prompt_ids"], asked["answer_ids"]
        return {"proposals": list(evaluate([*prompt, *answer[:-1]], len(prompt) - 1))}

    def propose(asked: dict[str, Any]) -> dict[str, Any]:
        """A greedy continuation."""
        ids = list(asked["ids"])
        proposals: list[_Told] = []
        while len(proposals) < asked["count"]:
            proposals += evaluate(ids, len(ids) - 1)
            ids.append(proposals[-1][0])
            if ends(ids[-1]):
                break
        return {"proposals": proposals}

    return {"/score": score, "/propose": propose}
