"""A server that misbehaves on request; stands in for llama-server only where a fault is wanted.

``fake_server.py --fault NAME … [llama-server's arguments]``. It answers ``--help`` and ``--version`` with b11434's.
Faults: ``never-listens``, ``never-ready``, ``dies-at-start``, ``dies-at-first-request``, ``hangs``, ``garbage``,
``no-timings``, ``refuses``, ``dies-in-mid-answer``, ``cuts-answer``, ``drips``, ``slots-say-no``, ``no-slots``,
``drafts-although-off``, ``never-drafts``, ``ignores-sigterm``, ``four-slots``, ``slot-2-never-drafts``,
``slot-2-says-no``, ``slot-0-says-no``, ``slots-tell-nothing``. All but the first three and ``dies-at-first-request`` spare
the canary, so that they strike in the middle of the work.
"""

# ruff: noqa: T201 - what it prints is its log
from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HELP = Path(__file__).parent / "help"
ARGS = sys.argv[1:]
FAULTS = {ARGS[i + 1] for i, argument in enumerate(ARGS) if argument == "--fault"}
SPECULATIVE = bool({"--spec-type", "--draft-model"} & set(ARGS)) and "slots-say-no" not in FAULTS


class Handler(BaseHTTPRequestHandler):
    """The three paths that autospec asks for."""

    def log_message(self, *_args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """Health and slots."""
        if self.path == "/health":
            self._answer(503 if "never-ready" in FAULTS else 200, {"status": "ok"})
        elif self.path == "/slots" and "no-slots" not in FAULTS:
            self._answer(
                200, [{"id": slot, **_told(slot)} for slot in range(4 if "four-slots" in FAULTS else 1)]
            )
        else:
            self._answer(501, {"error": {"message": "not here"}})

    def do_POST(self) -> None:
        """A chat completion, or the fault."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "dies-at-first-request" in FAULTS:
            print("common/speculative.cpp:12: GGML_ASSERT(n_max > 0) failed", file=sys.stderr, flush=True)
            os.abort()  # in this thread: nothing is answered any more
        canary = "ignore_eos" in body
        if not canary:
            self._misbehave()
        silent = body.get("id_slot") == 2 and "slot-2-never-drafts" in FAULTS
        drafted = {"draft_n": 8, "draft_n_accepted": 6} if self._drafts() and not silent else {}
        tokens = 16 if body.get("max_tokens") == 16 else 7
        timings = {
            "prompt_n": 5,
            "prompt_ms": 10.0,
            "predicted_n": tokens,
            "predicted_ms": 10.0 * tokens,
            **drafted,
        }
        answer = {
            "choices": [{"message": {"content": "text", "seen": body}, "finish_reason": "stop"}],
            "timings": timings,
        }
        if "no-timings" in FAULTS and not canary:
            del answer["timings"]
        self._answer(200, answer)

    def _drafts(self) -> bool:
        return ("drafts-although-off" in FAULTS) or (SPECULATIVE and "never-drafts" not in FAULTS)

    def _misbehave(self) -> None:
        if "hangs" in FAULTS:
            time.sleep(3600)
        if "garbage" in FAULTS:
            self._send(200, b"<html>not JSON</html>")
        if "refuses" in FAULTS:
            self._answer(400, {"error": {"message": "the request exceeds the available context size"}})
        if FAULTS & {"dies-in-mid-answer", "cuts-answer"}:
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": ')
            self.wfile.flush()
            if "dies-in-mid-answer" in FAULTS:
                os.kill(os.getpid(), signal.SIGKILL)
            self.close_connection = True
            raise ConnectionAbortedError
        if "drips" in FAULTS:
            self.send_response(200)
            self.send_header("content-length", "100000")
            self.end_headers()
            while True:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)

    def _answer(self, status: int, document: object) -> None:
        self._send(status, json.dumps(document).encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _told(slot: int) -> dict[str, bool]:
    """What a slot says of its drafting."""
    if "slots-tell-nothing" in FAULTS:
        return {}
    return {"speculative": SPECULATIVE and f"slot-{slot}-says-no" not in FAULTS}


class Server(ThreadingHTTPServer):
    """Quiet about connections that a test breaks."""

    daemon_threads = True

    def handle_error(self, *_args: object) -> None:
        """Nothing."""


def main() -> None:
    """Answer a flag, or serve until killed."""
    if "--help" in ARGS:
        print((HELP / "b11434.txt").read_text(encoding="utf-8"))
        return
    if "--version" in ARGS:
        print("version: 0.6.0 (build 11434, commit 0123abcd)", file=sys.stderr)
        return
    if "--list-devices" in ARGS:  # a machine without a GPU
        print("Available devices:")
        return
    if "ignores-sigterm" in FAULTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("fake server: starting", file=sys.stderr, flush=True)
    if "dies-at-start" in FAULTS:
        print("E srv load_model: failed to load model, '/models/main.gguf'", file=sys.stderr)
        sys.exit(1)
    if "never-listens" in FAULTS:
        time.sleep(3600)
    try:
        server = Server(("127.0.0.1", int(ARGS[ARGS.index("--port") + 1])), Handler)
    except OSError:
        port = ARGS[ARGS.index("--port") + 1]
        print(
            f"E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: {port}",
            file=sys.stderr,
        )
        sys.exit(1)
    server.serve_forever()


main()
