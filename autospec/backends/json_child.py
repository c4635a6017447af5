"""What a child answers that is asked in JSON: one process, one thread, one request after another. Nothing but Python's own.

The client is `json_http.JsonClient`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

__all__ = ["Route", "serve"]

Route = Callable[[dict[str, Any]], dict[str, Any]]


def serve(host: str, port: int, routes: Mapping[str, Route]) -> None:
    """Answer until killed: ``GET`` of anything says that the process is ready, ``POST`` asks a route.

    Args:
        host: Where to listen.
        port: The same.
        routes: Path → what answers a decoded body. Whatever it raises is told to the client, and the next request is
            waited for.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(HTTPStatus.OK, {"status": "ok"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self._answer(HTTPStatus.OK, routes[self.path](asked))
            except Exception as error:  # noqa: BLE001 - whatever a library raises is the client's to tell
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"})

        def log_message(self, *_: object) -> None:
            """The log is for what goes wrong."""

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
