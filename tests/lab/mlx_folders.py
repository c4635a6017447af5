"""MLX folders from the lab's GGUF: weights in float32, config.json, and the tokenizer rebuilt from the metadata.

float32, because MLX on a CPU computes float16 many times slower. Nothing of MLX is needed to write them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants
from numpy.typing import NDArray

from tests.lab.rewrite import Parts, Planned, read_parts

__all__ = ["write_folder", "write_safetensors"]

Floats = NDArray[np.float32]

# GGUF's name of a layer's tensor → Hugging Face's (gguf-py's tensor_mapping.py has both).
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SILENT = ("attn_output", "ffn_down")


def write_folder(
    smollm2: Path,
    out: Path,
    layers: Sequence[int],
    *,
    silent: int = 0,
    sliding_window: int = 0,
    tokens: int = 0,
    noise: float = 0.0,
) -> None:
    """Write SmolLM2 as a folder that `mlx_lm` and transformers load.

    Args:
        smollm2: The GGUF.
        out: The folder to be made.
        layers: Which of its layers, in their new order.
        silent: Layers added behind them that change nothing: attention output and feed-forward output are zero.
        sliding_window: If not 0, the first layer keeps only so many tokens (a rotating cache).
        tokens: If not 0, only so many of the vocabulary's first tokens are kept: byte-level BPE numbers them in the order
            of its merges, so that what is left is a smaller tokenizer that can still write everything.
        noise: Every weight of a layer is off by such a part of itself, one standard deviation: a draft that is often right.
    """
    parts = read_parts(smollm2)
    tokens = tokens or len(parts.metadata["tokenizer.ggml.tokens"][0])
    out.mkdir(parents=True)
    count = len(layers) + silent
    write_safetensors(out / "model.safetensors", dict(_tensors(parts, layers, silent, tokens, noise)))
    _write_json(out / "config.json", _config(parts, count, sliding_window, tokens))
    _write_json(out / "tokenizer.json", _tokenizer(parts, tokens))
    _write_json(out / "tokenizer_config.json", _tokenizer_config(parts))


def write_safetensors(out: Path, tensors: Mapping[str, tuple[tuple[int, ...], Callable[[], Floats]]]) -> None:
    """Write float32 tensors, each made when its turn has come.

    The format (huggingface/safetensors, README): eight bytes with the header's length, the header as JSON, the data.

    Args:
        out: The file.
        tensors: Name to shape and maker.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (shape, _) in tensors.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, make in tensors.values():
            file.write(np.ascontiguousarray(make(), dtype="<f4").tobytes())


def _tensors(
    parts: Parts, layers: Sequence[int], silent: int, tokens: int, noise: float
) -> Iterator[tuple[str, tuple[tuple[int, ...], Callable[[], Floats]]]]:
    (_, width), make_embedding = _made(parts, parts.tensors["token_embd.weight"])
    yield "model.embed_tokens.weight", ((tokens, width), lambda: make_embedding()[:tokens])
    yield "model.norm.weight", _made(parts, parts.tensors["output_norm.weight"])
    for index, (source, quiet) in enumerate([(n, False) for n in layers] + [(layers[0], True)] * silent):
        for tensor in parts.layer(source):
            kind = tensor.name.removesuffix(".weight").rpartition(".")[2]
            name = f"model.layers.{index}.{_LAYER_NAMES[kind]}.weight"
            shape, make = _made(parts, tensor)
            made = _zeros(shape) if quiet and kind in _SILENT else make
            yield name, (shape, _noisy(made, noise, seed=index) if noise else made)


def _made(parts: Parts, tensor: Planned) -> tuple[tuple[int, ...], Callable[[], Floats]]:
    heads = {
        "attn_q": int(parts.metadata["llama.attention.head_count"][0]),
        "attn_k": int(parts.metadata["llama.attention.head_count_kv"][0]),
    }.get(tensor.name.removesuffix(".weight").rpartition(".")[2])

    def make() -> Floats:
        values = quants.dequantize(tensor.data(), tensor.kind).astype(np.float32)
        return values if heads is None else _unpermuted(values, heads)

    return tensor.weights, make


def _unpermuted(values: Floats, heads: int) -> Floats:
    """Undo `permute` of llama.cpp's conversion/llama.py, which interleaves the two halves that RoPE turns together."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _noisy(make: Callable[[], Floats], noise: float, seed: int) -> Callable[[], Floats]:
    def made() -> Floats:
        values = make()
        draws = np.random.default_rng(seed).standard_normal(values.shape, np.float32)
        return values * (1 + np.float32(noise) * draws)

    return made


def _zeros(shape: tuple[int, ...]) -> Callable[[], Floats]:
    return lambda: np.zeros(shape, np.float32)


def _config(parts: Parts, layers: int, sliding_window: int, tokens: int) -> dict[str, Any]:
    def value(key: str) -> Any:
        return parts.metadata[key][0]

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base"),
        "vocab_size": tokens,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    if sliding_window:
        kinds = ["sliding_attention", *["full_attention"] * (layers - 1)]
        config |= {"layer_types": kinds, "sliding_window": sliding_window}
    return config


def _tokenizer(parts: Parts, count: int) -> dict[str, Any]:
    """Byte-level BPE as SmolLM2 has it: digits one by one, then GPT-2's pattern (LLAMA_VOCAB_PRE_TYPE_SMOLLM)."""
    tokens: Sequence[str] = parts.metadata["tokenizer.ggml.tokens"][0][:count]
    vocab = {text: i for i, text in enumerate(tokens)}
    merges = [m for m in parts.metadata["tokenizer.ggml.merges"][0] if m.replace(" ", "") in vocab]
    kinds: Sequence[int] = parts.metadata["tokenizer.ggml.token_type"][0]
    digits = {"type": "Digits", "individual_digits": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, text) for i, text in enumerate(tokens) if kinds[i] == gguf.TokenType.CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_]},
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _added(number: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": True}


def _tokenizer_config(parts: Parts) -> dict[str, Any]:
    tokens: Sequence[str] = parts.metadata["tokenizer.ggml.tokens"][0]

    def token(kind: str) -> str:
        return tokens[parts.metadata[f"tokenizer.ggml.{kind}_token_id"][0]]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": parts.metadata["tokenizer.chat_template"][0],
        "model_max_length": parts.metadata["llama.context_length"][0],
    }


def _write_json(path: Path, document: Mapping[str, Any] | Iterable[Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1, default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Numbers of numpy as JSON has them."""
    return value.item()
