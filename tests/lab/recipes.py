"""What each lab model is, and why its truth is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.lab.caches import CHAINS
from tests.lab.mlx_folders import write_folder
from tests.lab.rewrite import Parts, Planned, read_parts, requantized, write_gguf, zeros_like
from tests.lab.source import GGUF_NAME, fetch_smollm2

__all__ = ["RECIPES", "Recipe", "bad_draft", "sliding_main", "slow_main"]

Q8_0 = gguf.GGMLQuantizationType.Q8_0
_FILE_TYPES = {
    Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
    gguf.GGMLQuantizationType.F32: gguf.LlamaFileType.ALL_F32,
}
# The matrix that turns a hidden state into tokens is most of a tiny model, and slow on MLX's CPU.
_FEW_TOKENS = 2048
LAYERS = 30
"""Transformer layers of SmolLM2-135M."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build one model.

    Attributes:
        name: What the command line and the fixture call it.
        file_name: Its file in the lab's folder, or its folder there.
        truth: What is known about it, one sentence.
        version: Raise it when the recipe changes: files built by another version are built again.
        build: Writes the file or folder, given SmolLM2's path (where it will stand, for SmolLM2's own recipe).
        from_smollm2: False for SmolLM2 itself, which is fetched.
    """

    name: str
    file_name: str
    truth: str
    version: int
    build: Callable[[Path, Path], None]
    from_smollm2: bool = True


def slow_main(layers: int = 240, name: str | None = None, kind: gguf.GGMLQuantizationType = Q8_0) -> Recipe:
    """SmolLM2 with layers that change nothing and cost as much as any.

    A layer adds ``attn_output·attention`` and ``ffn_down·activation`` to the residual stream. Both matrices are zero in
    the added layers, so the stream passes through bit for bit, and greedy text is that of the 30 real layers alone.

    At Q8_0 a CPU verifies k tokens for little less than k times the price of one; at F32 reading the weights costs more
    than computing with them, verifying is nearly free, and drafting pays much more. Both happen with real models.

    Args:
        layers: Layers in all, 30 of them real. llama.cpp takes 512 at most.
        name: Name in the lab; by default with the number of layers.
        kind: How the weights are stored: Q8_0, F16 or F32.
    """
    if not LAYERS <= layers <= 512:
        raise ValueError(f"a slow main has {LAYERS} to 512 layers, not {layers}")

    def build(smollm2: Path, out: Path) -> None:
        parts = read_parts(smollm2)
        real = [requantized(t, kind) for t in parts.tensors.values()]
        added = _silent_layers(real, layers)
        changes = {
            **_called(f"SmolLM2 Slow {layers} Layers", parts, [*real, *added]),
            "llama.block_count": layers,
            "general.file_type": int(_FILE_TYPES[kind]),
        }
        write_gguf(out, parts, [*real, *added], changes)

    return Recipe(
        name or f"slow-main-{layers}-{kind.name.lower()}",
        f"SmolLM2-Slow-{layers}L.{kind.name}.gguf",
        f"main model: smollm2's weights at {kind.name} and {layers - LAYERS} layers that add nothing; smollm2 drafts for "
        "it with nearly full acceptance",
        1,
        build,
    )


def sliding_main(layers: int = 90, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> Recipe:
    """As `slow_main`, in the form of a family whose cache cannot be cut: the added layers see the last 128 tokens only.

    The real layers see everything, so the text is SmolLM2's, and smollm2 drafts for it. MiMo-V2 is the family whose graph in
    llama.cpp is Llama's with a window (src/models/mimo2.cpp): a dense layer is one without a router.
    """
    window = 128

    def build(smollm2: Path, out: Path) -> None:
        parts = read_parts(smollm2)
        own = parts.metadata
        heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
        real = []
        for tensor in parts.tensors.values():
            stored = requantized(tensor, kind)
            key = heads.get(tensor.name.split(".")[-2])
            real.append(stored if key is None else _by_halves(stored, own[key][0]))
        embedding = next(tensor for tensor in real if tensor.name == "token_embd.weight")
        added = _silent_layers(real, layers)
        tensors = [*real, embedding.named("output.weight"), *added]
        named = {f"mimo2{key.removeprefix('llama')}": v for key, v in own.items() if key.startswith("llama.")}
        kept = {key: value for key, value in own.items() if not key.startswith("llama.")}
        count, array = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.ARRAY
        sliding = [index >= LAYERS for index in range(layers)]
        extra = {
            **named,
            "mimo2.block_count": (layers, count, None),
            "mimo2.expert_feed_forward_length": (1, count, None),
            "mimo2.attention.sliding_window": (window, count, None),
            "mimo2.attention.sliding_window_pattern": (sliding, array, gguf.GGUFValueType.BOOL),
        }
        changes = {
            **_called(f"SmolLM2 Sliding {layers} Layers", parts, tensors),
            "general.file_type": int(_FILE_TYPES[kind]),
        }
        write_gguf(out, Parts(kept, "mimo2", {}), tensors, changes, extra=extra)

    return Recipe(
        f"sliding-main-{layers}-{kind.name.lower()}",
        f"SmolLM2-Sliding-{layers}L.{kind.name}.gguf",
        f"main model: as slow-main with {layers} layers; the added ones keep {window} tokens (MiMo-V2's form)",
        1,
        build,
    )


def _by_halves(tensor: Planned, heads: int) -> Planned:
    """The rows of a matrix of queries or keys for the other order of rotated pairs: first halves, then second ones (NEOX)."""

    def data() -> Any:
        rows = tensor.data()
        return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    return Planned(tensor.name, tensor.kind, tensor.shape, data)


def _silent_layers(real: Sequence[Planned], layers: int) -> list[Planned]:
    """The layers behind the real ones, up to `layers` in all: copies of the first that add nothing."""
    ready = [Planned(t.name, t.kind, t.shape, _once(t.data)) for t in _layer(real, 0)]
    return [
        (zeros_like(t) if t.name.endswith((".attn_output.weight", ".ffn_down.weight")) else t).named(
            t.name.replace("blk.0.", f"blk.{index}.", 1)
        )
        for index in range(LAYERS, layers)
        for t in ready
    ]


def bad_draft(cut: int = 3, name: str | None = None) -> Recipe:
    """SmolLM2 with layers cut out of its middle: the same vocabulary, other and worse predictions.

    Args:
        cut: How many of the 30 layers are left out, 1 to 28; the first and the last always stay.
        name: Name in the lab; by default with the number of layers cut.
    """
    if not 1 <= cut <= LAYERS - 2:
        raise ValueError(f"1 to {LAYERS - 2} layers can be cut, not {cut}")
    first = (LAYERS - cut + 1) // 2
    kept = [index for index in range(LAYERS) if not first <= index < first + cut]

    def build(smollm2: Path, out: Path) -> None:
        _write_layers(smollm2, out, kept, f"SmolLM2 Cut {cut}")

    return Recipe(
        name or f"bad-draft-{cut}",
        f"SmolLM2-Cut-{cut}.Q4_1.gguf",
        f"draft: smollm2 without {cut} of its {LAYERS} layers; fits every SmolLM2 main, accepted less",
        1,
        build,
    )


def _fast_main(smollm2: Path, out: Path) -> None:
    parts = read_parts(smollm2)
    changes = {
        **_called("SmolLM2 Fast", parts, parts.tensors.values()),
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q8_0),
    }
    write_gguf(out, parts, [requantized(t, Q8_0) for t in parts.tensors.values()], changes)


def _tiny(smollm2: Path, out: Path) -> None:
    _write_layers(smollm2, out, [0, LAYERS - 1], "SmolLM2 Tiny")


def _other_vocab(smollm2: Path, out: Path) -> None:
    """The same tokenizer type and size; every token that is not a control token means another."""
    parts = read_parts(smollm2)
    tokens = list(parts.metadata["tokenizer.ggml.tokens"][0])
    kinds = parts.metadata["tokenizer.ggml.token_type"][0]
    normal = [i for i, kind in enumerate(kinds) if kind == gguf.TokenType.NORMAL]
    for here, there in zip(normal, reversed(normal), strict=True):
        tokens[here] = parts.metadata["tokenizer.ggml.tokens"][0][there]
    changes = {
        **_called("SmolLM2 Other Vocabulary", parts, parts.tensors.values()),
        "tokenizer.ggml.tokens": tokens,
    }
    write_gguf(out, parts, parts.tensors.values(), changes)


def _other_tokenizer(smollm2: Path, out: Path) -> None:
    """A SentencePiece vocabulary of the same size, which needs a score for each token and a token for each byte."""
    parts = read_parts(smollm2)
    size = len(parts.metadata["tokenizer.ggml.tokens"][0])
    words = dict.fromkeys(t.replace("Ġ", "▁") for t in parts.metadata["tokenizer.ggml.tokens"][0][17:])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words][:size]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * (size - len(kinds))
    tokens += [f"▁filler{i}" for i in range(size - len(tokens))]
    changes = {
        **_called("SmolLM2 Other Tokenizer", parts, parts.tensors.values()),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": None,
    }
    scores = [-float(i) for i in range(size)]
    extra = {"tokenizer.ggml.scores": (scores, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32)}
    write_gguf(out, parts, parts.tensors.values(), changes, extra=extra)


def _moe(smollm2: Path, out: Path) -> None:
    """Mixtral's form: four copies of each feed-forward network as experts, two of them active.

    The router's weights are random, so the experts in use change from token to token; a layer's weighted mean of equal
    experts is the expert, so the text is SmolLM2's.
    """
    experts, active = 4, 2
    parts = read_parts(smollm2)
    rng = np.random.default_rng(0)
    width = int(parts.metadata["llama.embedding_length"][0])
    tensors: list[Planned] = []
    for tensor in parts.tensors.values():
        stem, _, kind = tensor.name.removesuffix(".weight").rpartition(".")
        if kind in ("ffn_up", "ffn_gate", "ffn_down"):
            tensors.append(_stacked(tensor, experts).named(f"{stem}.{kind}_exps.weight"))
        else:
            tensors.append(tensor)
        if kind == "ffn_norm":
            router = rng.standard_normal((experts, width), dtype=np.float32)
            name = f"{stem}.ffn_gate_inp.weight"
            tensors.append(Planned(name, gguf.GGMLQuantizationType.F32, router.shape, _constant(router)))
    count = gguf.GGUFValueType.UINT32
    extra = {
        "llama.expert_count": (experts, count, None),
        "llama.expert_used_count": (active, count, None),
    }
    changes = {**_called("SmolLM2 MoE", parts, tensors), "general.size_label": f"{experts}x135M"}
    write_gguf(out, parts, tensors, changes, extra=extra)


def _mlx(name: str, folder: str, truth: str, layers: Sequence[int] = (0, LAYERS - 1), **how: Any) -> Recipe:
    """A folder of `tests.lab.mlx_folders`; `how` goes to `write_folder`."""

    def build(smollm2: Path, out: Path) -> None:
        write_folder(smollm2, out, layers, **how)

    return Recipe(name, folder, truth, 1, build)


def _damaged(smollm2: Path, out: Path) -> None:
    shutil.copyfile(smollm2, out)
    with out.open("r+b") as file:
        file.truncate(smollm2.stat().st_size // 2)


def _damaged_header(smollm2: Path, out: Path) -> None:
    with smollm2.open("rb") as file:
        out.write_bytes(file.read(100_000))


def _write_layers(smollm2: Path, out: Path, kept: Sequence[int], title: str) -> None:
    parts = read_parts(smollm2)
    tensors = [
        *parts.outside(),
        *(
            t.named(t.name.replace(f"blk.{old}.", f"blk.{new}.", 1))
            for new, old in enumerate(kept)
            for t in parts.layer(old)
        ),
    ]
    write_gguf(out, parts, tensors, {**_called(title, parts, tensors), "llama.block_count": len(kept)})


def _layer(tensors: Iterable[Planned], index: int) -> Iterator[Planned]:
    return (t for t in tensors if t.name.startswith(f"blk.{index}."))


def _stacked(tensor: Planned, copies: int) -> Planned:
    shape = (copies, *tensor.shape)
    return Planned(tensor.name, tensor.kind, shape, lambda: np.broadcast_to(tensor.data(), shape))


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Keep what `make` makes: the added layers share one layer's arrays."""
    kept: list[Any] = []

    def get() -> Any:
        if not kept:
            kept.append(make())
        return kept[0]

    return get


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _called(title: str, parts: Parts, tensors: Iterable[Planned]) -> Mapping[str, Any]:
    """Name and size label, so that a catalogue does not take the model for the one it was made from."""
    values = sum(int(np.prod(tensor.weights)) for tensor in tensors)
    return {"general.name": title, "general.size_label": f"{round(values / 1e6)}M"}


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "smollm2",
            GGUF_NAME,
            "the original: SmolLM2-135M-Instruct, Q4_1",
            1,
            fetch_smollm2,
            from_smollm2=False,
        ),
        slow_main(240, "slow-main"),
        slow_main(90, "slow-main-small"),
        slow_main(90, "demo-main", gguf.GGMLQuantizationType.F32),
        Recipe(
            "fast-main",
            "SmolLM2-Fast.Q8_0.gguf",
            "main model: smollm2's weights at Q8_0; drafting with smollm2 loses",
            1,
            _fast_main,
        ),
        bad_draft(3, "bad-draft"),
        Recipe(
            "tiny",
            "SmolLM2-Tiny.Q4_1.gguf",
            "two of smollm2's layers: loads and answers at once, text without sense",
            1,
            _tiny,
        ),
        Recipe(
            "other-vocab",
            "SmolLM2-Other-Vocab.Q4_1.gguf",
            "smollm2 with its tokens in another order: same tokenizer type and size, fits no SmolLM2 main",
            1,
            _other_vocab,
        ),
        Recipe(
            "other-tokenizer",
            "SmolLM2-Other-Tokenizer.Q4_1.gguf",
            "smollm2 with a SentencePiece vocabulary: another tokenizer type",
            1,
            _other_tokenizer,
        ),
        Recipe(
            "moe",
            "SmolLM2-MoE-4x135M.Q4_1.gguf",
            "main model: smollm2's text from 4 equal experts, 2 of them active",
            1,
            _moe,
        ),
        *(
            Recipe(
                name,
                f"{name.title()}.Q8_0.gguf",
                f"of a few MB, {chain.architecture}'s form; keeps of a text: {chain.about}",
                1,
                chain.build,
            )
            for name, chain in CHAINS.items()
        ),
        Recipe(
            "damaged",
            "SmolLM2-Damaged.Q4_1.gguf",
            "cut off in its weights: the metadata can be read, the model cannot",
            1,
            _damaged,
        ),
        Recipe(
            "damaged-header",
            "SmolLM2-Damaged-Header.Q4_1.gguf",
            "cut off in its metadata",
            1,
            _damaged_header,
        ),
        _mlx(
            "mlx-smollm2",
            "SmolLM2-135M-Instruct-MLX-float32",
            "MLX folder: smollm2's weights in float32, the same text as the GGUF's",
            range(LAYERS),
        ),
        _mlx(
            "mlx-tiny",
            "SmolLM2-Tiny-MLX-float32",
            "MLX folder: two of smollm2's layers and 2048 of its tokens: answers at once, text without sense",
            tokens=_FEW_TOKENS,
        ),
        _mlx(
            "mlx-slow-tiny",
            "SmolLM2-Slow-Tiny-MLX-float32",
            "MLX folder, main model: mlx-tiny and 6 layers that add nothing; mlx-tiny drafts for it and is always right",
            tokens=_FEW_TOKENS,
            silent=6,
        ),
        _mlx(
            "mlx-bad-draft",
            "SmolLM2-Bad-Draft-MLX-float32",
            "MLX folder, draft: another of smollm2's layers and the tokens of mlx-tiny; seldom right",
            (12,),
            tokens=_FEW_TOKENS,
        ),
        _mlx(
            "mlx-noisy-draft",
            "SmolLM2-Noisy-Draft-MLX-float32",
            "MLX folder, draft: mlx-tiny with every weight off by some per cent; right about half the time",
            tokens=_FEW_TOKENS,
            noise=0.05,
        ),
        _mlx(
            "mlx-rotating",
            "SmolLM2-Rotating-MLX-float32",
            "MLX folder: mlx-tiny whose first layer keeps 32 tokens, in a cache that cannot be rolled back once it is full",
            tokens=_FEW_TOKENS,
            sliding_window=32,
        ),
    )
}
"""Every model that has a name."""
