"""Small main models, one for each kind of cache: random weights around a chain of tokens, SmolLM2's tokenizer.

What a server keeps of a text differs between families: all of it (MLA and mixtures of experts too), a sliding window, a state
that cannot be taken back, or some of each. These models have the shape of such a family and a few MB.

A token's row of the output matrix is the embedding of the token that stands before it in a fixed round of tokens. Without
layers a model would walk that round for ever; its random layers make it leave the round now and then, depending on what it has
written so far. So its text makes no sense, repeats itself, and is guessed right often and not always by `chain-draft`, which is
the round alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt

from tests.lab.rewrite import Parts, Planned, read_parts, requantized, write_gguf

__all__ = ["CHAINS"]

Floats: TypeAlias = npt.NDArray[np.float32]
# Key without the architecture → value and type.
Metadata: TypeAlias = "dict[str, tuple[Any, gguf.GGUFValueType]]"
_F32 = gguf.GGMLQuantizationType.F32
_Q8_0 = gguf.GGMLQuantizationType.Q8_0
_UINT = gguf.GGUFValueType.UINT32
_ARRAY = gguf.GGUFValueType.ARRAY
_FLOAT = gguf.GGUFValueType.FLOAT32

_WIDTH = 64
_HEADS = 2
_HEAD = _WIDTH // _HEADS
_FFN = 128
_LAYERS = 4
# Of MLA: the short vector, and the parts of a head with and without positions.
_LORA, _ROPE, _PLAIN = 32, 16, 16
# Tokens that the models write, and how many of them stand in each round.
_ACTIVE = range(1000, 1048)
_ROUND = 12


class _Net:
    """Random tensors under their names, one after the other from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.tensors: list[Planned] = []

    def add(self, name: str, values: Floats) -> None:
        """One tensor of single floats."""
        self.tensors.append(Planned(name, _F32, values.shape, lambda: values))

    def matrix(self, name: str, *shape: int, scale: float = 1.0) -> None:
        """A matrix that leaves the size of what it is multiplied with about as it is, times `scale`."""
        values = self._random.standard_normal(shape, dtype=np.float32) * (scale / math.sqrt(shape[-1]))
        self.add(name, values.astype(np.float32))

    def same(self, name: str, size: int, value: float = 1.0) -> None:
        """A vector of one value."""
        self.add(name, np.full(size, value, dtype=np.float32))

    def feed_forward(self, layer: str, scale: float) -> None:
        """Norm, gate, up and down."""
        self.same(f"{layer}.ffn_norm.weight", _WIDTH)
        self.matrix(f"{layer}.ffn_gate.weight", _FFN, _WIDTH)
        self.matrix(f"{layer}.ffn_up.weight", _FFN, _WIDTH)
        self.matrix(f"{layer}.ffn_down.weight", _WIDTH, _FFN, scale=scale)

    def attention(self, layer: str, scale: float, *, normed: bool) -> None:
        """Norm, queries, keys, values and output; with norms of queries and keys where the family has them."""
        self.same(f"{layer}.attn_norm.weight", _WIDTH)
        for name in ("attn_q", "attn_k", "attn_v"):
            self.matrix(f"{layer}.{name}.weight", _WIDTH, _WIDTH)
        self.matrix(f"{layer}.attn_output.weight", _WIDTH, _WIDTH, scale=scale)
        if normed:
            self.same(f"{layer}.attn_q_norm.weight", _HEAD)
            self.same(f"{layer}.attn_k_norm.weight", _HEAD)


def _layers(count: int = _LAYERS) -> Iterator[tuple[int, str]]:
    return ((index, f"blk.{index}") for index in range(count))


def _plain(net: _Net, _metadata: Metadata, _scale: float) -> None:
    """Two layers of Llama's form that add nothing: the round alone."""
    for _, layer in _layers(2):
        net.attention(layer, 0.0, normed=False)
        net.feed_forward(layer, 0.0)


def _sliding(net: _Net, metadata: Metadata, scale: float) -> None:
    """Gemma 3's form: all layers but every sixth see the last 32 tokens; what a layer adds has the size of its last norm."""
    metadata["attention.sliding_window"] = (32, _UINT)
    metadata["attention.key_length"] = metadata["attention.value_length"] = (_HEAD, _UINT)
    for _, layer in _layers():
        net.attention(layer, 1.0, normed=True)
        net.feed_forward(layer, 1.0)
        # The embedding is multiplied by the root of the width before the first layer.
        for name in ("post_attention_norm", "post_ffw_norm"):
            net.same(f"{layer}.{name}.weight", _WIDTH, scale * math.sqrt(_WIDTH))


def _recurrent(net: _Net, metadata: Metadata, scale: float) -> None:
    """Mamba's form: every layer keeps a state of a fixed size and nothing else."""
    inner, state, rank, kernel = 2 * _WIDTH, 16, 4, 4
    for key, value in (
        ("inner_size", inner),
        ("state_size", state),
        ("time_step_rank", rank),
        ("conv_kernel", kernel),
    ):
        metadata[f"ssm.{key}"] = (value, _UINT)
    metadata["feed_forward_length"] = metadata["attention.head_count"] = (0, _UINT)
    for _, layer in _layers():
        net.same(f"{layer}.attn_norm.weight", _WIDTH)
        net.matrix(f"{layer}.ssm_in.weight", 2 * inner, _WIDTH)
        net.matrix(f"{layer}.ssm_conv1d.weight", inner, kernel)
        net.same(f"{layer}.ssm_conv1d.bias", inner, 0.0)
        net.matrix(f"{layer}.ssm_x.weight", rank + 2 * state, inner)
        net.matrix(f"{layer}.ssm_dt.weight", inner, rank)
        net.same(f"{layer}.ssm_dt.bias", inner, -2.0)
        net.add(f"{layer}.ssm_a", -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)))
        net.same(f"{layer}.ssm_d", inner)
        net.matrix(f"{layer}.ssm_out.weight", _WIDTH, inner, scale=scale)


def _hybrid(net: _Net, metadata: Metadata, scale: float) -> None:
    """LFM2's form: short convolutions, whose state cannot be taken back, and attention in every second layer."""
    kernel = 3
    metadata["shortconv.l_cache"] = (kernel, _UINT)
    metadata["attention.head_count_kv"] = ([_HEADS * (index % 2) for index, _ in _layers()], _ARRAY)
    for index, layer in _layers():
        if index % 2:
            net.attention(layer, scale, normed=True)
        else:
            net.same(f"{layer}.attn_norm.weight", _WIDTH)
            net.matrix(f"{layer}.shortconv.in_proj.weight", 3 * _WIDTH, _WIDTH)
            net.matrix(f"{layer}.shortconv.conv.weight", _WIDTH, kernel)
            net.matrix(f"{layer}.shortconv.out_proj.weight", _WIDTH, _WIDTH, scale=scale)
        net.feed_forward(layer, scale)


def _latent(net: _Net, metadata: Metadata, scale: float) -> None:
    """DeepSeek 2's form: keys and values of all heads are kept as one short vector (MLA)."""
    numbers = {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": _LORA,
        "attention.kv_lora_rank": _LORA,
        "attention.key_length": _LORA + _ROPE,
        "attention.value_length": _LORA,
        "attention.key_length_mla": _PLAIN + _ROPE,
        "attention.value_length_mla": _HEAD,
        "rope.dimension_count": _ROPE,
        "leading_dense_block_count": _LAYERS,
        "expert_feed_forward_length": _FFN,
        "expert_shared_count": 0,
    }
    metadata.update({key: (value, _UINT) for key, value in numbers.items()})
    for _, layer in _layers():
        _latent_attention(net, layer, scale)
        net.feed_forward(layer, scale)


def _latent_attention(net: _Net, layer: str, scale: float) -> None:
    """Norm, queries, the short vector, what unfolds it, and output."""
    net.same(f"{layer}.attn_norm.weight", _WIDTH)
    net.matrix(f"{layer}.attn_q_a.weight", _LORA, _WIDTH)
    net.same(f"{layer}.attn_q_a_norm.weight", _LORA)
    net.matrix(f"{layer}.attn_q_b.weight", _HEADS * (_PLAIN + _ROPE), _LORA)
    net.matrix(f"{layer}.attn_kv_a_mqa.weight", _LORA + _ROPE, _WIDTH)
    net.same(f"{layer}.attn_kv_a_norm.weight", _LORA)
    net.matrix(f"{layer}.attn_k_b.weight", _HEADS, _LORA, _PLAIN)
    net.matrix(f"{layer}.attn_v_b.weight", _HEADS, _HEAD, _LORA)
    net.matrix(f"{layer}.attn_output.weight", _WIDTH, _HEADS * _HEAD, scale=scale)


def _foreseeing(net: _Net, metadata: Metadata, scale: float) -> None:
    """As `_latent`, and behind its layers an MTP layer that proposes what `chain-draft` does.

    It sees the last token's embedding alone (`eh_proj` takes nothing of the hidden state), and its attention and experts add
    nothing. llama.cpp wants a mixture of experts there (`graph_mtp` in src/models/deepseek2.cpp, b11434).
    """
    _latent(net, metadata, scale)
    numbers = {
        "nextn_predict_layers": 1,
        "expert_count": 2,
        "expert_used_count": 1,
        "expert_shared_count": 1,
    }
    metadata.update({key: (value, _UINT) for key, value in numbers.items()})
    layer = f"blk.{_LAYERS}"
    _latent_attention(net, layer, 0.0)
    net.same(f"{layer}.ffn_norm.weight", _WIDTH)
    net.matrix(f"{layer}.ffn_gate_inp.weight", 2, _WIDTH)
    net.matrix(f"{layer}.ffn_gate_exps.weight", 2, _FFN, _WIDTH)
    net.matrix(f"{layer}.ffn_up_exps.weight", 2, _FFN, _WIDTH)
    net.matrix(f"{layer}.ffn_down_exps.weight", 2, _WIDTH, _FFN, scale=0.0)
    net.matrix(f"{layer}.ffn_gate_shexp.weight", _FFN, _WIDTH)
    net.matrix(f"{layer}.ffn_up_shexp.weight", _FFN, _WIDTH)
    net.matrix(f"{layer}.ffn_down_shexp.weight", _WIDTH, _FFN, scale=0.0)
    net.same(f"{layer}.nextn.enorm.weight", _WIDTH)
    net.same(f"{layer}.nextn.hnorm.weight", _WIDTH)
    net.add(f"{layer}.nextn.eh_proj.weight", np.eye(_WIDTH, 2 * _WIDTH, dtype=np.float32))


def _experts(net: _Net, metadata: Metadata, scale: float) -> None:
    """Qwen 3 MoE's form: eight experts in a layer, two of them active."""
    experts = 8
    numbers = {"expert_count": experts, "expert_used_count": 2, "expert_feed_forward_length": _FFN}
    metadata.update({key: (value, _UINT) for key, value in numbers.items()})
    metadata["attention.key_length"] = metadata["attention.value_length"] = (_HEAD, _UINT)
    for _, layer in _layers():
        net.attention(layer, scale, normed=True)
        net.same(f"{layer}.ffn_norm.weight", _WIDTH)
        net.matrix(f"{layer}.ffn_gate_inp.weight", experts, _WIDTH)
        net.matrix(f"{layer}.ffn_gate_exps.weight", experts, _FFN, _WIDTH)
        net.matrix(f"{layer}.ffn_up_exps.weight", experts, _FFN, _WIDTH)
        net.matrix(f"{layer}.ffn_down_exps.weight", experts, _WIDTH, _FFN, scale=scale)


@dataclass(frozen=True, slots=True)
class Chain:
    """One of these models.

    Attributes:
        architecture: llama.cpp's name of the family.
        about: What it keeps of a text.
        fill: Adds its layers, and the metadata that only this family has.
        scale: How much its layers add, so that it leaves the round about every tenth token.
        output_norm: What the last norm is called there.
    """

    architecture: str
    about: str
    fill: Callable[[_Net, Metadata, float], None]
    scale: float = 0.0
    output_norm: str = "output_norm.weight"

    def build(self, smollm2: Path, out: Path) -> None:
        """Write it, with the tokenizer of SmolLM2."""
        parts = read_parts(smollm2)
        net = _Net(7)
        tokens = len(parts.metadata["tokenizer.ggml.tokens"][0])
        self._round(net, tokens)
        own: Metadata = {
            "context_length": (4096, _UINT),
            "embedding_length": (_WIDTH, _UINT),
            "feed_forward_length": (_FFN, _UINT),
            "attention.head_count": (_HEADS, _UINT),
            "attention.layer_norm_rms_epsilon": (1e-5, _FLOAT),
            "rope.freq_base": (10000.0, _FLOAT),
            "vocab_size": (tokens, _UINT),
        }
        self.fill(net, own, self.scale)
        layers = {t.name.split(".")[1] for t in net.tensors if t.name.startswith("blk.")}
        own["block_count"] = (len(layers), _UINT)
        extra = {
            f"{self.architecture}.{key}": (value, kind, gguf.GGUFValueType.INT32 if kind is _ARRAY else None)
            for key, (value, kind) in own.items()
        }
        kept = {k: v for k, v in parts.metadata.items() if k.startswith("tokenizer.")}
        named = ("general.name", f"Chain {self.architecture}"), ("general.size_label", "3M")
        text = gguf.GGUFValueType.STRING
        extra |= {key: (value, text, None) for key, value in named}
        write_gguf(out, Parts(kept, self.architecture, {}), net.tensors, {}, extra=extra)

    def _round(self, net: _Net, tokens: int) -> None:
        """Embeddings, and an output matrix that names the next token of the round, however the layers push it about."""
        random = np.random.default_rng(1)
        embedding = random.standard_normal((tokens, _WIDTH), dtype=np.float32)
        output = np.zeros_like(embedding)
        active = np.array(_ACTIVE)
        for begins in range(0, active.size, _ROUND):
            ring = active[begins : begins + _ROUND]
            output[np.roll(ring, -1)] = embedding[ring]
        for name, values in (("token_embd.weight", embedding), ("output.weight", output)):
            plain = Planned(name, _F32, values.shape, partial(_itself, values))
            net.tensors.append(requantized(plain, _Q8_0, again=True))
        net.same(self.output_norm, _WIDTH)


def _itself(values: Floats) -> Floats:
    return values


CHAINS: Mapping[str, Chain] = {
    "chain-draft": Chain("llama", "everything", _plain),
    "chain-sliding": Chain("gemma3", "a sliding window of 32 tokens in most layers", _sliding, 0.8),
    "chain-recurrent": Chain("mamba", "a state that cannot be taken back", _recurrent, 3.0),
    "chain-hybrid": Chain(
        "lfm2", "everything in some layers, a state in the others", _hybrid, 1.0, "token_embd_norm.weight"
    ),
    "chain-latent": Chain("deepseek2", "everything, as one short vector for all heads (MLA)", _latent, 1.6),
    "chain-mtp": Chain("deepseek2", "as chain-latent; with an MTP layer", _foreseeing, 1.6),
    "chain-experts": Chain("qwen3moe", "everything; a mixture of experts", _experts, 1.7),
}
"""By the name of the lab's recipe."""
