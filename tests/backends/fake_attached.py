"""Stand-ins for servers that cannot run here, after their documentation: LM Studio, mlx-omni-server, an old llama-server.

Each answers the paths that autospec reads, and drafts, or does not, as its requests say.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# https://lmstudio.ai/docs/developer/rest/endpoints
LM_STUDIO = {
    "/api/v0/models": {
        "object": "list",
        "data": [
            {
                "id": "qwen2.5-7b-instruct",
                "type": "llm",
                "compatibility_type": "gguf",
                "state": "loaded",
            },
            {
                "id": "qwen2.5-0.5b-instruct",
                "type": "llm",
                "compatibility_type": "gguf",
                "state": "not-loaded",
            },
            {"id": "nomic-embed", "type": "embeddings", "state": "not-loaded"},
        ],
    },
    "/v1/models": {"data": [{"id": "qwen2.5-7b-instruct"}]},
}
# mlx_omni_server/main.py and chat/openai/router.py, 0.5.3
MLX_OMNI = {"/openapi.json": {"info": {"title": "MLX Omni Server"}}, "/v1/models": {"data": []}}
# tools/server/README.md of llama.cpp, May 2025
OLD_LLAMA_SERVER = {
    "/props": {
        "default_generation_settings": {"params": {"speculative.n_max": 16, "speculative.p_min": 0.75}},
        "model_path": "/models/main.gguf",
        "build_info": "b5425-abc",
    },
    "/slots": [{"id": 0, "speculative": True}],
}
OTHER = {"/v1/models": {"data": [{"id": "gpt-oss-20b"}]}}


class FakeAttached(ThreadingHTTPServer):
    """One server.

    Attributes:
        pages: What its paths read.
        bodies: Requests that came, with their path and key.
        faults: ``dead-draft``: takes the field and drafts nothing; ``drafts-always``; ``refuses``.
    """

    daemon_threads = True

    def __init__(self, pages, *faults):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages, self.faults, self.bodies = pages, set(faults), []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_args):
        """Quiet about connections that a test breaks."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_args):
        """Nothing."""

    def do_GET(self):
        """A page, or nothing there."""
        page = self.server.pages.get(self.path)
        self._send(404 if page is None else 200, "application/json", json.dumps(page).encode())

    def do_POST(self):
        """An answer of three tokens, streamed where it is asked for."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if self.path.startswith("/slots"):
            self._send(200, "application/json", b"{}")
            return
        self.server.bodies.append((self.path, self.headers.get("authorization"), body))
        if "refuses" in self.server.faults:
            self._send(400, "application/json", b'{"error": {"message": "the model is not loaded"}}')
        elif body.get("stream"):
            self._stream(body)
        else:
            self._answer(body)

    def _drafts(self, body):
        asked = "draft_model" in body or bool(body.get("speculative.n_max"))
        return "drafts-always" in self.server.faults or (asked and "dead-draft" not in self.server.faults)

    def _stream(self, body):
        told = {"prompt_tokens": 5, "completion_tokens": 3}
        stats = {}
        if "/api/v0/models" in self.server.pages and self._drafts(body):
            stats = {"total_draft_tokens_count": 4, "accepted_draft_tokens_count": 2}
        chunks = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in ("a", "b", "c")]
        chunks.append(
            {
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                "usage": told,
                "stats": stats,
            }
        )
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._send(200, "text/event-stream", "".join([*events, "data: [DONE]\n\n"]).encode())

    def _answer(self, body):
        timings = {"prompt_n": 5, "prompt_ms": 1, "predicted_n": 3, "predicted_ms": 3}
        if self._drafts(body):
            timings |= {"draft_n": 4, "draft_n_accepted": 2}
        answer = {
            "choices": [{"message": {"content": "abc"}, "finish_reason": "stop"}],
            "timings": timings,
        }
        self._send(200, "application/json", json.dumps(answer).encode())

    def _send(self, status, kind, content):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
