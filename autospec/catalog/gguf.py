"""Read GGUF files, whole or split, as models, with llama.cpp's defaults for missing keys.

Keys and tensor names are those of llama.cpp b11434 (``src/llama-arch.cpp``, ``src/llama-hparams.cpp``), vocabulary defaults those
of ``llama_vocab::impl::load`` in ``src/llama-vocab.cpp``. Draft heads are recognised as in
``common_speculative_types_from_gguf`` (``common/speculative.cpp``).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES, Keys, LlamaFileType

from autospec.catalog.folders import model_name, part_paths
from autospec.catalog.gguf_header import Header, TensorInfo, read_header
from autospec.catalog.model import NO_TOKENS, Head, Model, Role, Vocabulary, Weights
from autospec.errors import ModelFileError

__all__ = ["read_gguf", "vocabulary_of", "weights_of"]


_NONE = -1
# Type of tokenizer → id of BOS, id of EOS, add BOS, add EOS.
_DEFAULTS: Final[dict[str, tuple[int, int, bool, bool]]] = {
    "llama": (1, 2, True, False),
    "bert": (101, _NONE, True, False),
    "gpt2": (11, 11, False, False),
    "hybriddna": (11, 11, False, False),
    "whitespace": (11, 11, False, False),
    "t5": (_NONE, 1, False, True),
    "plamo2": (1, 2, False, False),
    # llama.cpp overrides a False in the file for this one (pull request 21500).
    "gemma4": (_NONE, _NONE, True, False),
}
# BPE pre-tokenizers that add BOS unless the file says otherwise.
_BPE_ADDING_BOS: Final = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
    | {"jina-v5-nano", "tekken", "chameleon"}
)
_BPE_WITHOUT_BOS: Final = frozenset({"chatglm-bpe", "glm4", "glm5"})


def vocabulary_of(header: Header) -> Vocabulary | None:
    """Return the vocabulary as llama.cpp would load it; ``None`` if the file has none that llama.cpp loads.

    With the tokenizer ``none`` it is of the kind `NO_TOKENS`: so many ids, without texts.
    """
    values = header.values
    kind = str(values.get("tokenizer.ggml.model", ""))
    if kind in ("none", "no_vocab"):
        keys = _Keys(header)
        return Vocabulary(NO_TOKENS, keys.of("vocab_size"), digest="")
    if header.tokens is None:
        return None
    pre = str(values.get("tokenizer.ggml.pre", ""))
    bos, eos, add_bos, add_eos = _DEFAULTS.get(kind, (_NONE, _NONE, False, False))
    if kind == "gpt2":
        add_bos = pre in _BPE_ADDING_BOS
        bos = _NONE if pre in _BPE_WITHOUT_BOS else bos
    size = header.tokens.size
    adds = values.get("tokenizer.ggml.add_bos_token", add_bos)
    ends = values.get("tokenizer.ggml.add_eos_token", add_eos)
    return Vocabulary(
        kind=kind,
        size=size,
        digest=header.tokens.digest,
        blocks=header.tokens.blocks,
        bos=_token_id(values.get("tokenizer.ggml.bos_token_id"), size, bos),
        eos=_token_id(values.get("tokenizer.ggml.eos_token_id"), size, eos),
        add_bos=True if kind == "gemma4" or (kind == "gpt2" and pre == "gemma4") else bool(adds),
        add_eos=bool(ends),
    )


def _token_id(value: object, size: int, default: int) -> int:
    """The id in the file, unless it is outside the vocabulary."""
    default = default if default < size else _NONE
    return value if isinstance(value, int) and 0 <= value < size else default


_BLOCK_TENSOR: Final = re.compile(r"blk\.(\d{1,9})\.")
# Stacked experts (ffn_up_exps, ffn_gate_chexps), and one tensor per expert in files of 2023.
_EXPERT_TENSOR: Final = re.compile(r"_(?:ch)?exps\.|\.ffn_(?:gate|up|down)\.\d+\.")
_OUTPUT: Final = "output.weight"
_EMBEDDING: Final = "token_embd.weight"
# One row of these is looked up per token.
_LOOKED_UP: Final = frozenset({"per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"})

_EMBEDDING_ARCHITECTURES: Final = frozenset(
    {"bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed", "modern-bert"}
    | {"neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder"}
)
# What Hugging Face says of a model; llama.cpp's converter copies it. A model that was trained on for embeddings has the architecture of a
# language model, and not every converter writes the key `pooling_type`.
_EMBEDDING_TAGS: Final = frozenset(
    {"feature-extraction", "sentence-similarity", "sentence-transformers", "text-ranking"}
)
_WRITES_TEXT: Final = "text-generation"
# A layer that gives a text a rank or a class.
_CLASSIFIERS: Final = frozenset({"cls.weight", "cls.output.weight"})
_LANGUAGE_ARCHITECTURES: Final = frozenset(MODEL_ARCH_NAMES.values())
# Tensors for images, for sound, and between them and the text. For llama.cpp they are in a file of their own (clip), and it refuses
# a model with tensors that it does not know. Ollama's converter writes one file (convert/convert_gemma3.go).
_OF_OTHER_MEDIA: Final = ("v.", "a.", "mm.")
_ROLES: Final[dict[str, Role]] = {"adapter": "adapter", "imatrix": "other", "mmproj": "projector"}
# Every n-th layer has full attention if the file does not say otherwise: load_swa_pattern in src/models.
_FULL_ATTENTION_EVERY: Final = {
    "gemma2": 2, "gpt-oss": 2, "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "llama4": 4, "mellum": 4, "muse-glimmer": 4,
    "olmo2": 4, "gemma3n": 5, "gemma3": 6, "plamo3": 8, "cohere2moe": 4, "laguna": 4, "smallthinker": 4,
}  # fmt: skip
# Of these it is the first one of n, of the others the last one.
_FULL_ATTENTION_FIRST: Final = frozenset({"cohere2moe", "laguna", "smallthinker"})
# Tensors of a layer with a state: Mamba, gated delta nets and KDA; LFM2's convolutions; RWKV.
_STATE_TENSOR: Final = re.compile(r"\.(?:ssm_|shortconv\.|time_mix_)")
# llama.cpp decides by the architecture what its cache can do (`llm_arch_is_recurrent` and `llm_arch_is_hybrid`).
# The two named last are unknown to gguf-py 0.19, and no tensor tells it: their states are sums of keys and values.
_STATE_ARCHITECTURES: Final = frozenset(
    MODEL_ARCH_NAMES[architecture]
    for architecture, tensors in MODEL_TENSORS.items()
    if any(_STATE_TENSOR.search(TENSOR_NAMES[t]) for t in tensors)
) | {"deepseek4", "minimax-01"}
# Of these, every n-th layer has a KV cache if the file does not say otherwise (`load_arch_hparams` in src/models).
_KV_CACHE_EVERY: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
_STATE_KEYS: Final = ("ssm.", "wkv.", "kda.", "shortconv.", "attention.recurrent_layers")
# Keys and values of attention, alone, fused, or compressed to one latent vector.
_KV_TENSOR: Final = re.compile(r"blk\.(\d{1,9})\.attn_(?:k|qkv|kv_a_mqa)\.")
# Two fine-tunes of one model can have equal headers; these few bytes distinguish them.
_SAMPLED_TENSORS = 16
_SAMPLE_BYTES = 256
_LARGEST_COUNT = 1 << 40
_MOST_LAYERS = 1 << 16


def read_gguf(path: Path) -> Model:
    """Read a model's metadata from the file, or from all parts of a split model.

    Raises:
        ModelFileError: Damaged, truncated, not GGUF, unreadable, or parts are missing.
    """
    paths = part_paths(path)
    missing = [p for p in paths if not p.exists()]
    if missing and len(paths) > 1:
        which = missing[0].name if len(missing) == 1 else f"{missing[0].name} and {len(missing) - 1} more"
        raise ModelFileError(
            f"{path} is one of {len(paths)} parts, and {which} {'is' if len(missing) == 1 else 'are'} missing.",
            "Download the missing parts into the same folder.",
        )
    headers = [read_header(p) for p in paths]
    first = _Keys(headers[0])
    if not first.architecture and first.text("general.type") in ("", "model"):
        raise ModelFileError(f"{path} does not say which architecture it has.", "Download it again.")
    declared = max(first.number("split.count"), 1)
    if declared != len(paths):
        raise ModelFileError(
            f"{path} is one of the {declared} parts of a split model, and its file name does not say so.",
            "Rename the parts to NAME-00001-of-0000N.gguf.",
        )
    return _model(paths, headers, first)


class _Keys:
    """The first part's metadata; handles the architecture's prefix and wrong types."""

    def __init__(self, header: Header) -> None:
        self.values = header.values
        self.architecture = self.text("general.architecture")

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """A scalar, or the largest entry of a per-layer array."""
        return max(self.entries(key), default=default)

    def of(self, key: str, default: int = 0) -> int:
        return self.number(f"{self.architecture}.{key}", default)

    def has(self, prefix: str) -> bool:
        return any(k.startswith(f"{self.architecture}.{prefix}") for k in self.values)

    def per_layer(self, key: str, layers: int, default: int) -> list[int]:
        """The array's entries, one per layer, or the scalar repeated."""
        entries = self.entries(f"{self.architecture}.{key}") or [default]
        if len(entries) == 1:
            return entries * layers
        return (entries + [entries[-1]] * layers)[:layers]

    def entries(self, key: str) -> list[int]:
        """The counts under a key, one or several."""
        value = self.values.get(key)
        entries = value if isinstance(value, list) else [value]
        # All keys are counts: negative or infinite values and other types count as missing.
        return [int(v) for v in entries if isinstance(v, int | float) and 0 <= v < _LARGEST_COUNT]


def _model(paths: tuple[Path, ...], headers: list[Header], keys: _Keys) -> Model:
    tensors = [t for h in headers for t in h.tensors]
    blocks = keys.of("block_count")
    head = _head(keys, tensors, blocks)
    has_mtp_weights = any(".nextn." in t.name or t.name.startswith("nextn.") for t in tensors)
    mtp_layers = keys.of("nextn_predict_layers") if has_mtp_weights else 0
    trunk = blocks if head else max(blocks - keys.of("nextn_predict_layers"), 0)
    experts = keys.of("expert_count")
    active_experts = min(keys.of("expert_used_count", experts), experts)
    kv, kv_sliding, window = _kv(keys, trunk)
    parameters = sum(t.elements for t in tensors)
    idle = 1 - active_experts / experts if experts else 0.0
    expert_parameters = sum(t.elements for t in tensors if _EXPERT_TENSOR.search(t.name))
    return Model(
        name=model_name(paths[0]),
        path=paths[0],
        format="gguf",
        source="folder",
        architecture=keys.architecture,
        parameters=parameters,
        active_parameters=parameters - round(expert_parameters * idle),
        experts=experts,
        active_experts=active_experts,
        quantization=_quantization(keys, tensors),
        size_bytes=sum(h.file_size for h in headers),
        files=paths,
        context_length=keys.of("context_length"),
        layers=trunk,
        embedding_length=keys.of("embedding_length"),
        kv_bytes_per_token=kv,
        kv_sliding_bytes_per_token=kv_sliding,
        sliding_window=window,
        bytes_per_token=_bytes_per_token(tensors, idle, blocks if head else trunk),
        vocab=vocabulary_of(headers[0]),
        mtp_layers=mtp_layers,
        head=head,
        has_recurrent_state=_has_state(keys, tensors, trunk),
        role=_role(keys, tensors, headers[0], head),
        basename=keys.text("general.basename"),
        fingerprint=_fingerprint(paths, headers),
        temperature=_temperature(headers[0]),
    )


def _has_state(keys: _Keys, tensors: Sequence[TensorInfo], layers: int) -> bool:
    """Whether some layers have a state instead of a KV cache, or beside it."""
    if keys.architecture in _STATE_ARCHITECTURES or any(_STATE_TENSOR.search(t.name) for t in tensors):
        return True
    # Of an architecture that is unknown here, a key tells it, if some layer has no attention: llama.cpp's converter also
    # writes the keys of Mamba for those Granite 4 of which every layer has attention.
    if not any(keys.has(prefix) for prefix in _STATE_KEYS):
        return False
    attention = {int(m[1]) for t in tensors if (m := _KV_TENSOR.match(t.name))}
    return any(layer not in attention for layer in range(layers))


def _temperature(header: Header) -> float | None:
    """The temperature of requests that name none: llama-server takes it from the file where no `--temp` is given."""
    told = header.values.get(Keys.General.SAMPLING_TEMP)
    if not isinstance(told, int | float) or isinstance(told, bool) or not math.isfinite(told):
        return None
    return round(max(0.0, float(told)), 4)  # it is stored in 32 bits; llama.cpp takes one below 0 for greedy


def _role(keys: _Keys, tensors: Sequence[TensorInfo], header: Header, head: Head | None) -> Role:
    kind = keys.text("general.type")
    role: Role = "text"
    if kind not in ("", "model"):
        role = _ROLES.get(kind, "other")
    elif keys.architecture == "clip":
        role = "projector"
    elif not tensors:
        role = "vocabulary"
    elif _embeds(keys, tensors):
        role = "embedding"
    elif head is None and header.tokens is None and keys.architecture not in _LANGUAGE_ARCHITECTURES:
        # Image and speech models are GGUF files too.
        role = "other"
    elif any(t.name.startswith(_OF_OTHER_MEDIA) for t in tensors):
        role = "combined"
    return role


def _embeds(keys: _Keys, tensors: Sequence[TensorInfo]) -> bool:
    """True for a model that makes embeddings or ranks texts, and writes none."""
    told = keys.values.get(Keys.General.TAGS)
    tags = set(told) if isinstance(told, list) else set()
    return (
        keys.architecture in _EMBEDDING_ARCHITECTURES
        or keys.of("pooling_type") > 0
        or (bool(tags & _EMBEDDING_TAGS) and _WRITES_TEXT not in tags)
        or any(t.name in _CLASSIFIERS for t in tensors)
    )


def _head(keys: _Keys, tensors: Sequence[TensorInfo], blocks: int) -> Head | None:
    """The draft head, if the file is nothing but one."""
    layers = tuple(keys.entries(f"{keys.architecture}.target_layers"))
    names = {t.name for t in tensors}
    if keys.architecture == "eagle3":
        return Head("eagle3", keys.of("target_hidden_size"), layers)
    if keys.architecture == "dflash":
        # The encoder takes len(target_layers) * embedding_length inputs, so the main model has the same size.
        hidden = keys.of("embedding_length")
        block = keys.of("block_size", 16)
        if "markov_w1.weight" not in names:
            return Head("dflash", hidden, layers, max(block - 1, 1))
        anchored = keys.values.get("dflash.sample_from_anchor", True) is not False
        confident = keys.values.get("dflash.has_confidence_head", True) is not False
        return Head("dspark", hidden, layers, max(block - (not anchored), 1), takes_p_min=confident)
    mtp = keys.of("nextn_predict_layers")
    in_blocks = {int(m[1]) for n in names if (m := _BLOCK_TENSOR.match(n))}
    if mtp and in_blocks and min(in_blocks) >= blocks - mtp:
        # `convert_hf_to_gguf.py --mtp`, or an architecture of MTP layers only (gemma4-assistant).
        hidden = keys.of("embedding_length_out") or keys.of("embedding_length")
        # Several heads are chained, one per proposal (`chain_heads` in common/speculative.cpp). An assistant shares the main
        # model's cache, and all its layers are one head.
        chained = mtp > 1 and not keys.architecture.endswith("-assistant")
        return Head("mtp", hidden, n_max=mtp if chained else 0)
    return None


def _kv(keys: _Keys, layers: int) -> tuple[int, int, int]:
    """Bytes per token of an f16 KV cache, the part with a sliding window, and the window in tokens."""
    if layers > _MOST_LAYERS:
        return 0, 0, 0
    heads = keys.of("attention.head_count")
    default = keys.of("embedding_length") // heads if heads else 0
    key_length = keys.of("attention.key_length", default)
    # llama.cpp keeps only K for multi-head latent attention.
    is_mla = keys.of("attention.key_length_mla") > 0
    value_length = 0 if is_mla else keys.of("attention.value_length", default)
    heads_kv = keys.per_layer("attention.head_count_kv", layers, heads)
    window = keys.of("attention.sliding_window")
    slides = _sliding_layers(keys, layers) if window else [False] * layers
    shared = keys.of("attention.shared_kv_layers")
    has_state = _state_layers(keys, layers)
    wide = 2 * (key_length + value_length)
    narrow = 2 * (
        keys.of("attention.key_length_swa", key_length) + keys.of("attention.value_length_swa", value_length)
    )
    total = sliding = 0
    for layer in range(layers - shared):
        if has_state[layer]:
            continue
        size = heads_kv[layer] * (narrow if slides[layer] else wide)
        total += size
        sliding += size if slides[layer] else 0
    return total, sliding, window if sliding else 0


def _state_layers(keys: _Keys, layers: int) -> list[bool]:
    """Which layers keep a state and no KV cache, as far as a key says so; a number of 0 KV heads says it, too."""
    value = keys.values.get(f"{keys.architecture}.attention.recurrent_layers")
    if isinstance(value, list) and len(value) >= layers:
        return [bool(v) for v in value[:layers]]
    every = keys.of("full_attention_interval", _KV_CACHE_EVERY.get(keys.architecture, 1))
    return [bool(every) and (i + 1) % every != 0 for i in range(layers)]


def _sliding_layers(keys: _Keys, layers: int) -> list[bool]:
    value = keys.values.get(f"{keys.architecture}.attention.sliding_window_pattern")
    if isinstance(value, list) and len(value) >= layers:
        return [bool(v) for v in value[:layers]]
    every = value if isinstance(value, int) else _FULL_ATTENTION_EVERY.get(keys.architecture, 1)
    # 0 means a window everywhere, and 1 full attention everywhere, which can only overestimate the memory.
    full = 0 if keys.architecture in _FULL_ATTENTION_FIRST else every - 1
    return [not every or i % every != full for i in range(layers)]


def _bytes_per_token(tensors: Sequence[TensorInfo], idle: float, end: int) -> int:
    """Weights that decoding reads: experts by their share, without looked-up tables and MTP layers."""
    looked_up = _looked_up(tensors)
    total = 0.0
    for tensor in tensors:
        block = _BLOCK_TENSOR.match(tensor.name)
        if tensor.name in looked_up or (end and block and int(block[1]) >= end):
            continue
        share = 1 - idle if _EXPERT_TENSOR.search(tensor.name) else 1.0
        total += share * _size(tensor)
    return round(total)


def _looked_up(tensors: Sequence[TensorInfo]) -> set[str]:
    """The tables of which a token reads one row."""
    # Without an output matrix, the embedding is also that and is read whole.
    has_output = any(t.name == _OUTPUT for t in tensors)
    return set(_LOOKED_UP) | ({_EMBEDDING} if has_output else set())


def weights_of(model: Model) -> Weights:
    """Read the headers of a model's files again, and add up its tensors by how a pass reads them.

    Raises:
        ModelFileError: A file cannot be read any more.
    """
    tensors = [t for path in model.files for t in read_header(path).tensors]
    looked_up = _looked_up(tensors)
    share = model.active_experts / model.experts if model.experts else 1.0
    # The blocks after the trunk are MTP layers; a head consists of nothing else.
    end = 0 if model.head else model.layers
    parts = dict.fromkeys(("shared", "experts", "row", "output", "mtp"), 0.0)
    multiplied = 0.0
    for tensor in tensors:
        size, block = _size(tensor), _BLOCK_TENSOR.match(tensor.name)
        routed = bool(_EXPERT_TENSOR.search(tensor.name))
        if tensor.name in looked_up:
            parts["row"] += size / max(tensor.elements // tensor.shape[0], 1)
            continue
        if end and block and int(block[1]) >= end:
            parts["mtp"] += size * (share if routed else 1.0)
            continue
        parts["experts" if routed else "shared"] += size
        multiplied += tensor.elements * (share if routed else 1.0)
        if tensor.name == _OUTPUT or (tensor.name == _EMBEDDING and _EMBEDDING not in looked_up):
            parts["output"] += size
    total = {name: round(size) for name, size in parts.items()}
    return Weights(
        shared_bytes=total["shared"],
        expert_bytes=total["experts"],
        row_bytes=total["row"],
        output_bytes=total["output"],
        mtp_bytes=total["mtp"],
        multiplied=round(multiplied),
    )


def _size(tensor: TensorInfo) -> int:
    return tensor.n_bytes if tensor.n_bytes is not None else tensor.elements // 2


def _quantization(keys: _Keys, tensors: Iterable[TensorInfo]) -> str:
    number = keys.number("general.file_type", -1)
    try:
        name = LlamaFileType(number).name
    except ValueError:
        name = "GUESSED"
    if name != "GUESSED":
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    by_type: Counter[str] = Counter()
    for tensor in tensors:
        by_type[tensor.type_name] += _size(tensor)
    return max(by_type, key=lambda t: by_type[t], default="")


def _fingerprint(paths: Iterable[Path], headers: Iterable[Header]) -> str:
    digest = hashlib.sha256()
    for path, header in zip(paths, headers, strict=True):
        digest.update(header.digest + header.file_size.to_bytes(8, "little"))
        step = max(len(header.tensors) // _SAMPLED_TENSORS, 1)
        try:
            with path.open("rb") as file:
                for tensor in header.tensors[::step]:
                    file.seek(header.data_offset + tensor.offset + _size(tensor) // 2)
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()[:32]
