"""MLX folders: config.json, safetensors headers, tokenizer.json, and damaged ones."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from autospec.catalog import mlx
from autospec.catalog.candidates import undraftable
from autospec.catalog.mlx import read_mlx
from autospec.catalog.model import Model
from autospec.catalog.vocabulary import vocabulary_mismatch
from autospec.errors import ModelFileError
from tests.catalog.making import MLX_TENSORS, TOKENS, write_mlx


def test_dense_float32(tmp_path: Path) -> None:
    """Weights, sizes and the KV cache of a plain model."""
    model = read_mlx(write_mlx(tmp_path / "Tiny"))
    weights = 2 * 300 * 32 + 2 * 32 * 32
    assert (model.name, model.format, model.architecture) == ("Tiny", "mlx", "llama")
    assert model.parameters == model.active_parameters == weights
    assert model.quantization == "float32"
    assert model.kv_bytes_per_token == 2 * 2 * 8 * 2 * 2
    assert (model.context_length, model.layers, model.embedding_length) == (2048, 2, 32)
    # One row of the embedding is looked up; the output matrix is read.
    assert model.bytes_per_token == 4 * (weights - 300 * 32)
    assert model.size_bytes == (tmp_path / "Tiny" / "model.safetensors").stat().st_size


def test_quantized(tmp_path: Path) -> None:
    """Packed words count as the weights that they hold, scales and biases as none; exceptions go by layer."""
    tensors = {
        "model.embed_tokens.weight": ("U32", (300, 4)), "model.embed_tokens.scales": ("F16", (300, 1)),
        "model.embed_tokens.biases": ("F16", (300, 1)), "model.layers.0.mlp.up_proj.weight": ("U32", (64, 8)),
        "model.layers.0.mlp.up_proj.scales": ("F16", (64, 1)), "model.norm.weight": ("F16", (32,)),
    }  # fmt: skip
    config = {
        "quantization": {
            "group_size": 32,
            "bits": 4,
            "model.layers.0.mlp.up_proj": {"group_size": 32, "bits": 8},
        }
    }
    model = read_mlx(write_mlx(tmp_path / "m", config=config, tensors=tensors))
    assert model.quantization == "4-bit"
    assert model.parameters == 300 * 32 + 64 * 32 + 32


def test_mxfp4(tmp_path: Path) -> None:
    """Other modes of quantization are called by their names."""
    config = {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    assert read_mlx(write_mlx(tmp_path / "m", config=config)).quantization == "mxfp4"


@pytest.mark.parametrize(
    ("keys", "stacked"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 1}, True),
        ({"num_local_experts": 4, "num_experts_per_tok": 1}, True),
        ({"n_routed_experts": 4, "num_experts_per_tok": 1, "n_shared_experts": 1}, False),
    ],
)
def test_moe(tmp_path: Path, keys: dict[str, int], stacked: bool) -> None:
    """Experts under their various keys, stacked or one by one; shared experts are always active."""
    tensors = dict(MLX_TENSORS) | {"model.layers.0.mlp.shared_experts.up_proj.weight": ("F32", (8, 32))}
    if stacked:
        tensors["model.layers.0.mlp.switch_mlp.up_proj.weight"] = ("F32", (4, 8, 32))
    else:
        tensors |= {f"model.layers.0.mlp.experts.{i}.up_proj.weight": ("F32", (8, 32)) for i in range(4)}
    model = read_mlx(write_mlx(tmp_path / "m", config=keys, tensors=tensors))
    assert (model.experts, model.active_experts) == (4, 1)
    assert model.parameters - model.active_parameters == 3 * 8 * 32
    assert model.bytes_per_token == 4 * (model.active_parameters - 300 * 32)


def test_nested_text_config(tmp_path: Path) -> None:
    """A model that also sees has its language part one level down."""
    inner = {"num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = {
        "model_type": "gemma3", "text_config": inner, "num_hidden_layers": None,
        "architectures": ["Gemma3ForConditionalGeneration"],
    }  # fmt: skip
    model = read_mlx(write_mlx(tmp_path / "m", config=config))
    assert (model.layers, model.embedding_length, model.role) == (6, 64, "text")
    assert model.kv_bytes_per_token == 6 * 4 * 8 * 2 * 2


@pytest.mark.parametrize(
    ("config", "cached_layers"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, 1),
        ({"full_attention_interval": 2}, 1),
        ({"model_type": "mamba2"}, 2),
    ],
)
def test_recurrent_layers(tmp_path: Path, config: dict[str, object], cached_layers: int) -> None:
    """Hybrids are known by their layers, pure state-space models by their type."""
    model = read_mlx(write_mlx(tmp_path / "m", config=config))
    assert model.has_recurrent_state
    assert model.kv_bytes_per_token == cached_layers * 2 * 8 * 2 * 2


def test_sliding_window(tmp_path: Path) -> None:
    """Layers with a window stop growing."""
    config = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}
    model = read_mlx(write_mlx(tmp_path / "m", config=config))
    assert not model.has_recurrent_state
    assert model.kv_bytes(10_000) == 2 * 8 * 2 * 2 * (10_000 + 128 + 512)


def test_mtp_layers_only_with_their_weights(tmp_path: Path) -> None:
    """mlx_lm drops the weights when it converts, and then the key is empty talk."""
    config = {"num_nextn_predict_layers": 1}
    assert read_mlx(write_mlx(tmp_path / "a", config=config)).mtp_layers == 0
    tensors = dict(MLX_TENSORS) | {"model.layers.2.eh_proj.weight": ("F32", (8, 8))}
    assert read_mlx(write_mlx(tmp_path / "b", config=config, tensors=tensors)).mtp_layers == 1


@pytest.mark.parametrize(
    ("config", "role"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "text"),
        ({"architectures": None}, "text"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "embedding"),
        ({"architectures": ["Qwen3Model"]}, "embedding"),
        ({"architectures": None, "model_type": "nomic_bert"}, "embedding"),
        (
            {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta"},
            "embedding",
        ),
        ({"architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert"}, "embedding"),
        ({"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}, "other"),
        ({"architectures": ["ViTForImageClassification"]}, "other"),
    ],
)
def test_role(tmp_path: Path, config: dict[str, object], role: str) -> None:
    """Folders of other kinds of models are told by their classes."""
    assert read_mlx(write_mlx(tmp_path / "m", config=config)).role == role


def test_a_folder_of_sentence_transformers_makes_embeddings(tmp_path: Path) -> None:
    """Qwen3-Embedding has the class and the weights of a language model."""
    folder = write_mlx(tmp_path / "m", config={"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})
    assert read_mlx(folder).role == "text"
    (folder / "modules.json").write_text("[]")
    assert read_mlx(folder).role == "embedding"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "bailing_moe_linear"}, "a recurrent state"),
        ({"model_type": "longcat_flash_ngram"}, "a recurrent state"),
        (
            {"model_type": "baichuan_m1", "sliding_window": 64, "sliding_window_layers": [0]},
            "a recurrent state",
        ),
        ({"model_type": "deepseek_v41", "sliding_window": 128}, "a recurrent state"),
        ({"model_type": "qwen3_next"}, "a recurrent state"),
        ({"model_type": "gear", "layer_types": ["conv_mixer", "full_attention"]}, "a recurrent state"),
        ({"model_type": "mimo_v2_flash", "sliding_window_size": 96}, "a window of 96 tokens"),
        ({"model_type": "iquestloopcoder", "loop_window_size": 32}, "a window of 32 tokens"),
        ({"model_type": "iquestloopcoder"}, "a window of 64 tokens"),
        (
            {"model_type": "exaone4", "sliding_window_pattern": "LG", "sliding_window": 77},
            "a window of 77 tokens",
        ),
        ({"model_type": "cohere2", "sliding_window": 50}, "a window of 50 tokens"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "a window of 512 tokens"),
        ({"model_type": "llama4", "text_config": {"attention_chunk_size": 40}}, "a window of 40 tokens"),
        ({"model_type": "gpt_oss"}, "a window of 128 tokens"),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention"] * 2}, ""),
        ({"model_type": "exaone4", "sliding_window_pattern": None, "sliding_window": 77}, ""),
        ({"model_type": "iquestcoder"}, ""),
        ({"model_type": "llama4_text", "attention_chunk_size": 40}, ""),
        ({"model_type": "longcat_flash"}, ""),
        ({"model_type": "qwen3"}, ""),
    ],
)
def test_caches_that_config_json_hides(tmp_path: Path, config: dict[str, object], why: str) -> None:
    """Some types have a cache that cannot be rolled back, and their layers do not show it."""
    said = undraftable(read_mlx(write_mlx(tmp_path / "m", config=config)))
    assert why in said
    assert bool(said) is bool(why)


def test_the_tables_of_caches_are_those_of_mlx_lm() -> None:
    """Every type of the installed mlx_lm whose `make_cache` is not plain is in a table, or lists its layers; no other is."""
    found = importlib.util.find_spec("mlx_lm")
    if found is None or found.origin is None:
        pytest.skip("mlx-lm is not installed")
    listed = {"exaone4", "exaone_moe", "gear", "granitemoehybrid", "laguna", "llama", "ministral3"}
    known = mlx._STATE_TYPES | mlx._WINDOW_TYPES.keys() | listed
    models = {p.stem: p.read_text("utf-8") for p in (Path(found.origin).parent / "models").glob("*.py")}
    special = re.compile(r"(?:Arrays|Rotating\w*|Chunked\w*|Layer)Cache\(|RotatingKVCache\(")
    unlisted = {
        name
        for name, text in models.items()
        if "def make_cache" in text and special.search(text) and name != "cache"
    }
    assert unlisted
    assert unlisted <= known


def test_a_model_type_that_is_no_text(tmp_path: Path) -> None:
    """Anything may stand in config.json."""
    for i, odd in enumerate((["llama"], {"a": 1}, 7, "\ud800")):
        model = read_mlx(write_mlx(tmp_path / str(i), config={"model_type": odd}))
        assert json.dumps(model.to_json(), ensure_ascii=False).encode()


class TestVocabulary:
    """tokenizer.json, by llama.cpp's rule for texts."""

    def test_ids(self, tmp_path: Path) -> None:
        """Special tokens are found by their texts, the digest is over all."""
        vocab = read_mlx(write_mlx(tmp_path / "m")).vocab
        assert vocab is not None
        assert (vocab.kind, vocab.size, vocab.bos, vocab.eos) == ("BPE", 300, 1, 2)

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        """A folder without one has no vocabulary."""
        assert read_mlx(write_mlx(tmp_path / "m", tokens=None)).vocab is None

    @pytest.mark.parametrize("file", ["vocab.json", "qwen.tiktoken", "tiktoken.model"])
    def test_tokenizers_in_python(self, tmp_path: Path, file: str) -> None:
        """Without tokenizer.json the tokens are read from the file of the tokenizer, and compared like any other."""

        def make(name: str, tokens: list[str]) -> Model:
            folder = write_mlx(tmp_path / name, tokens=None)
            if file == "vocab.json":
                content = json.dumps({t: i for i, t in enumerate(tokens)})
            else:
                lines = (f"{base64.b64encode(t.encode()).decode()} {i}" for i, t in enumerate(tokens))
                content = "\n".join(lines) + "\n"
            (folder / file).write_text(content)
            settings = {"eos_token": "<end>", "added_tokens_decoder": {"301": {"content": "<end>"}}}
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
            return read_mlx(folder)

        one, same, other = make("a", TOKENS), make("b", TOKENS), make("c", [*TOKENS[:9], "x", *TOKENS[10:]])
        assert one.vocab is not None
        assert (one.vocab.size, one.vocab.eos) == (302, 301)
        assert vocabulary_mismatch(one, same) == ""
        assert "differ from id 9 on" in vocabulary_mismatch(one, other)
        if file == "vocab.json":
            whole = read_mlx(write_mlx(tmp_path / "d"))
            assert vocabulary_mismatch(one, whole) == ""

    def test_a_tokenizer_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        """The sentence says which files would do."""
        one = read_mlx(write_mlx(tmp_path / "a"))
        other = read_mlx(write_mlx(tmp_path / "b", tokens=None))
        why = vocabulary_mismatch(one, other)
        assert why.endswith("it has no vocabulary in its files (tokenizer.json, vocab.json or *.tiktoken)")

    @pytest.mark.parametrize("content", ["noise", "!!! 1", "YQ== x", "YQ== 1 2", "YQ== -3"])
    def test_a_damaged_file_of_tiktoken(self, tmp_path: Path, content: str) -> None:
        """It is one sentence about that file."""
        folder = write_mlx(tmp_path / "m", tokens=None)
        (folder / "m.tiktoken").write_text(content)
        with pytest.raises(ModelFileError, match=r"m\.tiktoken is damaged"):
            read_mlx(folder)

    def test_added_tokens_count(self, tmp_path: Path) -> None:
        """Tokens added behind the vocabulary, with a gap, belong to it."""
        folder = write_mlx(tmp_path / "m")
        document = json.loads((folder / "tokenizer.json").read_text())
        document["added_tokens"] = [{"id": 310, "content": "<|im_end|>", "special": True}]
        (folder / "tokenizer.json").write_text(json.dumps(document))
        vocab = read_mlx(folder).vocab
        assert vocab is not None
        assert vocab.size == 311

    def test_unigram_list(self, tmp_path: Path) -> None:
        """Unigram models list pairs of text and score."""
        folder = write_mlx(tmp_path / "m")
        document = {"model": {"type": "Unigram", "vocab": [[t, -1.0] for t in TOKENS]}}
        (folder / "tokenizer.json").write_text(json.dumps(document))
        vocab = read_mlx(folder).vocab
        plain = read_mlx(write_mlx(tmp_path / "n")).vocab
        assert vocab is not None
        assert plain is not None
        assert (vocab.kind, vocab.digest) == ("Unigram", plain.digest)

    def test_rule(self, tmp_path: Path) -> None:
        """Equal texts fit, a different one does not, 128 more do."""
        one = read_mlx(write_mlx(tmp_path / "a"))
        other = read_mlx(write_mlx(tmp_path / "b", tokens=[*TOKENS[:9], "x", *TOKENS[10:]]))
        more = read_mlx(write_mlx(tmp_path / "c", tokens=[*TOKENS, *(f"m{i}" for i in range(128))]))
        assert vocabulary_mismatch(one, one) == ""
        assert "from id 9 on" in vocabulary_mismatch(one, other)
        assert vocabulary_mismatch(one, more) == ""


class TestDamage:
    """Whatever is wrong with a folder is a ModelFileError with a path in it."""

    def _raises(self, folder: Path, says: str) -> None:
        with pytest.raises(ModelFileError, match=says):
            read_mlx(folder)

    def test_truncated_weights(self, tmp_path: Path) -> None:
        """A download that broke off."""
        folder = write_mlx(tmp_path / "m")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        self._raises(folder, r"truncated: it has \d+ of \d+ bytes")

    @pytest.mark.parametrize(
        "content", [b"", b"1234", bytes(8), b"\xff" * 100, (20).to_bytes(8, "little") + b"x" * 30]
    )
    def test_damaged_weights(self, tmp_path: Path, content: bytes) -> None:
        """Empty, cut off in the header, noise."""
        folder = write_mlx(tmp_path / "m")
        (folder / "model.safetensors").write_bytes(content)
        self._raises(folder, "damaged")

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
    @pytest.mark.parametrize("content", ["", "{", "[]", "7"])
    def test_damaged_json(self, tmp_path: Path, name: str, content: str) -> None:
        """The file that is damaged is named."""
        folder = write_mlx(tmp_path / "m")
        (folder / name).write_text(content)
        self._raises(folder, name)

    def test_missing_shard(self, tmp_path: Path) -> None:
        """The index names a file that is not there."""
        folder = write_mlx(tmp_path / "m", file_name="model-00001-of-00002.safetensors")
        index = {
            "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self._raises(folder, "model-00002-of-00002.safetensors missing")

    def test_changed_bytes_never_raise_anything_else(self, tmp_path: Path) -> None:
        """Any few bytes changed in any of the files: it reads, or it is a ModelFileError."""
        whole = write_mlx(
            tmp_path / "whole", tokens=TOKENS[:9], config={"num_experts": 2, "layer_types": ["a", "b"]}
        )
        chance = random.Random(3)
        outcomes = set()
        for _ in range(150):
            folder = tmp_path / "changed"
            shutil.copytree(whole, folder, dirs_exist_ok=True)
            path = folder / chance.choice(["config.json", "tokenizer.json", "model.safetensors"])
            raw = bytearray(path.read_bytes())
            for _ in range(chance.randint(1, 3)):
                raw[chance.randrange(min(len(raw), 700))] = chance.choice((*b'0912-"{}[],:.eEn', 0, 255))
            path.write_bytes(raw)
            try:
                outcomes.add(type(read_mlx(folder)).__name__)
            except ModelFileError as error:
                outcomes.add("named" if str(folder) in str(error) else str(error))
        assert outcomes == {"Model", "named"}


def test_fingerprint_does_not_see_the_path(tmp_path: Path) -> None:
    """A copy is the same model, another configuration is not."""
    one = read_mlx(write_mlx(tmp_path / "a"))
    two = read_mlx(write_mlx(tmp_path / "b"))
    three = read_mlx(write_mlx(tmp_path / "c", config={"rope_theta": 5}))
    assert one.fingerprint == two.fingerprint != three.fingerprint
