"""Public drafts from the table: which rows are for which main model, what is said of them, and that each row is sound."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autospec.catalog.candidates import candidates
from autospec.catalog.gguf import read_gguf
from autospec.catalog.mlx import read_mlx
from autospec.catalog.model import Model
from autospec.catalog.suggestions import Row, suggest, table
from autospec.drafting import Mode
from tests.catalog.making import make_model, write_gguf, write_mlx


def names(main: Model) -> list[str]:
    """Repositories and files that are suggested for a model."""
    return [f"{s.row.repository}/{s.row.file}".rstrip("/") for s in suggest(main, [])]


@pytest.mark.parametrize("row", table(), ids=lambda row: f"{row.repository}/{row.file}")
def test_a_row_is_sound(row: Row, tmp_path: Path) -> None:
    """It has a source and a day, and the catalogue recognises a main model that it is for."""
    assert row.source.startswith("https://")
    assert row.date >= dt.date(2026, 1, 1)
    assert row.repository.count("/") == 1
    assert row.why.endswith(".")
    assert row.mode is not Mode.OFF
    assert row.file.endswith(".gguf") or not row.file
    assert row.fits
    for architecture in row.architectures:
        if row.format == "mlx":
            main = read_mlx(
                write_mlx(tmp_path / architecture / row.main, config={"model_type": architecture})
            )
        else:
            (tmp_path / architecture).mkdir()
            main = read_gguf(
                write_gguf(tmp_path / architecture / f"{row.main}.gguf", architecture=architecture)
            )
        assert main.role == "text"
        # The file of the test is tiny, so that every real draft is larger than it.
        main = replace(main, bytes_per_token=20_000_000_000)
        assert row in [s.row for s in suggest(main, [])]


def test_rows_are_not_written_twice() -> None:
    """One row for each file."""
    keys = [(row.repository, row.file) for row in table()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3-32B-Q4_K_M",
        "Qwen_Qwen3-32B-Q4_K_M",
        "qwen3:32b",
        "Qwen3-Coder-30B-A3B-Instruct-Q6_K",
        "ggml-org/Qwen3-14B",
    ],
)
def test_a_family_is_recognised_as_files_and_ollama_write_it(name: str) -> None:
    """With the maker before it, and without a dash before its version."""
    assert "ggml-org/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf" in names(make_model(name, architecture="qwen3"))


def test_another_version_of_a_family_is_another_family() -> None:
    """Qwen3.6 has another tokenizer than Qwen3; a distilled R1 another than the R1."""
    found = names(make_model("Qwen3.6-27B-Q8_0", architecture="qwen35"))
    assert "ggml-org/Qwen3.5-0.8B-GGUF/Qwen3.5-0.8B-Q8_0.gguf" in found
    assert not [n for n in found if "Qwen3-0.6B" in n]
    distilled = names(make_model("DeepSeek-R1-Distill-Qwen-32B-Q4_K_M", architecture="qwen2"))
    assert distilled == ["alamios/DeepSeek-R1-DRAFT-Qwen2.5-0.5B-GGUF"]
    assert names(make_model("Falcon-H1-7B", architecture="falcon-h1")) == []


def test_a_head_is_for_one_model_alone() -> None:
    """The 20B's is not the 120B's; heads come before draft models."""
    found = names(make_model("gpt-oss-20b-MXFP4", architecture="gpt-oss"))
    assert found == ["ggml-org/gpt-oss-20b-GGUF/eagle3-gpt-oss-20b-Q8_0.gguf"]
    modes = [s.row.mode for s in suggest(make_model("Qwen3-8B-Q8_0", architecture="qwen3"), [])]
    assert modes[-1] is Mode.DRAFT_MODEL
    assert {Mode.DFLASH, Mode.DSPARK} <= set(modes[:-1])


def test_formats_are_not_mixed() -> None:
    """An MLX folder gets MLX drafts; its command downloads a whole repository."""
    [found] = suggest(make_model("Qwen3-4B-4bit", architecture="qwen3", format="mlx"), [])
    assert found.command == "hf download mlx-community/Qwen3-0.6B-4bit"
    assert found.server_command == ""


def test_layers_that_the_model_has_need_no_file() -> None:
    """The MTP file is for main models that were converted without them."""
    main = make_model("Qwen3.6-27B-Q8_0", architecture="qwen35", mtp_layers=1)
    assert not [s for s in suggest(main, []) if s.row.mode is Mode.MTP]


def test_a_file_that_is_no_smaller_than_the_model_is_left_out() -> None:
    """A 3B model has no use for a draft of 1.3 GB."""
    small = make_model("Llama-3.2-3B-Instruct-Q4_K_M", bytes_per_token=1_700_000_000)
    assert names(small) == []
    assert names(replace(small, bytes_per_token=3_000_000_000))


def test_commands_and_whose_word_it_is() -> None:
    """Before the file is here, only its source says that it fits."""
    found = {s.row.repository: s for s in suggest(make_model("Llama-3.3-70B-Instruct-Q4_K_M"), [])}
    llama = found["bartowski/Llama-3.2-1B-Instruct-GGUF"]
    assert llama.command == (
        "hf download bartowski/Llama-3.2-1B-Instruct-GGUF Llama-3.2-1B-Instruct-Q8_0.gguf"
    )
    assert llama.server_command == "llama-server -hfd bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0"
    assert llama.fit.startswith("According to https://lmstudio.ai/")
    document = llama.to_json()
    assert (document["here"], document["fits"], document["size_bytes"]) == (False, None, 1_320_000_000)
    [whole] = suggest(make_model("gemma-3-27b-it", architecture="gemma3"), [])
    assert whole.command == "hf download ggml-org/gemma-3-270m-it-GGUF --include '*Q8_0*.gguf'"


def test_a_file_that_is_here_is_judged_by_its_vocabulary(tmp_path: Path) -> None:
    """Then autospec's own check speaks, whichever way it goes."""
    main = read_gguf(
        write_gguf(
            tmp_path / "Llama-3.1-8B.gguf", layers=60, width=64, keys={"llama.block_count": np.uint32(60)}
        )
    )
    name = "Llama-3.2-1B-Instruct-Q8_0.gguf"
    main = replace(main, bytes_per_token=5_000_000_000)
    for tokens, fits in ((None, False), ("own", True)):
        given = {} if tokens else {"tokens": ["x"] * 300}
        draft = read_gguf(write_gguf(tmp_path / name, layers=1, **given))
        found = suggest(main, candidates(main, [draft], memory_bytes=0, context_tokens=512))
        [here] = [s for s in found if s.here is not None]
        assert found[-1] is here
        assert here.here is not None
        assert here.here.fits is fits
        assert here.fit.startswith("It is on this disk.")
        assert here.to_json()["fits"] is fits
