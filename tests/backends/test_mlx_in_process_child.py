"""The child process of `mlx.in_process` keeps no more than it needs. Needs mlx-lm."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed", exc_type=ImportError)

from mlx_lm import load
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from autospec.backends.mlx import in_process_child as child


class _Probabilities:
    """Stands for an array over the vocabulary."""


def test_an_answer_keeps_no_probabilities(monkeypatch):
    """Of a thousand tokens' arrays at most two live at a time: the one before and the one that has come."""
    arrays: list[weakref.ref[_Probabilities]] = []
    most = 0

    def stream(*_, **__):
        nonlocal most
        for n in range(1000):
            response = SimpleNamespace(
                token=n, text=f"{n} ", from_draft=False, logprobs=_Probabilities(), prompt_tokens=3, prompt_tps=1.0,
                generation_tps=2.0, finish_reason="length" if n == 999 else None,
            )  # fmt: skip
            arrays.append(weakref.ref(response.logprobs))
            most = max(most, sum(a() is not None for a in arrays[-4:]))
            yield response

    monkeypatch.setattr(child, "stream_generate", stream)
    loaded = child.Loaded.__new__(child.Loaded)
    loaded.model, loaded._tokenizer, loaded._draft, loaded._how = None, None, None, {}
    answer = loaded.generate({"ids": [1, 2, 3], "max_tokens": 1000, "temperature": 0.0})
    gc.collect()
    assert list(answer["ids"]) == list(range(1000))
    assert answer["text"].startswith("0 1 2 ")
    assert not answer["ended"]
    assert most <= 2
    assert not any(a() for a in arrays)


@pytest.fixture(scope="module")
def model(lab_models):
    """A tiny model."""
    return load(str(lab_models.mlx_tiny))[0]


def reader(model, **quantization):
    """As the child makes it."""
    settings = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0} | quantization
    return child.MlxReader(model, prefill_step_size=16, **settings)


def kinds(of):
    """The kinds of cache in it."""
    return {type(c) for c in of._cache}


def test_the_cache_is_quantized_where_the_server_would(model):
    """From so many tokens on; a shorter text after a longer one has a cache of its own kind again."""
    plain = reader(model, kv_bits=None)
    plain.batch_ms(range(2, 42), [5])
    assert kinds(plain) == {KVCache}
    late = reader(model, quantized_kv_start=32)
    late.batch_ms(range(2, 22), [5])
    assert kinds(late) == {KVCache}
    late.batch_ms(range(2, 52), [5])
    assert kinds(late) == {QuantizedKVCache}
    late.batch_ms(range(2, 44), [7])
    assert kinds(late) == {QuantizedKVCache}
    late.batch_ms(range(2, 22), [5])
    assert kinds(late) == {KVCache}


def test_a_prompt_leaves_nothing_in_mlxs_pool(model, monkeypatch):
    """It is emptied after each step of a prompt, and not between the batches that are timed."""
    emptied = []
    monkeypatch.setattr(child.mx, "clear_cache", lambda: emptied.append(1))
    own = reader(model)
    own.batch_ms(range(2, 42), [5])
    assert len(emptied) == 3
    own.batch_ms(range(2, 42), [6])
    assert len(emptied) == 3
