"""Small model files for the catalogue's tests, written with the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from autospec.catalog.model import Model, Vocabulary

TOKENS = [f"t{i}" for i in range(300)]


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    layers: int = 2,
    width: int = 32,
    tokens: Sequence[str] | None = TOKENS,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    data: bool = True,
) -> Path:
    """Write a model that llama.cpp would recognise by its header, if not run.

    Args:
        path: Where to.
        architecture: ``general.architecture``.
        layers: Blocks with one attention and one feed-forward tensor each.
        width: ``embedding_length``.
        tokens: The vocabulary, or ``None``.
        keys: Further metadata; a value of ``None`` takes a default away.
        tensors: Instead of the default ones.
        seed: Of the weights.
        data: False to leave the weights out of the file, as a cut-off download does.
    """
    a = architecture
    values: dict[str, Any] = {
        f"{a}.block_count": np.uint32(layers),
        f"{a}.context_length": np.uint32(2048),
        f"{a}.embedding_length": np.uint32(width),
        f"{a}.attention.head_count": np.uint32(4),
        f"{a}.attention.head_count_kv": np.uint32(2),
    }
    if tokens is not None:
        values |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": list(tokens),
            "tokenizer.ggml.bos_token_id": np.uint32(1),
            "tokenizer.ggml.eos_token_id": np.uint32(2),
        }
    values |= keys or {}
    if tensors is None:
        random = np.random.default_rng(seed)
        shapes = {"token_embd.weight": (300, width), "output.weight": (300, width)}
        for i in range(layers):
            shapes |= {f"blk.{i}.attn_q.weight": (width, width), f"blk.{i}.ffn_up.weight": (2 * width, width)}
        tensors = {name: random.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if value is not None:
            _add(writer, key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file() if data else writer.write_ti_data_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.INT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
        np.uint32: gguf.GGUFValueType.UINT32,
        np.uint64: gguf.GGUFValueType.UINT64,
    }
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        kind = kinds[type(value)]
        writer.add_key_value(key, value.item() if isinstance(value, np.generic) else value, kind)


def write_mlx(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[str, Sequence[int]]] | None = None,
    tokens: Sequence[str] | None = TOKENS,
    file_name: str = "model.safetensors",
) -> Path:
    """Write an MLX model folder with weights of zeros.

    Args:
        folder: Made if it is not there.
        config: ``config.json`` beyond the default.
        tensors: Name → dtype and shape.
        tokens: The vocabulary, or ``None`` for no tokenizer.
        file_name: Of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": 300,
        **(config or {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0
    widths = {"F32": 4, "U32": 4, "F16": 2, "BF16": 2}
    for name, (dtype, shape) in (tensors or MLX_TENSORS).items():
        size = widths[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    (folder / file_name).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(at))
    if tokens is not None:
        tokenizer = {
            "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}},
            "added_tokens": [],
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "t1", "eos_token": "t2"}))
    return folder


MLX_TENSORS = {
    "model.embed_tokens.weight": ("F32", (300, 32)),
    "model.layers.0.self_attn.q_proj.weight": ("F32", (32, 32)),
    "model.layers.1.self_attn.q_proj.weight": ("F32", (32, 32)),
    "lm_head.weight": ("F32", (300, 32)),
}


def make_model(name: str = "main", **changes: Any) -> Model:
    """A dense 8 B model that is nowhere on disk, for what looks at values alone."""
    vocab = Vocabulary("gpt2", 300, digest="d" * 64, bos=1, eos=2)
    values: dict[str, Any] = {
        "name": name, "path": Path("/models", f"{name}.gguf"), "format": "gguf", "source": "folder",
        "architecture": "llama", "parameters": 8_000_000_000, "active_parameters": 8_000_000_000, "experts": 0,
        "active_experts": 0, "quantization": "Q4_K_M", "size_bytes": 5_000_000_000,
        "files": (Path("/models", f"{name}.gguf"),), "context_length": 32768, "layers": 32,
        "embedding_length": 4096, "kv_bytes_per_token": 131072, "kv_sliding_bytes_per_token": 0,
        "sliding_window": 0, "bytes_per_token": 4_500_000_000, "vocab": vocab, "mtp_layers": 0, "head": None,
        "has_recurrent_state": False, "role": "text", "basename": "", "fingerprint": f"print of {name}",
    }  # fmt: skip
    return Model(**{**values, **changes})


def write_projector(path: Path, width: int, *, inner: int = 32) -> Path:
    """Write a projector (mmproj) that llama.cpp loads and runs: a LLaVA of random weights, 16 tokens for an image.

    Args:
        path: Where to.
        width: ``embedding_length`` of the model that it is for.
        inner: Its own.
    """
    random = np.random.default_rng(0)
    vision = {"image_size": 56, "patch_size": 14, "embedding_length": inner, "feed_forward_length": 2 * inner}
    vision |= {"block_count": 2, "projection_dim": width, "attention.head_count": 4}
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (inner, 3, 14, 14),
        "v.position_embd.weight": (16, inner),
        "mm.0.weight": (width, inner),
        "mm.0.bias": (width,),
        "mm.2.weight": (width, width),
        "mm.2.bias": (width,),
    }
    for block in ("v.blk.0", "v.blk.1"):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes |= {f"{block}.{name}.weight": (inner, inner), f"{block}.{name}.bias": (inner,)}
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.weight": (inner,), f"{block}.{name}.bias": (inner,)}
        shapes |= {f"{block}.ffn_up.weight": (2 * inner, inner), f"{block}.ffn_up.bias": (2 * inner,)}
        shapes |= {f"{block}.ffn_down.weight": (inner, 2 * inner), f"{block}.ffn_down.bias": (inner,)}
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    for key, number in vision.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])
    for name, shape in shapes.items():
        writer.add_tensor(name, (0.05 * random.standard_normal(shape)).astype(np.float32))
    _finish(writer)
    return path


def write_adapter(path: Path, width: int, *, strength: float = 0.3) -> Path:
    """Write a LoRA adapter for the queries of a llama model's first blocks.

    Args:
        path: Where to.
        width: ``embedding_length`` of the model that it is for.
        strength: Of its random weights.
    """
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for block in range(2):
        for part, shape in (("lora_a", (4, width)), ("lora_b", (width, 4))):
            weights = strength * random.standard_normal(shape)
            writer.add_tensor(f"blk.{block}.attn_q.weight.{part}", weights.astype(np.float32))
    _finish(writer)
    return path


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
