"""Read MLX and Hugging Face model folders: config.json, tokenizer.json, headers of the safetensors files; never the weights.

`mlx_lm.convert` writes such folders, and `mlx_lm` also loads plain Hugging Face folders.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from autospec.catalog.folders import printable
from autospec.catalog.model import BLOCK, FIRST_CHECKED_ID, Model, Role, Vocabulary, Weights
from autospec.errors import ModelFileError

__all__ = ["read_mlx", "read_tokens", "vocabulary_of", "weights_of"]


# Larger than any vocabulary; limits a damaged id.
_MAX_TOKENS: Final = 1 << 22


def vocabulary_of(folder: Path, config: dict[str, Any]) -> Vocabulary | None:
    """Return the vocabulary's digests; ``None`` without a tokenizer that can be read. Raises `ModelFileError`."""
    kind, tokens = _tokenizer(folder)
    if not tokens:
        return None
    settings = _optional(folder / "tokenizer_config.json")
    ids = {text: i for i, text in enumerate(tokens)}
    encoded = [len(t).to_bytes(8, "little") + t for t in tokens]
    edges = [i for i in (FIRST_CHECKED_ID, *range(BLOCK, len(tokens) + 1, BLOCK)) if i <= len(tokens)]
    return Vocabulary(
        kind=kind,
        size=len(tokens),
        digest=hashlib.sha256(b"".join(encoded)).hexdigest(),
        blocks=tuple(hashlib.sha256(b"".join(encoded[a:b])).hexdigest()[:16] for a, b in pairwise(edges)),
        bos=_special("bos", settings, config, ids),
        eos=_special("eos", settings, config, ids),
        add_bos=settings.get("add_bos_token") is True,
        add_eos=settings.get("add_eos_token") is True,
    )


def read_tokens(folder: Path) -> list[bytes]:
    """Read the text of every token, by id; an unused id has an empty text. Raises `ModelFileError`."""
    return _tokenizer(folder)[1]


def _tokenizer(folder: Path) -> tuple[str, list[bytes]]:
    """The type of tokenizer and its tokens, from the first of the files that say them; nothing without one."""
    # ``tokenizer.json`` has everything. Tokenizers in Python have ``vocab.json`` with ``merges.txt``, or a file of tiktoken; their
    # other tokens stand in ``added_tokens.json`` or ``tokenizer_config.json``. SentencePiece's ``tokenizer.model`` is not read.
    path = folder / "tokenizer.json"
    if path.exists():
        document = read_json(path)
        model = document.get("model")
        kind = printable(str(model.get("type") or "")) if isinstance(model, dict) else ""
        return kind, _texts(path, document)
    path = folder / "vocab.json"
    if path.exists():
        texts = {i: _bytes(text) for text, i in read_json(path).items() if isinstance(i, int)}
        return "BPE", _in_order(path, texts | _added_tokens(folder))
    for path in (*sorted(folder.glob("*.tiktoken")), folder / "tiktoken.model"):
        if path.is_file():
            return "tiktoken", _in_order(path, _tiktoken(path) | _added_tokens(folder))
    return "", []


def _added_tokens(folder: Path) -> dict[int, bytes]:
    texts = {
        i: _bytes(text) for text, i in _optional(folder / "added_tokens.json").items() if isinstance(i, int)
    }
    decoder = _optional(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else []:
        if number.isdecimal() and isinstance(entry, dict):
            texts[int(number)] = _bytes(str(entry.get("content", "")))
    return texts


def _tiktoken(path: Path) -> dict[int, bytes]:
    """One token per line: its bytes in base64, a space, its id."""
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        return {int(number): base64.b64decode(text, validate=True) for text, number in lines}
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ModelFileError(
            f"{path} is damaged: it is not a tiktoken file.", "Download it again."
        ) from error


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that must hold one JSON object; raises `ModelFileError`."""
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise ModelFileError(f"{path} is not a file.", "Remove it, and download the model again.")
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: it is not JSON.", "Download it again.") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path} is damaged: it does not hold a JSON object.", "Download it again.")
    return document


def _texts(path: Path, document: dict[str, Any]) -> list[bytes]:
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    texts: dict[int, str] = {}
    if isinstance(vocab, dict):
        texts = {i: text for text, i in vocab.items() if isinstance(i, int)}
    elif isinstance(vocab, list):
        # Unigram: [text, score] in the order of the ids.
        texts = {i: str(e[0]) if isinstance(e, list) and e else "" for i, e in enumerate(vocab)}
    added = document.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            texts[entry["id"]] = str(entry.get("content", ""))
    return _in_order(path, {i: _bytes(text) for i, text in texts.items()})


def _in_order(path: Path, texts: dict[int, bytes]) -> list[bytes]:
    if not texts:
        raise ModelFileError(f"{path} is damaged: it has no tokens.", "Download it again.")
    if min(texts) < 0 or max(texts) >= _MAX_TOKENS:
        raise ModelFileError(f"{path} is damaged: it has impossible token ids.", "Download it again.")
    return [texts.get(i, b"") for i in range(max(texts) + 1)]


def _special(name: str, settings: dict[str, Any], config: dict[str, Any], ids: dict[bytes, int]) -> int:
    token = settings.get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and (found := ids.get(_bytes(text))) is not None:
        return found
    number = config.get(f"{name}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) else -1


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# mlx_lm stacks experts (switch_mlp, switch_glu); Hugging Face numbers or stacks them under "experts".
_EXPERT: Final = re.compile(r"\.(?:switch_mlp|switch_glu|experts)\.")
_MTP: Final = re.compile(r"(?:^|\.)mtp(?:_layers)?\.")
_AGAIN: Final = "Download it again."
_MAX_HEADER: Final = 100_000_000  # the safetensors format's own limit

_TEXT_CLASSES: Final = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_NOT_TEXT: Final = frozenset({"whisper", "clip", "siglip", "t5", "wav2vec2", "speecht5", "vits"})
_RECURRENT_LAYERS: Final = frozenset(
    {"linear_attention", "mamba", "recurrent", "conv", "conv_mixer", "ssm", "rglru"}
)
_RECURRENT_TYPES: Final = re.compile(
    r"mamba|rwkv|recurrent|jamba|falcon_h1|nemotron_h|plamo2|lfm2|kimi_linear"
)
# The two tables are read off the `make_cache` methods in mlx_lm/models of mlx-lm 0.32.2. A model that is not in them has plain
# caches there, or its config.json lists the kinds of its layers.
# Types with an `ArraysCache`, or a cache of their own that is not trimmable (deepseek_v41), in some layers of every model.
_STATE_TYPES: Final = frozenset(
    {"baichuan_m1", "bailing_hybrid", "bailing_moe_linear", "bailing_moe_v3", "deepseek_v41"}
    | {"deepseek_v41_text", "falcon_h1", "falcon_mamba", "jamba", "kimi_k3", "kimi_linear", "lfm2", "lfm2-vl"}
    | {"lfm2_moe", "longcat_flash_ngram", "mamba", "mamba2", "nemotron_h", "olmo_hybrid", "plamo2", "qwen3_5"}
    | {"prism_hadamard_qwen35", "qwen3_5_moe", "qwen3_next", "recurrent_gemma", "rwkv7"}
)
# Types with a `RotatingKVCache` or a `ChunkedKVCache` where config.json has no list of layers: the key of the window, and a usual
# window for a config.json without the key.
_WINDOW_TYPES: Final = {
    "afmoe": ("sliding_window", 2048), "cohere2": ("sliding_window", 4096), "gemma3": ("sliding_window", 512),
    "gemma3_text": ("sliding_window", 512), "gemma3n": ("sliding_window", 512), "gemma3n_text": ("sliding_window", 512),
    "gemma4": ("sliding_window", 512), "gemma4_text": ("sliding_window", 512),
    "gemma4_unified": ("sliding_window", 512), "gpt_oss": ("sliding_window", 128),
    "iquestloopcoder": ("loop_window_size", 64), "llama4": ("attention_chunk_size", 8192),
    "mellum": ("sliding_window", 1024), "mimo_v2_flash": ("sliding_window_size", 128),
    "muse_glimmer": ("sliding_window", 2048), "muse_spark": ("sliding_window", 2048), "olmo3": ("sliding_window", 4096),
    "plamo3": ("window_size", 2048), "spark2_5": ("sliding_window", 4096), "step3p5": ("sliding_window", 512),
}  # fmt: skip
# These have such caches whatever config.json lists.
_ALWAYS_WINDOWED: Final = frozenset({"iquestloopcoder", "llama4", "mimo_v2_flash", "plamo3"})


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder, sorted by name, without adapters."""
    files = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith(".") and p.is_file())
    return tuple(p for p in files if not p.name.startswith(("adapter", "adapters"))) or tuple(files)


def read_mlx(path: Path) -> Model:
    """Read a model folder's metadata. Raises `ModelFileError` if it is damaged, truncated, incomplete or unreadable."""
    config = read_json(path / "config.json")
    files = weight_files(path)
    if not files:
        raise ModelFileError(f"{path} has no safetensors files.", "Download the model again.")
    _check_complete(path, files)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tensors = [t for file in files for t in _header(file, digest)]
    text = _text_config(config)
    layers = _count(text, "num_hidden_layers", "n_layers", "n_layer", "num_layers")
    experts = _count(text, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    active_experts = min(
        _count(text, "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts")
        or experts,
        experts,
    )
    sizes = _parameters(tensors, config)
    idle = 1 - active_experts / experts if experts else 0.0
    idle_parameters = idle * sum(n for t, n in sizes if _EXPERT.search(t.name))
    parameters = sum(n for _, n in sizes)
    types = {str(c.get("model_type") or "") for c in (config, text)}
    kv, sliding, window = _kv(text, layers)
    return Model(
        name=path.name,
        path=path,
        format="mlx",
        source="folder",
        architecture=printable(str(config.get("model_type") or text.get("model_type") or "")),
        parameters=parameters,
        active_parameters=parameters - round(idle_parameters),
        experts=experts,
        active_experts=active_experts,
        quantization=printable(_quantization(tensors, config)),
        size_bytes=sum(f.stat().st_size for f in files),
        files=files,
        context_length=_count(
            text, "max_position_embeddings", "model_max_length", "n_positions", "max_seq_len"
        ),
        layers=layers,
        embedding_length=_count(text, "hidden_size", "n_embd", "d_model"),
        kv_bytes_per_token=kv,
        kv_sliding_bytes_per_token=sliding,
        sliding_window=window or _hidden_window(text, types, layers),
        bytes_per_token=_bytes_per_token(tensors, idle),
        vocab=vocabulary_of(path, text | config),
        mtp_layers=_count(text, "num_nextn_predict_layers", "mtp_num_hidden_layers")
        if any(_MTP.search(t.name) or _beyond(t.name, layers) for t in tensors)
        else 0,
        head=None,
        has_recurrent_state=bool(types & _STATE_TYPES) or _is_recurrent(text),
        role=_role(path, config),
        basename="",
        fingerprint=digest.hexdigest()[:32],
    )


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration with vision or audio."""
    for key in ("text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, dict):
            return {**config, **inner}
    return config


def _check_complete(path: Path, files: Sequence[Path]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    weight_map = read_json(index).get("weight_map")
    wanted = {str(v) for v in weight_map.values()} if isinstance(weight_map, dict) else set()
    missing = sorted(wanted - {f.name for f in files})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelFileError(
            f"{path} is incomplete: {missing[0]}{more} missing.", "Download the model again."
        )


def _header(path: Path, digest: Any) -> list[_Tensor]:
    """Tensors of one safetensors file: eight bytes of header length, the header as JSON, the weights."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise ModelFileError(f"{path} is truncated or damaged: it ends within its header.", _AGAIN)
            raw = file.read(length)
            document = json.loads(raw)
            digest.update(raw + size.to_bytes(8, "little"))
            tensors = _entries(path, document)
            needed = 8 + length + sum(t.n_bytes for t in tensors)
            if needed > size:
                raise ModelFileError(f"{path} is truncated: it has {size} of {needed} bytes.", _AGAIN)
            # Two fine-tunes of one model can have equal headers; a few bytes of the weights distinguish them.
            for part in range(1, 17):
                file.seek(8 + length + (size - 8 - length) * part // 17)
                digest.update(file.read(256))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: its header is not JSON.", _AGAIN) from error
    return tensors


def _entries(path: Path, document: Any) -> list[_Tensor]:
    tensors = []
    try:
        for name, entry in document.items():
            if name == "__metadata__":
                continue
            begin, end = (int(v) for v in entry["data_offsets"])
            shape = tuple(int(v) for v in entry["shape"])
            tensors.append(_Tensor(str(name), str(entry["dtype"]), shape, end - begin))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{path} is damaged: its header is malformed.", _AGAIN) from error
    if any(min(*t.shape, t.n_bytes, 0) < 0 for t in tensors):
        raise ModelFileError(f"{path} is damaged: it has tensors of a negative size.", _AGAIN)
    return tensors


def _parameters(tensors: Sequence[_Tensor], config: dict[str, Any]) -> list[tuple[_Tensor, int]]:
    """Each tensor's number of weights, without scales and biases of packed tensors."""
    names = {t.name for t in tensors}
    result = []
    for tensor in tensors:
        base, _, leaf = tensor.name.rpartition(".")
        packed = f"{base}.scales" in names
        if packed and leaf in ("scales", "biases"):
            continue
        elements = math.prod(tensor.shape)
        if packed and leaf == "weight" and tensor.dtype == "U32":
            elements = elements * 32 // _bits(config, base)
        result.append((tensor, elements))
    return result


def _bits(config: dict[str, Any], layer: str) -> int:
    """Bits per weight of a layer; `mlx_lm` stores exceptions by layer name."""
    settings = _quantization_settings(config)
    own = settings.get(layer)
    bits = (own if isinstance(own, dict) else settings).get("bits", 4)
    return bits if isinstance(bits, int) and 0 < bits <= 32 else 4


def _quantization_settings(config: dict[str, Any]) -> dict[str, Any]:
    for key in ("quantization", "quantization_config"):
        settings = config.get(key)
        if isinstance(settings, dict) and "bits" in settings:
            return settings
    return {}


def _quantization(tensors: Sequence[_Tensor], config: dict[str, Any]) -> str:
    if _quantization_settings(config):
        mode = str(_quantization_settings(config).get("mode") or "affine")
        bits = f"{_bits(config, '')}-bit"
        return bits if mode == "affine" else mode
    by_dtype: Counter[str] = Counter()
    for tensor in tensors:
        by_dtype[tensor.dtype] += tensor.n_bytes
    dtype = max(by_dtype, key=lambda d: by_dtype[d], default="")
    return _DTYPES.get(dtype, dtype.lower())


def _bytes_per_token(tensors: Sequence[_Tensor], idle: float) -> int:
    has_head = any("lm_head." in t.name for t in tensors)
    total = 0.0
    for tensor in tensors:
        if _MTP.search(tensor.name) or (has_head and "embed_tokens." in tensor.name):
            continue
        total += tensor.n_bytes * (1 - idle if _EXPERT.search(tensor.name) else 1.0)
    return round(total)


def weights_of(model: Model) -> Weights:
    """Read the headers of a folder's files again, and add up its tensors by how a pass reads them.

    mlx_lm does not draft with MTP layers, so that they are left out.

    Raises:
        ModelFileError: A file cannot be read any more.
    """
    config = read_json(model.path / "config.json")
    tensors = [t for file in model.files for t in _header(file, hashlib.sha256())]
    has_head = any("lm_head." in t.name for t in tensors)
    share = model.active_experts / model.experts if model.experts else 1.0
    shared = experts = row = output = 0.0
    for tensor in tensors:
        embeds = "embed_tokens." in tensor.name
        if _MTP.search(tensor.name):
            continue
        if has_head and embeds:
            row += tensor.n_bytes / max(tensor.shape[0], 1) if tensor.shape else 0.0
        elif _EXPERT.search(tensor.name):
            experts += tensor.n_bytes
        else:
            shared += tensor.n_bytes
            output += tensor.n_bytes if embeds or "lm_head." in tensor.name else 0
    multiplied = sum(
        n * (share if _EXPERT.search(t.name) else 1.0)
        for t, n in _parameters(tensors, config)
        if not _MTP.search(t.name) and not (has_head and "embed_tokens." in t.name)
    )
    return Weights(
        shared_bytes=round(shared),
        expert_bytes=round(experts),
        row_bytes=round(row),
        output_bytes=round(output),
        multiplied=round(multiplied),
    )


def _kv(text: dict[str, Any], layers: int) -> tuple[int, int, int]:
    heads = _count(text, "num_attention_heads", "n_head", "n_heads")
    heads_kv = _count(text, "num_key_value_heads", "n_head_kv") or heads
    head_size = _count(text, "head_dim") or (_count(text, "hidden_size") // heads if heads else 0)
    size = 2 * 2 * heads_kv * head_size
    latent = _count(text, "kv_lora_rank")
    if latent:
        # Multi-head latent attention keeps one compressed vector and the rotary part.
        size = 2 * (latent + _count(text, "qk_rope_head_dim"))
    kinds = _layer_kinds(text, layers)
    window = _count(text, "sliding_window")
    sliding = size * sum(k == "sliding_attention" for k in kinds) if window else 0
    total = size * sum(k not in _RECURRENT_LAYERS for k in kinds)
    return total, sliding, window if sliding else 0


def _hidden_window(text: dict[str, Any], types: set[str], layers: int) -> int:
    """The window of caches that the type of the model has, though its layers in config.json do not show it; else 0."""
    listed = _listed_kinds(text, layers)
    for kind in sorted(types & _WINDOW_TYPES.keys()):
        if not listed or "sliding_attention" in listed or kind in _ALWAYS_WINDOWED:
            key, default = _WINDOW_TYPES[kind]
            return _count(text, key, "sliding_window") or default
    return 0


def _listed_kinds(text: dict[str, Any], layers: int) -> list[str]:
    kinds = text.get("layer_types") or text.get("layers_block_type")
    return [str(k) for k in kinds] if isinstance(kinds, list) and len(kinds) == layers else []


def _layer_kinds(text: dict[str, Any], layers: int) -> list[str]:
    layers = min(layers, 1 << 16)
    if kinds := _listed_kinds(text, layers):
        return kinds
    interval = _count(text, "full_attention_interval")
    pattern = _count(text, "sliding_window_pattern")
    letters = text.get("sliding_window_pattern")
    if isinstance(letters, str) and letters:
        # exaone4: "LLLG", L for a layer with a window, repeated over all layers.
        kind = {"L": "sliding_attention"}
        return [kind.get(letters[i % len(letters)], "full_attention") for i in range(layers)]
    if interval:
        return ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)]
    if pattern:
        return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]
    return ["full_attention"] * layers


def _is_recurrent(text: dict[str, Any]) -> bool:
    layers = _count(text, "num_hidden_layers", "n_layers", "n_layer")
    kinds = _layer_kinds(text, layers)
    return bool(_RECURRENT_TYPES.search(str(text.get("model_type", "")))) or any(
        k in _RECURRENT_LAYERS for k in kinds
    )


def _role(folder: Path, config: dict[str, Any]) -> Role:
    classes = config.get("architectures")
    model_type = str(config.get("model_type"))
    if model_type in _NOT_TEXT:
        return "other"
    # nomic_bert, modernbert, xlm-roberta …; sentence-transformers writes the file beside any model.
    if "bert" in model_type or (folder / "modules.json").exists():
        return "embedding"
    if isinstance(classes, list) and classes and not str(classes[0]).endswith(_TEXT_CLASSES):
        return "embedding" if str(classes[0]).endswith("Model") else "other"
    return "text"


def _beyond(name: str, layers: int) -> bool:
    """True for a tensor of a layer after the last one, where DeepSeek and GLM keep their MTP layers."""
    match = re.search(r"\.layers\.(\d+)\.", name)
    return bool(match and layers and int(match[1]) >= layers)


def _count(config: dict[str, Any], *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 40:
            return int(value)
    return 0
