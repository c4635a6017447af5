"""Stand-ins for servers that cannot run here, after their documentation: LM Studio, mlx-omni-server, an old llama-server.

Each answers the paths that autospec reads, and drafts, or does not, as its requests say.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# lmstudio-bug-tracker 1519: LM Studio 0.4 while it may answer several requests at once.
BATCHED = (
    "Failed to load draft model. SpeculativeDecodingNotSupportedError: Speculative decoding is not supported for "
    "batched MLX models."
)
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
# https://lmstudio.ai/docs/developer/rest/list, of an LM Studio without its older API
LM_STUDIO_V1 = {
    "/api/v1/models": {
        "models": [
            {
                "type": "llm",
                "publisher": "lmstudio-community",
                "key": "qwen2.5-7b-instruct",
                "loaded_instances": [{"id": "qwen2.5-7b-instruct", "config": {"context_length": 4096}}],
                "format": "mlx",
            },
            {"type": "llm", "key": "qwen2.5-0.5b-instruct", "loaded_instances": [], "format": "gguf"},
            {"type": "embedding", "key": "nomic-embed", "loaded_instances": [], "format": "gguf"},
        ]
    },
    "/v1/models": {"data": [{"id": "qwen2.5-7b-instruct"}]},
}
# vllm/entrypoints/openai/models/protocol.py and serve/instrumentator/basic.py
VLLM = {
    "/v1/models": {"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "owned_by": "vllm"}]},
    "/version": {"version": "0.28.1"},
}


def _behind(name: str, file: str, value: str, *args: str) -> dict[str, object]:
    command = ["llama-server", "--host", "127.0.0.1", "--port", "0", *args, "--alias", name, "--model", file]
    return {
        "id": name,
        "object": "model",
        "owned_by": "llamacpp",
        "status": {"value": value, "args": command},
    }


# As a real b11434 answers; `/props` and `/slots` of a model load it. The parameters are those of an early router.
ROUTER = {
    "/props": {
        "role": "router",
        "max_instances": 2,
        "models_autoload": True,
        "model_alias": "llama-server",
        "model_path": "none",
        "default_generation_settings": {"params": None, "n_ctx": 0},
        "build_info": "b7400-abc",
    },
    "/v1/models": {
        "object": "list",
        "data": [
            _behind("main", "/models/main.gguf", "loaded", "--model-draft", "/models/d.gguf"),
            _behind("small", "/models/small.gguf", "unloaded"),
            _behind("twice", "/models/two.gguf", "unloaded"),
            _behind("twice-drafted", "/models/two.gguf", "unloaded", "--spec-type", "ngram-simple"),
            _behind("same-a", "/models/same.gguf", "unloaded"),
            _behind("same-b", "/models/same.gguf", "unloaded"),
        ],
    },
}
for _query in ("model=main", "model=main&autoload=false"):
    ROUTER[f"/props?{_query}"] = {**OLD_LLAMA_SERVER["/props"], "model_alias": "the child's own name"}
    ROUTER[f"/slots?{_query}"] = [{"id": 0, "speculative": True}]
ROUTER["/props?model=small"] = {**ROUTER["/props?model=main"], "model_path": "/models/small.gguf"}
ROUTER["/props?model=twice"] = {**ROUTER["/props?model=main"], "model_path": "/models/two.gguf"}
for _query in ("model=small", "model=twice"):
    ROUTER[f"/slots?{_query}"] = [{"id": 0, "speculative": False}]


class FakeAttached(ThreadingHTTPServer):
    """One server.

    Attributes:
        pages: What its paths read.
        bodies: Requests that came, with their path and key.
        erased: The models whose slots were emptied.
        looked: Paths that were read.
        faults: ``dead-draft``: takes the field and drafts nothing; ``drafts-always``; ``refuses``; ``batches``: refuses drafts.
    """

    daemon_threads = True

    def __init__(self, pages, *faults):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages, self.faults, self.bodies = pages, set(faults), []
        self.erased, self.looked = [], []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_args):
        """Quiet about connections that a test breaks."""


@contextmanager
def running(server: FakeAttached) -> Iterator[FakeAttached]:
    """The server, while the block lasts."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_args):
        """Nothing."""

    def do_GET(self):
        """A page, or nothing there."""
        self.server.looked.append(self.path)
        page = self.server.pages.get(self.path)
        self._send(404 if page is None else 200, "application/json", json.dumps(page).encode())

    def do_POST(self):
        """An answer of three tokens, streamed where it is asked for."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if self.path.startswith("/slots"):
            self.server.erased.append(body.get("model"))
            self._send(200, "application/json", b"{}")
            return
        self.server.bodies.append((self.path, self.headers.get("authorization"), body))
        if "refuses" in self.server.faults:
            self._send(400, "application/json", b'{"error": {"message": "the model is not loaded"}}')
        elif "batches" in self.server.faults and "draft_model" in body:
            self._send(400, "application/json", json.dumps({"error": BATCHED}).encode())
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
        metrics = None
        if {"/api/v0/models", "/api/v1/models"} & self.server.pages.keys() and self._drafts(body):
            stats = {"total_draft_tokens_count": 4, "accepted_draft_tokens_count": 2}
        if "/version" in self.server.pages and self._drafts(body):
            metrics = {"speculative_decoding": {"num_draft_tokens": 4, "num_accepted_draft_tokens": 2}}
        chunks = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in ("a", "b", "c")]
        chunks.append(
            {
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                "usage": told,
                "stats": stats,
                "metrics": metrics,
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
