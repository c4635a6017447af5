"""GGUF files as models: metadata, split files, draft heads, and files that are no language model."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from autospec.catalog.gguf import _OF_OTHER_MEDIA, read_gguf
from autospec.catalog.model import Model
from autospec.errors import ModelFileError
from tests.catalog.making import TOKENS, make_model, write_gguf


def test_the_real_smollm2(lab_models) -> None:
    """The real file has the architecture, sizes and vocabulary that its makers publish."""
    model = read_gguf(lab_models.smollm2)
    assert (model.architecture, model.quantization, model.layers) == ("llama", "Q4_1", 30)
    assert (model.parameters, model.active_parameters) == (134_515_008, 134_515_008)
    assert (model.context_length, model.embedding_length) == (8192, 576)
    assert model.kv_bytes_per_token == 30 * 3 * (64 + 64) * 2
    assert not model.is_moe
    assert model.vocab is not None
    assert (model.vocab.kind, model.vocab.size, model.vocab.bos, model.vocab.eos) == ("gpt2", 49152, 1, 2)
    assert model.size_bytes == lab_models.smollm2.stat().st_size
    # Its embedding is its output matrix too, so a token reads nearly the whole file.
    assert 0.95 < model.bytes_per_token / model.size_bytes < 1


def test_dense_model(tmp_path: Path) -> None:
    """A dense model's active weights are all of them; looking up one embedding row costs nothing."""
    model = read_gguf(write_gguf(tmp_path / "Tiny-F16.gguf"))
    weights = 2 * 300 * 32 + 2 * (32 * 32 + 64 * 32)
    assert (model.name, model.format, model.is_moe) == ("Tiny-F16", "gguf", False)
    assert model.parameters == model.active_parameters == weights
    assert model.bytes_per_token == 2 * (weights - 300 * 32)
    assert (model.layers, model.context_length) == (2, 2048)


@pytest.mark.parametrize(
    ("told", "temperature"),
    [
        (0.6, 0.6),
        (0.0, 0.0),
        (-1.0, 0.0),
        (float("nan"), None),
        ("warm", None),
        (None, None),
    ],
)
def test_the_temperature_that_the_file_names(tmp_path: Path, told, temperature) -> None:
    """llama-server samples with it where neither the request nor a flag says another; nonsense counts as none."""
    keys = {"general.sampling.temp": told, "general.sampling.top_k": np.uint32(20)}
    assert read_gguf(write_gguf(tmp_path / "m.gguf", keys=keys)).temperature == temperature


def moe_tensors(experts: int, *, stacked: bool = True) -> dict[str, np.ndarray]:
    """One block with experts, a shared expert, and the two tables."""
    shape = (64, 32)
    tensors = {
        "token_embd.weight": np.ones((300, 32), np.float16),
        "output.weight": np.ones((300, 32), np.float16),
    }
    if stacked:
        tensors["blk.0.ffn_up_exps.weight"] = np.ones((experts, *shape), np.float16)
        tensors["blk.0.ffn_gate_chexps.weight"] = np.ones((experts, *shape), np.float16)
    else:
        tensors |= {f"blk.0.ffn_up.{i}.weight": np.ones(shape, np.float16) for i in range(experts)}
    tensors["blk.0.ffn_up_shexp.weight"] = np.ones(shape, np.float16)
    return tensors


def test_moe_counts_shared_weights_and_chosen_experts(tmp_path: Path) -> None:
    """Of eight experts two are active; the shared expert and the embeddings always are."""
    keys = {"qwen3moe.expert_count": np.uint32(8), "qwen3moe.expert_used_count": np.uint32(2)}
    path = write_gguf(
        tmp_path / "m.gguf", architecture="qwen3moe", keys=keys, tensors=moe_tensors(8), layers=1
    )
    model = read_gguf(path)
    one, table = 64 * 32, 300 * 32
    assert model.is_moe
    assert (model.experts, model.active_experts) == (8, 2)
    assert model.parameters == 2 * table + 16 * one + one
    assert model.active_parameters == 2 * table + 4 * one + one
    assert model.bytes_per_token == 2 * (table + 4 * one + one)


def test_moe_with_one_tensor_per_expert(tmp_path: Path) -> None:
    """Files of 2023 have a tensor for each expert; they count alike."""
    keys = {"llama.expert_count": np.uint32(4), "llama.expert_used_count": np.uint32(1)}
    path = write_gguf(tmp_path / "m.gguf", keys=keys, tensors=moe_tensors(4, stacked=False), layers=1)
    model = read_gguf(path)
    assert model.parameters - model.active_parameters == 3 * 64 * 32


@pytest.mark.parametrize(
    ("file_type", "name"),
    [
        (gguf.LlamaFileType.MOSTLY_Q4_K_M, "Q4_K_M"),
        (gguf.LlamaFileType.MOSTLY_Q8_0, "Q8_0"),
        (gguf.LlamaFileType.ALL_F32, "F32"),
        (9999, "F16"),
        (None, "F16"),
    ],
)
def test_quantization(tmp_path: Path, file_type: int | None, name: str) -> None:
    """The file's own word on its quantization, or the type that most of its bytes have."""
    keys = {"general.file_type": None if file_type is None else np.uint32(file_type)}
    assert read_gguf(write_gguf(tmp_path / "m.gguf", keys=keys)).quantization == name


class TestState:
    """Layers with a state that cannot go back, instead of a KV cache or beside it. Names of tensors: gguf-py's constants."""

    @staticmethod
    def _read(path: Path, architecture: str, *layers: str, **keys: object) -> Model:
        names = ["token_embd.weight", "output.weight", *(f"blk.{i}.{t}.weight" for i, t in enumerate(layers))]
        prefixed = {f"{architecture}.{k.replace('__', '.')}": v for k, v in keys.items()}
        tensors = {name: np.zeros((4, 4), np.float16) for name in names}
        return read_gguf(
            write_gguf(path, architecture=architecture, layers=len(layers), keys=prefixed, tensors=tensors)
        )

    @pytest.mark.parametrize(
        ("architecture", "tensor"),
        [
            ("mamba", "ssm_x"), ("mamba2", "ssm_in"), ("falcon-h1", "ssm_in"), ("jamba", "ssm_dt_norm"),
            ("granitehybrid", "ssm_out"), ("lfm2", "shortconv.in_proj"), ("qwen3next", "ssm_ba"),
            ("qwen35", "ssm_alpha"), ("rwkv6", "time_mix_receptance"), ("rwkv7", "time_mix_w0"),
            ("kimi-linear", "ssm_conv1d_q"), ("nemotron_h", "ssm_norm"), ("plamo2", "ssm_b_norm"),
        ],
    )  # fmt: skip
    def test_by_tensors_or_architecture(self, tmp_path: Path, architecture: str, tensor: str) -> None:
        """llama.cpp's cache of these cannot be cut; a newer architecture tells it by its tensors."""
        for name, kind in (("known", architecture), ("newer", "newer")):
            assert self._read(tmp_path / f"{name}.gguf", kind, tensor, "attn_k").has_recurrent_state
        assert self._read(tmp_path / "alone.gguf", architecture, "attn_k").has_recurrent_state

    @pytest.mark.parametrize("architecture", ["minimax-01", "deepseek4"])
    def test_by_architecture_alone(self, tmp_path: Path, architecture: str) -> None:
        """Lightning attention, and compressed keys: every layer has tensors of attention (llama.cpp b11434, `llm_arch_is_hybrid`)."""
        assert self._read(tmp_path / "m.gguf", architecture, "attn_qkv", "attn_qkv").has_recurrent_state

    @pytest.mark.parametrize("attention", ["attn_k", "attn_qkv", "attn_kv_a_mqa"])
    def test_keys_alone_do_not_tell_it(self, tmp_path: Path, attention: str) -> None:
        """The dense Granite 4: llama.cpp's converter writes the keys of Mamba, and every layer has attention."""
        keys = {"ssm__conv_kernel": np.uint32(4), "ssm__state_size": np.uint32(128)}
        assert not self._read(
            tmp_path / "m.gguf", "granite", attention, attention, **keys
        ).has_recurrent_state
        assert self._read(tmp_path / "n.gguf", "newer", attention, "mixer", **keys).has_recurrent_state
        assert not self._read(tmp_path / "o.gguf", "newer", attention, "mixer").has_recurrent_state


class TestKvCache:
    """Bytes per token of an f16 cache: 2 bytes × KV heads × (K and V length), layer by layer."""

    def _kv(self, tmp_path: Path, architecture: str = "llama", layers: int = 4, **keys: object):
        prefixed = {f"{architecture}.{k.replace('__', '.')}": v for k, v in keys.items()}
        return read_gguf(
            write_gguf(tmp_path / "m.gguf", architecture=architecture, layers=layers, keys=prefixed)
        )

    def test_from_the_hidden_size(self, tmp_path: Path) -> None:
        """Without its own key, a head is the hidden size over the heads."""
        assert self._kv(tmp_path).kv_bytes_per_token == 4 * 2 * 2 * (8 + 8)

    def test_own_key_and_value_lengths(self, tmp_path: Path) -> None:
        """key_length and value_length go before it."""
        model = self._kv(tmp_path, attention__key_length=np.uint32(16), attention__value_length=np.uint32(12))
        assert model.kv_bytes_per_token == 4 * 2 * 2 * (16 + 12)

    def test_heads_per_layer(self, tmp_path: Path) -> None:
        """A hybrid lists its KV heads per layer, and layers without any keep nothing."""
        model = self._kv(tmp_path, attention__head_count_kv=[0, 2, 0, 1])
        assert model.kv_bytes_per_token == (2 + 1) * 2 * (8 + 8)

    def test_full_attention_interval(self, tmp_path: Path) -> None:
        """In a Qwen3-Next-like model only every n-th layer has a cache, and the others a state."""
        keys = {"full_attention_interval": np.uint32(2), "ssm__state_size": np.uint32(16)}
        model = self._kv(tmp_path, "qwen3next", **keys)
        assert model.kv_bytes_per_token == 2 * 2 * 2 * (8 + 8)
        assert model.has_recurrent_state

    def test_full_attention_as_a_list(self, tmp_path: Path) -> None:
        """llama.cpp writes a list where it saves a model again."""
        model = self._kv(tmp_path, "qwen35", attention__recurrent_layers=[True, True, True, False])
        assert model.kv_bytes_per_token == 1 * 2 * 2 * (8 + 8)

    @pytest.mark.parametrize(("architecture", "cached"), [("qwen3next", 2), ("minimax-01", 1), ("llama", 8)])
    def test_full_attention_by_the_architecture(self, tmp_path: Path, architecture: str, cached: int) -> None:
        """Without a key, llama.cpp takes every fourth layer of these, or every eighth one."""
        assert self._kv(tmp_path, architecture, 8).kv_bytes_per_token == cached * 2 * 2 * (8 + 8)

    def test_latent_attention_keeps_only_k(self, tmp_path: Path) -> None:
        """For MLA llama.cpp allocates K alone, with one head."""
        model = self._kv(
            tmp_path, "deepseek2", attention__head_count_kv=np.uint32(1), attention__key_length=np.uint32(576),
            attention__value_length=np.uint32(512), attention__key_length_mla=np.uint32(192),
        )  # fmt: skip
        assert model.kv_bytes_per_token == 4 * 2 * 576

    def test_what_grows_is_what_has_no_window_or_has_not_filled_it(self) -> None:
        """Half of the cache has a window of 128 tokens, and room for 512 more."""
        model = make_model(kv_bytes_per_token=8, kv_sliding_bytes_per_token=4, sliding_window=128)
        assert model.growing_share(100, 600) == 1.0
        assert model.growing_share(1000, 2000) == 0.5
        assert model.growing_share(540, 740) == 0.75
        assert make_model(kv_bytes_per_token=0).growing_share(100, 600) == 1.0

    def test_sliding_layers_stop_growing(self, tmp_path: Path) -> None:
        """Layers with a window keep the window and one micro-batch, the others everything."""
        pattern = [True, True, True, False]
        model = self._kv(
            tmp_path, attention__sliding_window=np.uint32(128), attention__sliding_window_pattern=pattern
        )
        layer = 2 * 2 * (8 + 8)
        assert model.kv_bytes(100) == 4 * layer * 100
        assert model.kv_bytes(100_000) == layer * 100_000 + 3 * layer * (128 + 512)

    def test_pattern_that_llama_cpp_knows_by_heart(self, tmp_path: Path) -> None:
        """Gemma 3 writes no pattern; every sixth layer sees everything."""
        model = self._kv(tmp_path, "gemma3", 12, attention__sliding_window=np.uint32(128))
        assert model.kv_sliding_bytes_per_token == 10 * 2 * 2 * (8 + 8)

    @pytest.mark.parametrize(
        ("architecture", "sliding"), [("cohere2", 5), ("cohere2moe", 4), ("exaone-moe", 5)]
    )
    def test_first_or_last_of_a_group_sees_everything(
        self, tmp_path: Path, architecture: str, sliding: int
    ) -> None:
        """Six layers: of each four, the last one (layer 4), or the first one (layers 1 and 5)."""
        model = self._kv(tmp_path, architecture, 6, attention__sliding_window=np.uint32(128))
        assert model.kv_sliding_bytes_per_token == sliding * 2 * 2 * (8 + 8)

    def test_a_window_everywhere(self, tmp_path: Path) -> None:
        """llama.cpp takes a pattern of 0 for that."""
        keys = {"sliding_window": np.uint32(128), "sliding_window_pattern": np.uint32(0)}
        model = self._kv(tmp_path, "gemma3", **{f"attention__{k}": v for k, v in keys.items()})
        assert model.kv_sliding_bytes_per_token == model.kv_bytes_per_token

    def test_window_without_a_pattern_counts_whole(self, tmp_path: Path) -> None:
        """Where it is unknown which layers slide, none is taken to."""
        model = self._kv(tmp_path, attention__sliding_window=np.uint32(128))
        assert model.kv_bytes(10_000) == model.kv_bytes_per_token * 10_000

    def test_shared_layers(self, tmp_path: Path) -> None:
        """Gemma 3n's last layers use the cache of earlier ones."""
        assert (
            self._kv(tmp_path, attention__shared_kv_layers=np.uint32(1)).kv_bytes_per_token == 3 * 2 * 2 * 16
        )


class TestSplit:
    """NAME-00001-of-0000N.gguf is one model."""

    def _split(self, folder: Path, parts: int = 3, declared: int | None = None) -> list[Path]:
        paths = [folder / f"Big-Q4_K_M-{i:05d}-of-{parts:05d}.gguf" for i in range(1, parts + 1)]
        for i, path in enumerate(paths):
            keys = {"split.count": np.uint32(declared or parts), "split.no": np.uint32(i)}
            tensors = {f"blk.{i}.attn_q.weight": np.ones((32, 32), np.float16)}
            write_gguf(path, layers=3, keys=keys, tokens=TOKENS if i == 0 else None, tensors=tensors)
        return paths

    def test_is_one_model_of_all_parts(self, tmp_path: Path) -> None:
        """Sizes and weights are the sum of the parts, the path is the first, the name is without the part."""
        paths = self._split(tmp_path)
        model = read_gguf(paths[0])
        assert (model.name, model.path, model.files) == ("Big-Q4_K_M", paths[0], tuple(paths))
        assert model.size_bytes == sum(p.stat().st_size for p in paths)
        assert model.parameters == 3 * 32 * 32

    def test_any_part_leads_to_it(self, tmp_path: Path) -> None:
        """Given the second part, the model is the same."""
        paths = self._split(tmp_path)
        assert read_gguf(paths[1]) == read_gguf(paths[0])

    def test_missing_part(self, tmp_path: Path) -> None:
        """A missing part is named."""
        paths = self._split(tmp_path)
        paths[1].unlink()
        with pytest.raises(ModelFileError, match=f"{paths[1].name} is missing"):
            read_gguf(paths[0])

    def test_damaged_part(self, tmp_path: Path) -> None:
        """A part that is cut off is an error of the model."""
        paths = self._split(tmp_path)
        paths[2].write_bytes(paths[2].read_bytes()[:-100])
        with pytest.raises(ModelFileError, match="truncated"):
            read_gguf(paths[0])

    def test_renamed_part(self, tmp_path: Path) -> None:
        """A part under another name cannot be loaded by llama.cpp either, and the sentence says why."""
        path = self._split(tmp_path)[0].rename(tmp_path / "renamed.gguf")
        with pytest.raises(ModelFileError, match="one of the 3 parts of a split model"):
            read_gguf(path)


class TestDraftHeads:
    """Architectures, keys and tensors as in llama.cpp b11434."""

    def _head(self, tmp_path: Path, architecture: str, tensors: list[str], width: int = 32, **keys: object):
        arrays = {name: np.ones((32, 32), np.float16) for name in tensors}
        prefixed = {f"{architecture}.{k}": v for k, v in keys.items()}
        path = write_gguf(
            tmp_path / "h.gguf",
            architecture=architecture,
            keys=prefixed,
            tensors=arrays,
            width=width,
            layers=1,
        )
        return read_gguf(path)

    def test_eagle3(self, tmp_path: Path) -> None:
        """Arch eagle3, with the hidden size and the layers of the model that it was trained for."""
        model = self._head(
            tmp_path, "eagle3", ["fc.weight", "blk.0.attn_q.weight"],
            target_layers=[2, 18, 33], target_hidden_size=np.uint32(4096),
        )  # fmt: skip
        assert model.draft_kind == "eagle3"
        assert model.head is not None
        assert (model.head.hidden_size, model.head.target_layers) == (4096, (2, 18, 33))

    def test_dflash(self, tmp_path: Path) -> None:
        """Arch dflash proposes at most a block less one; its hidden size is the main model's."""
        model = self._head(
            tmp_path, "dflash", ["blk.0.attn_q.weight"], target_layers=[1, 9], block_size=np.uint32(16)
        )
        assert model.draft_kind == "dflash"
        assert model.head is not None
        assert (model.head.hidden_size, model.head.n_max, model.head.takes_p_min) == (32, 15, True)

    def test_dspark(self, tmp_path: Path) -> None:
        """The Markov head tells DSpark from DFlash; without a confidence head it takes no p-min."""
        tensors = ["blk.0.attn_q.weight", "markov_w1.weight"]
        model = self._head(
            tmp_path, "dflash", tensors, target_layers=[1], block_size=np.uint32(8), has_confidence_head=False
        )
        assert model.draft_kind == "dspark"
        assert model.head is not None
        assert (model.head.n_max, model.head.takes_p_min) == (8, False)

    def test_mtp_head_alone(self, tmp_path: Path) -> None:
        """``convert_hf_to_gguf.py --mtp`` writes the last block and no trunk."""
        tensors = {
            n: np.ones((32, 32), np.float16) for n in ("token_embd.weight", "blk.4.nextn.eh_proj.weight")
        }
        keys = {"qwen35.nextn_predict_layers": np.uint32(1)}
        path = write_gguf(tmp_path / "mtp.gguf", architecture="qwen35", layers=5, keys=keys, tensors=tensors)
        model = read_gguf(path)
        assert model.draft_kind == "mtp"
        assert model.head is not None
        assert model.head.hidden_size == 32

    @pytest.mark.parametrize(
        ("architecture", "heads", "n_max"), [("step35", 3, 3), ("qwen35", 1, 0), ("gemma4-assistant", 4, 0)]
    )
    def test_chained_heads_limit_the_proposals(
        self, tmp_path: Path, architecture: str, heads: int, n_max: int
    ) -> None:
        """llama.cpp cuts n_max to the number of heads where it chains them; an assistant's layers are one head."""
        tensors = [f"blk.{9 - i}.nextn.eh_proj.weight" for i in range(heads)]
        keys = {
            f"{architecture}.nextn_predict_layers": np.uint32(heads),
            f"{architecture}.block_count": np.uint32(10),
        }
        arrays = {name: np.ones((32, 32), np.float16) for name in tensors}
        model = read_gguf(
            write_gguf(tmp_path / "mtp.gguf", architecture=architecture, keys=keys, tensors=arrays)
        )
        assert model.head is not None
        assert (model.head.kind, model.head.n_max) == ("mtp", n_max)

    def test_model_with_mtp_layers(self, tmp_path: Path) -> None:
        """A whole model with an MTP layer is a main model; the layer costs nothing in plain decoding."""
        names = [
            "token_embd.weight",
            "blk.0.attn_q.weight",
            "blk.1.attn_q.weight",
            "blk.1.nextn.eh_proj.weight",
        ]
        tensors = {n: np.ones((32, 32), np.float16) for n in names}
        keys = {"qwen35.nextn_predict_layers": np.uint32(1)}
        path = write_gguf(tmp_path / "m.gguf", architecture="qwen35", layers=2, keys=keys, tensors=tensors)
        model = read_gguf(path)
        assert (model.draft_kind, model.mtp_layers, model.layers) == ("", 1, 1)
        assert model.bytes_per_token == 2 * 2 * 32 * 32

    def test_mtp_weights_left_out(self, tmp_path: Path) -> None:
        """The key alone is no MTP layer: some files come without its weights."""
        keys = {"llama.nextn_predict_layers": np.uint32(1)}
        assert read_gguf(write_gguf(tmp_path / "m.gguf", keys=keys)).mtp_layers == 0


@pytest.mark.parametrize(
    ("architecture", "keys", "role"),
    [
        ("llama", {}, "text"),
        ("clip", {}, "projector"),
        ("llama", {"general.type": "adapter"}, "adapter"),
        ("llama", {"general.type": "imatrix"}, "other"),
        ("llama", {"general.type": "mmproj"}, "projector"),
        ("nomic-bert", {}, "embedding"),
        ("qwen3", {"qwen3.pooling_type": np.uint32(3)}, "embedding"),
        ("qwen3", {"general.tags": ["transformers", "sentence-similarity"]}, "embedding"),
        ("qwen3", {"general.tags": ["text-ranking"]}, "embedding"),
        ("qwen3", {"general.tags": ["text-generation", "feature-extraction"]}, "text"),
        ("qwen3", {"general.tags": ["conversational", "text-generation"]}, "text"),
        ("qwen3", {"general.tags": ["feature-extraction"] * 1000}, "text"),
        ("qwen3", {"general.tags": [1, 2]}, "text"),
        ("qwen3", {"general.tags": "feature-extraction"}, "text"),
    ],
)
def test_role(tmp_path: Path, architecture: str, keys: dict[str, object], role: str) -> None:
    """What is no language model says what it is."""
    assert read_gguf(write_gguf(tmp_path / "m.gguf", architecture=architecture, keys=keys)).role == role


def test_a_model_with_a_classifier_ranks_texts(tmp_path: Path) -> None:
    """Qwen3-Reranker: the architecture of a language model, and one more tensor."""
    arrays = {
        n: np.ones((32, 32), np.float16)
        for n in ("token_embd.weight", "blk.0.attn_q.weight", "cls.output.weight")
    }
    assert (
        read_gguf(write_gguf(tmp_path / "m.gguf", architecture="qwen3", tensors=arrays)).role == "embedding"
    )


def test_image_model_is_no_language_model(tmp_path: Path) -> None:
    """A GGUF without a vocabulary, of an architecture that llama.cpp has not, is something else."""
    assert read_gguf(write_gguf(tmp_path / "m.gguf", architecture="flux", tokens=None)).role == "other"


@pytest.mark.parametrize(
    "name", ["v.patch_embd.weight", "mm.input_projection.weight", "a.blk.0.attn_q.weight"]
)
@pytest.mark.parametrize(("architecture", "role"), [("gemma3", "combined"), ("clip", "projector")])
def test_image_and_text_in_one_file(tmp_path: Path, name: str, architecture: str, role: str) -> None:
    """Ollama's own vision models: llama.cpp ends with "wrong number of tensors". A projector alone is one."""
    arrays = {n: np.ones((32, 32), np.float16) for n in ("token_embd.weight", "blk.0.attn_q.weight", name)}
    path = write_gguf(tmp_path / "m.gguf", architecture=architecture, tensors=arrays)
    assert read_gguf(path).role == role


def test_no_language_model_of_llama_cpp_has_tensors_of_images() -> None:
    """By the names that the package `gguf` has for every architecture; ``mmproj`` is the projector's."""
    names = {
        gguf.TENSOR_NAMES[tensor]
        for architecture, tensors in gguf.MODEL_TENSORS.items()
        if architecture is not gguf.MODEL_ARCH.MMPROJ
        for tensor in tensors
    }
    assert "blk.{bid}.attn_q" in names
    assert not [name for name in names if name.startswith(_OF_OTHER_MEDIA)]


def test_vocabulary_without_weights(tmp_path: Path) -> None:
    """llama.cpp's ggml-vocab files hold a vocabulary alone."""
    assert read_gguf(write_gguf(tmp_path / "m.gguf", tensors={})).role == "vocabulary"


def test_no_architecture_is_an_error(tmp_path: Path) -> None:
    """A file that does not say its architecture cannot be loaded by anything."""
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architecturX"))
    with pytest.raises(ModelFileError, match="which architecture"):
        read_gguf(path)


class TestVocabularyDefaults:
    """Where keys are missing, llama.cpp's defaults by type of tokenizer and pre-tokenizer hold."""

    @pytest.mark.parametrize(
        ("kind", "pre", "expected"),
        [
            ("gpt2", "smollm", (11, 11, False, False)),
            ("gpt2", "llama-bpe", (11, 11, True, False)),
            ("gpt2", "tekken", (11, 11, True, False)),
            ("gpt2", "glm4", (-1, 11, False, False)),
            ("llama", "", (1, 2, True, False)),
            ("t5", "", (-1, 1, False, True)),
            ("bert", "", (101, -1, True, False)),
            ("rwkv", "", (-1, -1, False, False)),
            ("gemma4", "", (-1, -1, True, False)),
        ],
    )
    def test_defaults(
        self, tmp_path: Path, kind: str, pre: str, expected: tuple[int, int, bool, bool]
    ) -> None:
        """Ids and whether they are added."""
        keys = {
            "tokenizer.ggml.model": kind,
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.bos_token_id": None,
            "tokenizer.ggml.eos_token_id": None,
        }
        vocab = read_gguf(write_gguf(tmp_path / "m.gguf", keys=keys)).vocab
        assert vocab is not None
        assert (vocab.bos, vocab.eos, vocab.add_bos, vocab.add_eos) == expected

    def test_the_file_s_word_goes_first(self, tmp_path: Path) -> None:
        """Keys in the file override, and an id outside of the vocabulary counts as none."""
        keys = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_eos_token": True,
            "tokenizer.ggml.bos_token_id": np.uint32(7),
            "tokenizer.ggml.eos_token_id": np.uint32(70_000),
        }
        vocab = read_gguf(write_gguf(tmp_path / "m.gguf", keys=keys)).vocab
        assert vocab is not None
        assert (vocab.bos, vocab.eos, vocab.add_bos, vocab.add_eos) == (7, 2, False, True)


class TestFingerprint:
    """Which model it is, wherever it stands."""

    def test_does_not_see_the_path(self, tmp_path: Path) -> None:
        """A copy under another name is the same model."""
        path = write_gguf(tmp_path / "a.gguf")
        copy = Path(shutil.copy(path, tmp_path / "b.gguf"))
        assert read_gguf(path).fingerprint == read_gguf(copy).fingerprint

    def test_tells_other_weights_apart(self, tmp_path: Path) -> None:
        """Two fine-tunes with equal headers are two models."""
        one = read_gguf(write_gguf(tmp_path / "a.gguf", seed=1))
        two = read_gguf(write_gguf(tmp_path / "b.gguf", seed=2))
        assert one.size_bytes == two.size_bytes
        assert one.fingerprint != two.fingerprint

    def test_tells_other_metadata_apart(self, tmp_path: Path) -> None:
        """Another context length is another model."""
        one = read_gguf(write_gguf(tmp_path / "a.gguf"))
        two = read_gguf(write_gguf(tmp_path / "b.gguf", keys={"llama.context_length": np.uint32(4096)}))
        assert one.fingerprint != two.fingerprint
