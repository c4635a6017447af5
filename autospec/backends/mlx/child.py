"""The part of the backend `mlx` that imports MLX. It is always a process of its own.

::

    python -m autospec.backends.mlx.child --probe           what the installed mlx-lm is and does, as JSON
    python -m autospec.backends.mlx.child --caches MODEL    the kinds of cache that a model keeps, as JSON
    python -m autospec.backends.mlx.child serve ARG...      mlx_lm.server, whose answers report drafted tokens

`serve` is `mlx_lm.server` with two additions. `stream_generate` marks every token that the draft model proposed
(``from_draft``), but the server drops the mark. Here the marks are counted and reported in the answer's ``usage``, under
LM Studio's names. And the process ends when the thread that generates has died. With a later mlx-lm whose code differs, the
server runs without them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import server
from mlx_lm.generate import speculative_generate_step
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

__all__ = ["main", "tally"]

DRAFTED, ACCEPTED = "total_draft_tokens_count", "accepted_draft_tokens_count"
# argparse's layout: two spaces, the name, the value's name after one space.
_OPTION = re.compile(r"^  (?:-\w, )?(?P<name>--[\w-]+)(?P<value> \S+)?", re.MULTILINE)


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    match arguments:
        case ["--probe"]:
            print(json.dumps(_probe()), flush=True)  # noqa: T201 - the parent reads it
        case ["--caches", model]:
            print(json.dumps(_caches(Path(model))), flush=True)  # noqa: T201
        case ["serve", *rest]:
            _serve(rest)
        case _:
            raise SystemExit(f"mlx_child: {arguments} makes no sense")


def _serve(arguments: list[str]) -> None:
    if _can_count():
        _count()
    if _has_generation_thread():
        _end_with_generation()
    sys.argv = ["mlx_lm.server", *arguments]
    try:
        server.main()
    except Exception:  # noqa: BLE001 - any error, e.g. a taken port: the generating thread would keep the process alive
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _probe() -> dict[str, Any]:
    sys.argv = ["mlx_lm.server", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        server.main()
    return {
        "options": {found["name"]: bool(found["value"]) for found in _OPTION.finditer(text.getvalue())},
        "tells_drafts": _can_count(),
        "cache_matches_key": _cache_matches_key(),
    }


def _cache_matches_key() -> bool:
    """True if the cache after a drafted answer holds as many tokens as the server stores it under."""
    # `_serve_single` of mlx_lm/server.py stores the cache under prompt and answer, the answer's last token included, and a
    # later request trims it by the difference of *lengths*. In 0.32.2 the last token is not in the cache if it came from
    # the main model, so the next request with this beginning misses a token. Tried with a random model of one layer.
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=16,
            num_attention_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=32,
        )
    )
    prompt = mx.array([1, 2, 3])
    for drafted in (0, 2):
        for count in range(1, 6):
            cache = [*make_prompt_cache(model), *make_prompt_cache(model)]
            answer = list(
                speculative_generate_step(
                    prompt, model, model, num_draft_tokens=drafted, max_tokens=count, prompt_cache=cache
                )
            )
            if cache[0].offset != prompt.size + len(answer):
                return False
    return True


def _caches(model_path: Path) -> dict[str, Any]:
    """The kinds of cache that can never be rolled back, and those that cannot once they are full."""
    model, _ = load_model(model_path, lazy=True, strict=False)
    caches = make_prompt_cache(model)
    # A sliding window's cache reports that it can be trimmed until its window is full; then `trim_prompt_cache` silently
    # does nothing. So a cache with a maximum size counts as one that cannot be trimmed.
    return {
        "stuck": sorted({type(c).__name__ for c in caches if not c.is_trimmable()}),
        "rotating": sorted({type(c).__name__ for c in _parts(caches) if getattr(c, "max_size", None)}),
    }


def _parts(caches: Any) -> Iterator[Any]:
    """Every cache, also those inside a `CacheList`."""
    for cache in caches:
        yield cache
        yield from _parts(getattr(cache, "caches", ()))


def _can_count() -> bool:
    """Whether this mlx-lm has the four places that `_count` touches."""
    return (
        hasattr(server, "stream_generate")
        and hasattr(server, "GenerationContext")
        and hasattr(getattr(server, "ResponseGenerator", None), "generate")
        and hasattr(getattr(server, "APIHandler", None), "completion_usage_response")
    )


def _count() -> None:
    """Make every answer's ``usage`` report its drafted and accepted tokens."""
    # The thread that generates makes a request's context just before it calls `stream_generate`, and hands it to the
    # thread that answers. The counts travel with the context, so requests at the same time do not mix.
    generating, answering = threading.local(), threading.local()
    generate, respond = server.stream_generate, server.ResponseGenerator.generate
    usage = server.APIHandler.completion_usage_response

    class Context(server.GenerationContext):  # type: ignore[misc]
        def __init__(self, *args: Any, **fields: Any) -> None:
            super().__init__(*args, **fields)
            self.drafts = [0, 0]
            generating.context = self

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        drafts = generating.context.drafts
        # The server's loop may stop in the middle; closing the generator corrects the cache.
        with contextlib.closing(generate(*args, **kwargs)) as responses:
            if kwargs.get("draft_model") is None:
                yield from responses
            else:
                yield from tally(responses, drafts, kwargs["max_tokens"], kwargs["num_draft_tokens"])

    def remembered(self: Any, *args: Any, **kwargs: Any) -> Any:
        context, answer = respond(self, *args, **kwargs)
        answering.context = context
        return context, answer

    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        response = usage(self, *args, **kwargs)
        drafted, accepted = answering.context.drafts
        response["usage"] |= {DRAFTED: drafted, ACCEPTED: accepted}
        return response

    server.GenerationContext = Context
    server.stream_generate = counted
    server.ResponseGenerator.generate = remembered
    server.APIHandler.completion_usage_response = told


def _has_generation_thread() -> bool:
    """Whether this mlx-lm has the two places that `_end_with_generation` touches."""
    return hasattr(getattr(server, "ResponseGenerator", None), "_run_generate") and hasattr(
        getattr(server, "ModelProvider", None), "load_default"
    )


def _end_with_generation() -> None:
    """End the process when its generating thread dies, as of a lack of memory for a batch (`_generate` of mlx_lm/server.py)."""
    # The server lives on then and answers every request with 404, which nobody can tell from an answer. A model that cannot be
    # loaded is left to that: the first request tells why (`MlxServer.verify`).
    load, generate = server.ModelProvider.load_default, server.ResponseGenerator._run_generate  # noqa: SLF001
    loaded = threading.Event()

    def noted(self: Any) -> None:
        load(self)
        loaded.set()

    def ended(self: Any) -> None:
        try:
            generate(self)
        except BaseException:  # noqa: BLE001 - it ends the thread, whatever it is; 0.32.2 has logged it itself
            traceback.print_exc()
        if loaded.is_set() and not getattr(self, "_stop", False):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    server.ModelProvider.load_default = noted
    server.ResponseGenerator._run_generate = ended  # noqa: SLF001


def tally(responses: Iterator[Any], drafts: list[int], left: int, most: int) -> Iterator[Any]:
    """Count while tokens pass: a cycle of `speculative_generate_step` proposes ``min(left, most)`` tokens, and its last
    token, unless the answer ends before, is the main model's own.
    """  # noqa: D205 - one sentence
    begins = True
    for response in responses:
        if begins:
            drafts[0] += min(left, most)
        drafts[1] += bool(response.from_draft)
        begins = not response.from_draft
        left -= 1
        yield response


if __name__ == "__main__":
    main(sys.argv[1:])
