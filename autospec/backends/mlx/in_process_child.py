"""An MLX model in a process of its own, asked in token ids with `mlx_lm`'s functions, without `mlx_lm.server`.

::

    python -m autospec.backends.mlx.in_process_child --model M [--draft-model D] --host H --port P [SERVER OPTION...]

It takes mlx_lm.server's options, so that it loads and computes a model as that server does, and ignores options about
serving. One thread loads, listens and computes (MLX's streams belong to threads), one request after another. Every answer
is JSON; `mlx.in_process` is the client.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.generate import (
    DEFAULT_QUANTIZED_KV_START,
    generation_stream,
    maybe_quantize_kv_cache,
    wired_limit,
)
from mlx_lm.models.cache import (
    QuantizedKVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.sample_utils import make_sampler
from mlx_lm.server import process_message_content

from autospec.backends.mlx.child import tally
from autospec.backends.token_http import CANDIDATES, Route, reading_routes, serve

__all__ = ["MlxReader", "main"]

# Logits of 64 tokens over a vocabulary of 150 000 take 0.04 GB; those of a prompt are not evaluated.
_SCORED = 64


class MlxReader:
    """Reads token probabilities and batch times of one model, and keeps the cache of the last text.

    Prompts are computed `prefill_step_size` tokens at a time; `quantization` is for `maybe_quantize_kv_cache`.
    """

    def __init__(
        self, model: Any, *, prefill_step_size: int, quantized_kv_start: int, **quantization: int | None
    ) -> None:
        self._model = model
        self._prefill_step = prefill_step_size
        self._quantized_from = quantized_kv_start
        self._quantize = partial(
            maybe_quantize_kv_cache, quantized_kv_start=quantized_kv_start, **quantization
        )
        self._cache = make_prompt_cache(model)
        self._ids: list[int] = []

    def evaluate(self, ids: Sequence[int], first: int) -> Iterator[tuple[int, float]]:
        """The most likely token after `ids[first]` and each later one, with its probability among the ten most likely."""
        self._prefill(ids, first)
        while len(self._ids) < len(ids):
            part = ids[len(self._ids) : len(self._ids) + _SCORED]
            with mx.stream(generation_stream):
                logits = self._compute(part).astype(mx.float32)
                best = mx.argmax(logits, axis=-1)
                most = mx.topk(logits, min(CANDIDATES, logits.shape[-1]), axis=-1)
                sure = mx.exp(mx.max(most, axis=-1) - mx.logsumexp(most, axis=-1))
                mx.eval(best, sure)
            tokens: Any = best.tolist()
            chances: Any = sure.tolist()
            yield from zip(tokens, chances, strict=True)

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """Milliseconds for one batch after `ids`, computed as a drafting cycle does: with logits for every token."""
        self._prefill(ids, len(ids))
        begun = time.perf_counter()
        with mx.stream(generation_stream):
            logits = self._compute(extra)
            mx.eval(mx.argmax(logits - mx.logsumexp(logits, axis=-1, keepdims=True), axis=-1))
        return 1000.0 * (time.perf_counter() - begun)

    def _prefill(self, ids: Sequence[int], upto: int) -> None:
        """Make the cache hold exactly the first `upto` tokens."""
        common = next((i for i, (x, y) in enumerate(zip(self._ids, ids, strict=False)) if x != y), None)
        keep = min(len(self._ids), upto) if common is None else min(common, upto)
        surplus = len(self._ids) - keep
        if surplus and not (self._is_of(keep) and self._trimmed(surplus)):
            self._cache, keep = make_prompt_cache(self._model), 0
        del self._ids[keep:]
        while len(self._ids) < upto:
            with mx.stream(generation_stream):
                self._compute(ids[len(self._ids) : min(upto, len(self._ids) + self._prefill_step)])
                mx.eval([c.state for c in self._cache])
            # As `generate_step` does: otherwise buffers of a long prompt's batches stay allocated.
            mx.clear_cache()

    def _is_of(self, count: int) -> bool:
        """True if this cache can be trimmed to `count` tokens and would then be of the right kind."""
        quantized = any(isinstance(c, QuantizedKVCache) for c in self._cache)
        return can_trim_prompt_cache(self._cache) and not (quantized and count < self._quantized_from)

    def _trimmed(self, count: int) -> bool:
        return bool(trim_prompt_cache(self._cache, count) == count)

    def _compute(self, part: Sequence[int]) -> Any:
        """Logits, shape (tokens, vocabulary), not evaluated yet."""
        logits = self._model(mx.array([list(part)]), cache=self._cache)
        self._quantize(self._cache)
        self._ids += part
        return logits[0]


class Loaded:
    """The models of the process, and its answers."""

    def __init__(self, options: argparse.Namespace) -> None:
        tokenizer_config = {"trust_remote_code": options.trust_remote_code}
        if options.chat_template:
            tokenizer_config["chat_template"] = options.chat_template
        self.model, self._tokenizer = load(
            options.model, adapter_path=options.adapter_path, tokenizer_config=tokenizer_config
        )
        if options.use_default_chat_template and self._tokenizer.chat_template is None:
            self._tokenizer.chat_template = self._tokenizer.default_chat_template
        self._draft = None
        if options.draft_model:
            self._draft, draft_tokenizer = load(options.draft_model)
            if draft_tokenizer.vocab_size != self._tokenizer.vocab_size:
                # The words of `mlx_lm.generate`, which refuses; the server only warns.
                raise SystemExit("Draft model tokenizer does not match model tokenizer.")
        self._template = options.chat_template_args
        self._how = {
            "prefill_step_size": options.prefill_step_size,
            "kv_bits": options.kv_bits,
            "kv_group_size": options.kv_group_size,
            "quantized_kv_start": options.quantized_kv_start,
        }
        self._reader = MlxReader(self.model, **self._how)

    def encode(self, asked: dict[str, Any]) -> dict[str, Any]:
        """As `_tokenize` of mlx_lm/server.py makes a prompt of a chat."""
        messages = asked["messages"]
        process_message_content(messages)
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tools=asked.get("tools"), tokenize=True, **self._template
        )
        return {"ids": [int(i) for i in ids]}

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        """An answer by `stream_generate` with its own speeds, and with the draft if ``num_draft_tokens`` is set."""
        ids = asked["ids"] if "ids" in asked else self.encode(asked)["ids"]
        most, count = asked["max_tokens"], asked.get("num_draft_tokens", 0)
        how = dict(self._how)
        if count:
            how |= {"draft_model": self._draft, "num_draft_tokens": count}
        if asked["temperature"] > 0:
            mx.random.seed(asked["seed"])
        sampler = make_sampler(temp=max(0.0, asked["temperature"]))
        told: list[tuple[int, str]] = []
        # A response holds probabilities of the whole vocabulary, so only these two values of each are kept.
        answers = stream_generate(self.model, self._tokenizer, ids, max_tokens=most, sampler=sampler, **how)
        drafts = [0, 0]
        for last in tally(answers, drafts, most, count):
            told.append((last.token, last.text))
        tokens, texts = zip(*told, strict=True)
        return {
            "ids": tokens,
            "text": "".join(texts),
            "ended": last.finish_reason == "stop",
            "prompt_tokens": last.prompt_tokens,
            "prompt_tps": last.prompt_tps,
            "generation_tps": last.generation_tps,
            "drafted": drafts[0],
            "accepted": drafts[1],
        }

    def reading_routes(self) -> dict[str, Route]:
        """The routes that read probabilities without generating."""
        return reading_routes(self._reader.evaluate, lambda token: token in self._tokenizer.eos_token_ids)

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The time of one batch."""
        return {"ms": self._reader.batch_ms(asked["ids"], asked["extra"])}


def main(arguments: list[str]) -> int:
    """Load, and answer until killed."""
    options, passed_over = _parser().parse_known_args(arguments)
    if passed_over:
        print(f"ignored these options, which are for a server: {' '.join(passed_over)}", file=sys.stderr)  # noqa: T201 - the log
    loaded = Loaded(options)
    routes: dict[str, Route] = {
        "/encode": loaded.encode,
        "/generate": loaded.generate,
        "/batch": loaded.batch,
        **loaded.reading_routes(),
    }

    # `stream_generate` wires the weights for an answer; here they are wired for the readings too.
    with wired_limit(loaded.model, [generation_stream]):
        serve(options.host, options.port, routes)
    return 0


def _parser() -> argparse.ArgumentParser:
    """The options of mlx_lm.server that change what is computed, with its defaults (mlx_lm/server.py, 0.32.2)."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft-model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapter-path")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--chat-template", default="")
    parser.add_argument("--use-default-chat-template", action="store_true")
    parser.add_argument("--chat-template-args", type=json.loads, default={})
    parser.add_argument("--prefill-step-size", type=int, default=2048)
    parser.add_argument("--kv-bits", type=int)
    parser.add_argument("--kv-group-size", type=int, default=64)
    parser.add_argument("--quantized-kv-start", type=int, default=DEFAULT_QUANTIZED_KV_START)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
