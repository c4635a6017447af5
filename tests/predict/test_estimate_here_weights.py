"""A model's weights by how a pass reads them: shared, experts, looked-up tables, MTP layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autospec.catalog.gguf import read_gguf
from autospec.catalog.mlx import read_mlx
from autospec.catalog.model import Model
from autospec.errors import ModelFileError
from autospec.predict.estimate import read_weights
from tests.catalog.making import write_gguf, write_mlx
from tests.catalog.test_gguf import moe_tensors

TABLE = 300 * 32


def per_token(model: Model) -> float:
    """What a token reads, by the parts."""
    weights = read_weights(model)
    share = model.active_experts / model.experts if model.experts else 0.0
    return weights.shared_bytes + share * weights.expert_bytes


def test_a_dense_model_reads_all_but_its_embedding(tmp_path: Path) -> None:
    """One row of the embedding is looked up; the output matrix is read whole."""
    model = read_gguf(write_gguf(tmp_path / "m.gguf"))
    weights = read_weights(model)
    layers = 2 * (32 * 32 + 64 * 32)
    assert weights.shared_bytes == 2 * (TABLE + layers)
    assert (weights.expert_bytes, weights.mtp_bytes) == (0, 0)
    assert weights.row_bytes == 2 * 32
    assert weights.output_bytes == 2 * TABLE
    assert weights.multiplied == TABLE + layers
    assert per_token(model) == model.bytes_per_token


def test_an_embedding_that_is_the_output_matrix_is_read_whole(tmp_path: Path) -> None:
    """Small models have one table for both."""
    tensors = {n: np.ones((300, 32), np.float16) for n in ("token_embd.weight", "blk.0.attn_q.weight")}
    model = read_gguf(write_gguf(tmp_path / "m.gguf", tensors=tensors, layers=1))
    weights = read_weights(model)
    assert weights.row_bytes == 0
    assert weights.output_bytes == 2 * TABLE
    assert weights.shared_bytes == model.bytes_per_token == 4 * TABLE


@pytest.mark.parametrize("stacked", [True, False])
def test_experts_are_told_apart_from_what_all_tokens_share(tmp_path: Path, *, stacked: bool) -> None:
    """All eight are in the sum, two of them in what a token reads and computes."""
    keys = {"llama.expert_count": np.uint32(8), "llama.expert_used_count": np.uint32(2)}
    tensors = moe_tensors(8, stacked=stacked)
    model = read_gguf(write_gguf(tmp_path / "m.gguf", keys=keys, tensors=tensors, layers=1))
    weights = read_weights(model)
    one, kinds = 64 * 32, 2 if stacked else 1
    assert weights.expert_bytes == 2 * 8 * kinds * one
    assert weights.shared_bytes == 2 * (TABLE + one)
    assert weights.multiplied == TABLE + one + 2 * kinds * one
    assert per_token(model) == model.bytes_per_token


def test_mtp_layers_are_no_part_of_the_trunk(tmp_path: Path) -> None:
    """Decoding does not read them; a proposal does, with the output matrix."""
    names = ("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.1.nextn.eh_proj.weight")
    tensors = {n: np.ones((300, 32), np.float16) for n in names}
    keys = {"qwen35.nextn_predict_layers": np.uint32(1)}
    model = read_gguf(
        write_gguf(tmp_path / "m.gguf", architecture="qwen35", keys=keys, tensors=tensors, layers=2)
    )
    weights = read_weights(model)
    assert model.mtp_layers == 1
    assert weights.mtp_bytes == 2 * TABLE
    assert weights.shared_bytes == model.bytes_per_token == 4 * TABLE


def test_a_head_without_an_output_matrix_says_so(tmp_path: Path) -> None:
    """It uses the main model's, which its reader has to add."""
    keys = {"dflash.target_layers": [1], "dflash.block_size": np.uint32(8)}
    tensors = {"blk.0.attn_q.weight": np.ones((32, 32), np.float16)}
    model = read_gguf(
        write_gguf(tmp_path / "h.gguf", architecture="dflash", keys=keys, tensors=tensors, layers=1)
    )
    weights = read_weights(model)
    assert model.draft_kind == "dflash"
    assert (weights.output_bytes, weights.shared_bytes) == (0, 2 * 32 * 32)


def test_an_mlx_folder(tmp_path: Path) -> None:
    """Packed experts, an embedding of its own, and MTP tensors, which mlx_lm leaves alone."""
    tensors = {
        "model.embed_tokens.weight": ("F16", (300, 32)),
        "lm_head.weight": ("F16", (300, 32)),
        "model.layers.0.self_attn.q_proj.weight": ("F16", (32, 32)),
        "model.layers.0.mlp.switch_mlp.up_proj.weight": ("U32", (4, 64, 4)),
        "model.layers.0.mlp.switch_mlp.up_proj.scales": ("F16", (4, 64, 1)),
        "model.mtp.fc.weight": ("F16", (32, 64)),
    }
    config = {"num_experts": 4, "num_experts_per_tok": 1, "quantization": {"bits": 4, "group_size": 32}}
    model = read_mlx(write_mlx(tmp_path / "m", config=config, tensors=tensors))
    weights = read_weights(model)
    assert weights.expert_bytes == 4 * 64 * 4 * 4 + 4 * 64 * 2
    assert weights.shared_bytes == 2 * (TABLE + 32 * 32)
    assert (weights.row_bytes, weights.output_bytes) == (2 * 32, 2 * TABLE)
    assert weights.multiplied == TABLE + 32 * 32 + 64 * 32
    assert per_token(model) == model.bytes_per_token


def test_a_file_that_has_gone_is_an_error(tmp_path: Path) -> None:
    """Between the scan and the estimate a file may be deleted."""
    path = write_gguf(tmp_path / "m.gguf")
    model = read_gguf(path)
    path.unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_weights(model)
