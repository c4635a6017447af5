"""A model on this disk as its metadata describes it, and the context length, temperature and projector in a server's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from autospec.cells import ModelRef, options_in, values_of

__all__ = [
    "BLOCK",
    "FIRST_CHECKED_ID",
    "NO_TOKENS",
    "USUAL_TEMPERATURE",
    "Format",
    "Head",
    "Model",
    "Role",
    "Vocabulary",
    "Weights",
    "context_of",
    "loads_projector",
    "names_context",
    "names_projector",
    "temperature_of",
    "without_context",
    "without_projector",
]

Format = Literal["gguf", "mlx"]
# The catalogue holds only text models.
Role = Literal["text", "embedding", "projector", "adapter", "vocabulary", "combined", "other"]

# llama.cpp compares vocabularies from this token id on (see autospec.catalog.vocabulary).
FIRST_CHECKED_ID: Final = 5
# `Vocabulary.kind` of a GGUF file with the tokenizer "none": llama.cpp knows how many ids there are, and no texts.
NO_TOKENS: Final = "none"
# Tokens per digest in `Vocabulary.blocks`.
BLOCK: Final = 8192
# What users sample with where nothing says it: the default of llama-server and of most clients.
USUAL_TEMPERATURE: Final = 0.8

# A sliding-window cache holds the window and one micro-batch (llama.cpp's default -ub).
_MICRO_BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The properties of a vocabulary that a main model and its draft must share.

    Attributes:
        kind: ``tokenizer.ggml.model`` (``gpt2``, ``llama`` …) or the type in ``tokenizer.json``.
        size: Number of tokens.
        digest: SHA-256 over every token's text, in order.
        blocks: Digests of tokens 5…8191, 8192…16383 and so on, whole blocks only. They distinguish most vocabularies
            without reading a file again.
        bos: Id of the token that begins a text, or -1.
        eos: Id of the token that ends a text, or -1.
        add_bos: True if the tokenizer puts `bos` before a prompt.
        add_eos: True if the tokenizer puts `eos` after a prompt.
    """

    kind: str
    size: int
    digest: str
    blocks: tuple[str, ...] = ()
    bos: int = -1
    eos: int = -1
    add_bos: bool = False
    add_eos: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """Requirements of a draft head on its main model.

    `hidden_size` is 0 if the file does not say it; `target_layers` are the layers that the head reads; `n_max` is 0 without a limit;
    `takes_p_min` is False if llama.cpp refuses a p-min above 0 with it.
    """

    kind: Literal["eagle3", "dflash", "dspark", "mtp"]
    hidden_size: int = 0
    target_layers: tuple[int, ...] = ()
    n_max: int = 0
    takes_p_min: bool = True


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights by how a pass reads them, added up tensor by tensor.

    Attributes:
        shared_bytes: Read once in every pass, however many tokens it computes; the output matrix is among them.
        expert_bytes: All routed experts of all layers. A token reads `active_experts` of `experts` of them.
        row_bytes: What one token reads of the tables in which it looks up one row, such as the embedding.
        output_bytes: The output matrix, which is the embedding where the file has no other; 0 if the file has none.
        mtp_bytes: What one proposal of the model's own MTP layers reads, without the output matrix.
        multiplied: Numbers that a token is multiplied with: shared weights and the chosen experts.
    """

    shared_bytes: int
    expert_bytes: int = 0
    row_bytes: int = 0
    output_bytes: int = 0
    mtp_bytes: int = 0
    multiplied: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """One model, from metadata alone.

    Attributes:
        name: Catalogue name: file stem without split suffix, Hugging Face repository or folder of an MLX model,
            ``name:tag`` of Ollama.
        path: The file (first part of a split one) or the folder.
        format: ``gguf`` or ``mlx``.
        source: Where it was found: ``llama.cpp cache``, ``Hugging Face cache``, ``LM Studio``, ``Ollama``, ``folder``.
        architecture: ``general.architecture`` or ``model_type``.
        parameters: Number of weights.
        active_parameters: Weights used for one token: all of a dense model, the shared ones and the chosen experts of a MoE.
        experts: Experts per layer; 0 for a dense model.
        active_experts: Experts chosen per token.
        quantization: ``Q4_K_M``, ``F16`` …; MLX: ``4-bit``, ``bfloat16`` …
        size_bytes: Size of all files together.
        files: Every weight file, in order.
        context_length: Trained context in tokens; 0 if unknown.
        layers: Layers of the trunk, without MTP layers.
        embedding_length: Hidden size.
        kv_bytes_per_token: One token's part of an f16 KV cache, over all layers that have one.
        kv_sliding_bytes_per_token: The part of it in layers with a sliding window.
        sliding_window: Tokens that those layers keep; 0 without such layers.
        bytes_per_token: Bytes of weights read to decode one token: the cost of a token, since decoding is memory-bound.
        vocab: The vocabulary; ``None`` if the files have none.
        mtp_layers: Multi-token-prediction layers with weights in the files.
        head: Requirements of a draft head; ``None`` for a whole model.
        has_recurrent_state: True if some layers have a state instead of a KV cache (Mamba, RWKV, hybrids).
        role: ``text``, or what it is instead of a language model.
        basename: ``general.basename``, or empty.
        fingerprint: Hash of metadata, tensor infos, sizes and a few bytes of some tensors; not of the path.
        aliases: Other names under which the same file was found, and those of the config.
        adapters: Digest of the LoRA adapters that the config gives it, see `autospec.catalog.resolve`; empty without any.
        temperature: Of requests that name none, as the file says (``general.sampling.temp``); ``None`` if it does not.
    """

    name: str
    path: Path
    format: Format
    source: str
    architecture: str
    parameters: int
    active_parameters: int
    experts: int
    active_experts: int
    quantization: str
    size_bytes: int
    files: tuple[Path, ...]
    context_length: int
    layers: int
    embedding_length: int
    kv_bytes_per_token: int
    kv_sliding_bytes_per_token: int
    sliding_window: int
    bytes_per_token: int
    vocab: Vocabulary | None
    mtp_layers: int
    head: Head | None
    has_recurrent_state: bool
    role: Role
    basename: str
    fingerprint: str
    aliases: tuple[str, ...] = field(default=())
    adapters: str = ""
    temperature: float | None = None

    @property
    def is_moe(self) -> bool:
        """True for a mixture of experts."""
        return self.experts > 0

    @property
    def draft_kind(self) -> str:
        """The kind of a draft head; empty for a whole model."""
        return self.head.kind if self.head else ""

    @property
    def ref(self) -> ModelRef:
        """The model as part of a cell. With other adapters it writes other texts, so its cells are others."""
        fingerprint = f"{self.fingerprint}+{self.adapters}" if self.adapters else self.fingerprint
        return ModelRef(self.name, str(self.path), fingerprint)

    def kv_bytes(self, context_tokens: int) -> int:
        """Return the size of an f16 KV cache for this many tokens."""
        everywhere = self.kv_bytes_per_token - self.kv_sliding_bytes_per_token
        kept = min(context_tokens, self.sliding_window + _MICRO_BATCH_TOKENS)
        return everywhere * context_tokens + self.kv_sliding_bytes_per_token * kept

    def growing_share(self, near_tokens: int, far_tokens: int) -> float:
        """Return the part of the cache that grows between two contexts: layers with a sliding window stop at its size."""
        whole = self.kv_bytes_per_token * (far_tokens - near_tokens)
        return (self.kv_bytes(far_tokens) - self.kv_bytes(near_tokens)) / whole if whole else 1.0

    def to_json(self) -> dict[str, Any]:
        """All fields that the files say, for the cache and for ``autospec models --json``."""
        data = asdict(self)
        del data["adapters"]
        data["path"] = str(self.path)
        data["files"] = [str(f) for f in self.files]
        data["aliases"] = list(self.aliases)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Model:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data is malformed.
        """
        vocab, head = data["vocab"], data["head"]
        return cls(
            **{
                **data,
                "path": Path(data["path"]),
                "files": tuple(Path(f) for f in data["files"]),
                "aliases": tuple(data["aliases"]),
                "vocab": None if vocab is None else Vocabulary(**{**vocab, "blocks": tuple(vocab["blocks"])}),
                "head": None
                if head is None
                else Head(**{**head, "target_layers": tuple(head["target_layers"])}),
            }
        )


# llama.cpp's two names of the setting. It accepts underscores for dashes.
_FLAGS = frozenset({"-c", "--ctx-size", "--ctx_size"})
_PROJECTOR_FLAGS = frozenset({"-mm", "--mmproj", "-mmu", "--mmproj-url", "--mmproj_url"})
_TEMPERATURE_FLAGS = frozenset({"--temp", "--temperature"})
_NO_PROJECTOR_FLAGS = frozenset({"--no-mmproj", "--no-mmproj-auto"})


def context_of(args: Sequence[str], own: int, unset: int) -> int:
    """Return the context length, in tokens, of a launch with these arguments.

    Args:
        args: The launch settings. The last of repeated flags counts, as for llama-server.
        own: The model's own context length, which a 0 in the arguments means; 0 if unknown.
        unset: The context if the arguments set none, or set 0 and `own` is unknown.
    """
    given = _given(args)
    return unset if given is None else given or own or unset


def names_context(args: Sequence[str]) -> bool:
    """Return True if the arguments set the context length, 0 included."""
    return _given(args) is not None


def without_context(args: Sequence[str]) -> list[str]:
    """Return the arguments without those that set the context length."""
    return _without(args, _FLAGS)


def temperature_of(args: Sequence[str]) -> float | None:
    """Return the temperature in a server's arguments; ``None`` if they name none, or something that is no number."""
    named = values_of(args, _TEMPERATURE_FLAGS)
    try:
        return float(named[-1]) if named else None
    except ValueError:
        return None


def loads_projector(args: Sequence[str]) -> bool:
    """Return True if llama-server gets a projector (mmproj) with these arguments."""
    return any(flag in _PROJECTOR_FLAGS for flag, _ in options_in(args))


def names_projector(args: Sequence[str]) -> bool:
    """Return True if the arguments say which projector to load, or that there is none."""
    return any(flag in (_PROJECTOR_FLAGS | _NO_PROJECTOR_FLAGS) for flag, _ in options_in(args))


def without_projector(args: Sequence[str]) -> list[str]:
    """Return the arguments without the projector."""
    return _without(args, _PROJECTOR_FLAGS)


def _without(args: Sequence[str], flags: frozenset[str]) -> list[str]:
    left = [(flag, *values) for flag, values in options_in(args) if flag not in flags]
    return [word for option in left for word in option if word]


def _given(args: Sequence[str]) -> int | None:
    return next((int(value) for value in reversed(values_of(args, _FLAGS)) if value.isdecimal()), None)
