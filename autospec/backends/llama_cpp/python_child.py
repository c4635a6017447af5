"""llama-cpp-python's server as autospec launches it: ``python -m autospec.backends.llama_cpp.python_child --model FILE …``.

The app is the package's own (``llama_cpp.server.app.create_app``) and takes the same flags. This module adds the flag
``--max_ngram_size``, and what llama.cpp's server has and this one lacks: /health, /slots, ``timings`` in answers that
are not streamed, and ``cache_prompt``. With ``--probe`` it prints what is installed and loads no model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ColdPrompts", "Meter", "main"]

_HOST = "127.0.0.1"
# A long answer may still be running; autospec no longer waits for it.
_STOP_S = 1
# True while the server answers a request that must not use the prompt cache.
_cold: ContextVar[bool] = ContextVar("_cold", default=False)


def main(argv: list[str]) -> int:
    """Serve until killed, or answer ``--probe``; returns the exit status.

    Arguments are names of ``llama_cpp.server.settings.Settings`` as flags, each with its value.
    """
    # This process exists so that these imports may fail without harm.
    import llama_cpp  # noqa: PLC0415
    from llama_cpp.server import app as server  # noqa: PLC0415
    from llama_cpp.server.settings import ModelSettings, ServerSettings  # noqa: PLC0415

    if argv == ["--probe"]:
        libraries = Path(llama_cpp.__file__).parent / "lib"
        found = sorted(str(file) for file in libraries.iterdir() if file.suffix in {".so", ".dylib"})
        names = sorted(ModelSettings.model_fields)
        print(json.dumps({"version": llama_cpp.__version__, "libraries": found, "settings": names}))  # noqa: T201 - the answer
        return 0
    options = dict(zip((name.removeprefix("--") for name in argv[::2]), argv[1::2], strict=True))
    port = int(options.pop("port"))
    ngram_size = options.pop("max_ngram_size", None)
    _forget_environment({*ModelSettings.model_fields, *ServerSettings.model_fields, "config_file"})
    # A draft sets logits_all itself; without a draft it would only cost memory and time.
    settings: dict[str, Any] = {"logits_all": False, **options, "verbose": True}
    try:
        app = server.create_app(
            # A waiting request must not interrupt the running one.
            server_settings=ServerSettings(host=_HOST, port=port, interrupt_requests=False),
            model_settings=[ModelSettings(**settings)],
        )
    except (ValueError, RuntimeError) as error:  # pydantic's too
        # In llama.cpp's words, which `failures.classify` knows; the library has printed the reason above.
        why = (
            f"failed to load model, '{settings['model']}'" if _blames_model(error) else f"llama_cpp: {error}"
        )
        print(why, file=sys.stderr)  # noqa: T201 - the log
        return 1
    # The app keeps its model in a global of its module (0.2 to 0.3.36); there is no other access to it.
    meter = Meter(server._llama_proxy(), int(ngram_size) if ngram_size else None)  # noqa: SLF001
    _serve(app, meter, port)
    return 0


def _forget_environment(names: set[str]) -> None:
    """Remove variables like ``SEED`` or ``CONFIG_FILE``: pydantic would read them as settings, in any case."""
    for name in [name for name in os.environ if name.lower() in names]:
        del os.environ[name]


def _blames_model(error: Exception) -> bool:
    """True for the library's two errors for a file that it cannot use (llama_cpp/_internals.py)."""
    return any(words in str(error) for words in ("Failed to load model", "Model path does not exist"))


def _serve(app: Any, meter: Meter, port: int) -> None:
    import uvicorn  # noqa: PLC0415

    app.add_api_route("/health", lambda: {"status": "ok"})
    app.add_api_route("/slots", lambda: [meter.slot()])
    app.add_middleware(ColdPrompts)
    uvicorn.run(app, host=_HOST, port=port, log_level="warning", timeout_graceful_shutdown=_STOP_S)


@dataclass(slots=True)
class _Tally:
    """One request's times and counts, as llama.cpp names them; `prompt_n` is correct only without the prompt cache."""

    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    draft_n: int = 0
    batches: int = 1

    def timings(self) -> dict[str, float]:
        """The ``timings`` of an answer. A batch gives one token of the main model's own and the accepted ones."""
        timings = {
            "prompt_n": self.prompt_n,
            "prompt_ms": self.prompt_ms,
            "predicted_n": self.predicted_n,
            "predicted_ms": self.predicted_ms,
        }
        if self.draft_n:
            timings |= {
                "draft_n": self.draft_n,
                "draft_n_accepted": max(0, self.predicted_n - self.batches),
            }
        return timings


class Meter:
    """Times and counts the answers of the server's model, which answers one request at a time.

    It replaces ``generate``, ``create_chat_completion``, ``create_embedding`` and ``draft_model`` of the server's
    ``llama_cpp.Llama`` by its own, which call them. `ngram_size` is that of prompt lookup, ``None`` without drafting; `clock`
    gives seconds.
    """

    def __init__(
        self, llama: Any, ngram_size: int | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._llama = llama
        self._clock = clock
        self._tally = _Tally()
        self._busy = False
        self._answered = 0
        self._generate = llama.generate
        self._answer = llama.create_chat_completion
        self._embed = llama.create_embedding
        llama.generate = self.generate
        llama.create_chat_completion = self.create_chat_completion
        llama.create_embedding = self.create_embedding
        llama.verbose = False  # its messages for loading are wanted, those for each request are not
        if ngram_size is not None:
            self._lookup = llama.draft_model
            self._lookup.max_ngram_size = ngram_size
            llama.draft_model = self.propose

    def slot(self) -> dict[str, object]:
        """The slot, as in llama.cpp's /slots.

        Its last two numbers move while the model works: the proxy takes a server whose slots stand still for two hours for one
        that hangs.
        """
        return {
            "id": 0,
            "n_ctx": self._llama.n_ctx(),
            "is_processing": self._busy,
            "speculative": self._llama.draft_model is not None,
            "n_tokens": self._llama.n_tokens,
            "n_answered": self._answered,
        }

    def timings(self) -> dict[str, float]:
        """The last request's ``timings``, as in llama.cpp's answers."""
        return self._tally.timings()

    def propose(self, input_ids: Any, /, **options: Any) -> Any:
        """As ``LlamaDraftModel``."""
        proposed = self._lookup(input_ids, **options)
        self._tally.batches += 1
        self._tally.draft_n += len(proposed)
        return proposed

    def generate(self, tokens: Any, *args: Any, **options: Any) -> Iterator[int]:
        """As ``Llama.generate``, timed, and without the prompt cache if the request says so."""
        if _cold.get():
            self._llama.reset()
        tally = self._tally = _Tally(prompt_n=len(tokens))
        self._busy = True
        begun = self._clock()
        try:
            for token in self._generate(tokens, *args, **options):
                now_ms = 1000.0 * (self._clock() - begun)
                if not tally.predicted_n:
                    tally.prompt_ms = now_ms
                tally.predicted_n += 1
                tally.predicted_ms = now_ms - tally.prompt_ms
                yield token
        finally:
            self._busy = False
            self._answered += 1

    def create_embedding(self, *args: Any, **options: Any) -> Any:
        """As ``Llama.create_embedding``, which counts no tokens."""
        try:
            return self._embed(*args, **options)
        finally:
            self._answered += 1

    def create_chat_completion(self, *args: Any, **options: Any) -> Any:
        """As ``Llama.create_chat_completion`` for an answer that is not streamed, with ``timings``."""
        from starlette.responses import JSONResponse  # noqa: PLC0415

        answer = self._answer(*args, **options)
        # The route's own response model would drop a field that it does not know.
        return JSONResponse({**answer, "timings": self.timings()})


class ColdPrompts:
    """ASGI middleware that implements llama.cpp's ``cache_prompt: false``. It reads the whole body first."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        _cold.set(_is_cold(body))
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:  # the app asks again to learn whether the client has disconnected
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


def _is_cold(body: bytes) -> bool:
    try:
        asked = json.loads(body)
    except ValueError:
        return False  # the app will refuse it
    return isinstance(asked, dict) and asked.get("cache_prompt") is False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
