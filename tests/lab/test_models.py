"""The lab's models have the properties that the lab claims."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.protocol import LaunchSettings, Request
from autospec.catalog.gguf import read_gguf
from autospec.drafting import OFF, Drafting, Mode
from tests.conftest import LabModels
from tests.lab import Recipe, sliding_main

# One thread: two spin against each other where the cores are shared, and become twenty times slower.
SETTINGS = LaunchSettings(("-c", "1024", "-t", "1"), ready_timeout_s=120)
SLIDING = sliding_main(31, gguf.GGMLQuantizationType.Q8_0)
QUESTION = Request(
    [{"role": "user", "content": "Write a Python function that returns the n-th Fibonacci number."}],
    max_tokens=24,
)


@cache
def read(path: Path) -> gguf.GGUFReader:
    """The file, opened; parsing a vocabulary takes seconds, so once for all tests."""
    return gguf.GGUFReader(path)


def tensors(path: Path) -> dict[str, Any]:
    """The file's tensors by name."""
    return {tensor.name: tensor for tensor in read(path).tensors}


def field(path: Path, key: str) -> Any:
    """One metadata value."""
    return read(path).fields[key].contents()


def test_the_added_layers_of_a_slow_main_add_nothing(lab_models: LabModels) -> None:
    """Attention output and feed-forward output are zero in every added layer and in no real one."""
    found = tensors(lab_models.slow_main_small)
    assert field(lab_models.slow_main_small, "llama.block_count") == 90
    for index in range(90):
        for name in ("attn_output", "ffn_down"):
            silent = not np.any(found[f"blk.{index}.{name}.weight"].data)
            assert silent == (index >= 30), f"layer {index}, {name}"


def test_a_slow_main_costs_what_its_layers_weigh(lab_models: LabModels) -> None:
    """The added layers are stored in full, so a server reads and multiplies them."""
    found = tensors(lab_models.slow_main_small)
    sizes = {
        index: sum(t.n_bytes for name, t in found.items() if name.startswith(f"blk.{index}."))
        for index in (0, 29, 30, 89)
    }
    assert len(set(sizes.values())) == 1


def test_a_sliding_main_keeps_a_window_in_its_added_layers(lab_models: LabModels) -> None:
    """One layer of 31 adds nothing and sees 128 tokens, which the catalogue reads from its file."""
    model = read_gguf(lab_models.path(SLIDING))
    assert model.sliding_window == 128
    assert model.kv_sliding_bytes_per_token * 31 == model.kv_bytes_per_token


@pytest.mark.slow
@pytest.mark.parametrize("main", ["slow-main-small", SLIDING], ids=["slow", "sliding"])
def test_a_slow_main_writes_what_the_fast_main_writes(
    main: str | Recipe, lab_models: LabModels, llama_server_binary: Path, tmp_path: Path
) -> None:
    """Greedy text is equal, and the original drafts for it with nearly full acceptance; a window changes neither."""
    backend = LlamaServer(llama_server_binary, tmp_path)
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.smollm2), n_max=4, n_min=0, p_min=0.0)
    slow, texts = lab_models.path(main), []
    for model, how in ((lab_models.fast_main, OFF), (slow, OFF), (slow, drafting)):
        server = backend.launch(str(model), how, SETTINGS)
        try:
            answer = server.complete(QUESTION)
        finally:
            server.stop()
        texts.append(answer.text)
    # Not to the end: a window's attention and a batch round differently, and on some processors (with AVX512-FP16) the 25th token is
    # another one of two that are nearly as likely.
    assert len({text[:60] for text in texts}) == 1
    assert len(texts[0]) > 60
    assert answer.drafted
    assert answer.accepted is not None
    assert answer.accepted >= 0.8 * answer.drafted


def test_a_bad_draft_keeps_the_vocabulary_and_loses_layers(lab_models: LabModels) -> None:
    """It fits by its tokens; only its predictions are worse."""
    tokens = "tokenizer.ggml.tokens"
    assert field(lab_models.bad_draft, "llama.block_count") == 27
    assert field(lab_models.bad_draft, tokens) == field(lab_models.smollm2, tokens)


def test_another_vocabulary_differs_in_its_words_only(lab_models: LabModels) -> None:
    """Type, size and control tokens agree, so nothing but the texts can tell."""
    theirs = field(lab_models.other_vocab, "tokenizer.ggml.tokens")
    ours = field(lab_models.smollm2, "tokenizer.ggml.tokens")
    assert theirs[:17] == ours[:17]
    assert sorted(theirs) == sorted(ours)
    assert sum(a != b for a, b in zip(theirs, ours, strict=True)) > 49_000


def test_another_tokenizer_is_of_another_type(lab_models: LabModels) -> None:
    """SentencePiece with a score for every token, as llama.cpp demands of it."""
    path = lab_models.other_tokenizer
    assert field(path, "tokenizer.ggml.model") == "llama"
    assert len(field(path, "tokenizer.ggml.scores")) == len(field(path, "tokenizer.ggml.tokens")) == 49_152


def test_the_moe_says_how_many_experts_it_has(lab_models: LabModels) -> None:
    """Four equal experts in each layer, two active."""
    assert field(lab_models.moe, "llama.expert_count") == 4
    assert field(lab_models.moe, "llama.expert_used_count") == 2
    experts = tensors(lab_models.moe)["blk.7.ffn_up_exps.weight"].data
    assert experts.shape[0] == 4
    assert np.array_equal(experts[0], experts[3])


def test_the_damaged_files_end_too_early(lab_models: LabModels) -> None:
    """One is cut in its weights, the other in its metadata, before the first tensor is even described."""
    whole = lab_models.smollm2.stat().st_size
    assert lab_models.damaged.stat().st_size == whole // 2
    with pytest.raises((ValueError, IndexError)):
        gguf.GGUFReader(lab_models.damaged_header)
