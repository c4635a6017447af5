"""Any metadata in a GGUF file that is well-formed, whatever its types and names: a model, or an error that names the file."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.catalog.gguf import read_gguf
from autospec.errors import ModelFileError

_U32, _U64, _STRING, _ARRAY = 4, 10, 8, 9
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
KEYS = (
    *("general.architecture", "general.type", "general.alignment", "general.file_type", "general.basename", "split.count"),
    *("tokenizer.ggml.tokens", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.bos_token_id"),
    *(f"llama.{name}" for name in (
        "block_count", "context_length", "embedding_length", "vocab_size", "expert_count", "expert_used_count",
        "nextn_predict_layers", "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.sliding_window", "attention.sliding_window_pattern", "attention.shared_kv_layers",
        "full_attention_interval", "pooling_type", "ssm.conv_kernel",
    )),
)  # fmt: skip
TENSORS = (
    "token_embd.weight",
    "output.weight",
    "blk.0.attn_q.weight",
    "blk.7.nextn.x",
    "blk.1.ffn_up_exps.weight",
    "nextn.x",
)

name = st.one_of(st.sampled_from(TENSORS), st.integers(1, 10**30).map("blk.{}.x".format), st.text(max_size=5))


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


scalar = st.sampled_from(sorted(FORMATS)).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.binary(min_size=struct.calcsize(FORMATS[kind]), max_size=struct.calcsize(FORMATS[kind])),
    )
)
small = st.tuples(st.just(_U32), st.integers(0, 9).map(lambda n: struct.pack("<I", n)))
text = st.tuples(
    st.just(_STRING),
    st.one_of(
        st.sampled_from(("llama", "gpt2", "none", "model", "eagle3", "dflash", "clip")), st.binary(max_size=5)
    ).map(_string),
)
numbers = st.lists(st.integers(0, 99), max_size=4).map(
    lambda ns: struct.pack(f"<IQ{len(ns)}I", _U32, len(ns), *ns)
)
texts = st.lists(st.binary(max_size=3), max_size=6).map(
    lambda ts: struct.pack("<IQ", _STRING, len(ts)) + b"".join(map(_string, ts))
)
array = st.tuples(st.just(_ARRAY), st.one_of(numbers, texts))
pairs = st.dictionaries(
    st.one_of(st.sampled_from(KEYS), st.text(st.characters(exclude_categories=("Cs",)), max_size=5)),
    st.one_of(small, scalar, text, array),
    max_size=8,
)
tensor = st.tuples(
    name.filter(lambda n: n.isprintable()),
    st.lists(st.one_of(st.integers(0, 64), st.integers(0, 2**64 - 1)), min_size=1, max_size=4),
    st.one_of(st.integers(0, 45), st.integers(0, 2**32 - 1)),
    st.one_of(st.just(0), st.integers(0, 2**64 - 1)),
)


def _file(pairs: dict[str, tuple[int, bytes]], tensors: list[tuple[str, list[int], int, int]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, (kind, value) in pairs.items():
        head += _string(key) + struct.pack("<I", kind) + value
    for called, shape, kind, offset in tensors:
        head += _string(called) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + bytes(4096)


def _read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(ModelFileError):
        model = read_gguf(path)
        assert min(model.parameters, model.layers, model.kv_bytes_per_token, model.bytes_per_token) >= 0


LLAMA = {"general.architecture": (_STRING, _string("llama"))}


def test_any_metadata(tmp_path):
    """Wrong types, wrong numbers, layers that are not there."""

    @settings(max_examples=80)
    @given(st.sampled_from(({}, LLAMA)), pairs, st.lists(tensor, max_size=3))
    def read(known, others, tensors):
        _read(tmp_path / "m.gguf", _file(known | others, tensors))

    read()


@pytest.mark.parametrize("called", ["blk." + "9" * 5000 + ".x"], ids=["a layer's number with 5000 digits"])
def test_found_inputs(tmp_path, called):
    """What was no plain error before."""
    mtp = {"llama.nextn_predict_layers": (_U32, struct.pack("<I", 1))}
    _read(tmp_path / "m.gguf", _file(LLAMA | mtp, [(called, [1], 0, 0)]))
