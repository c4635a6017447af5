"""The walk over a GGUF header, held against the `gguf` package's own reader."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from autospec.catalog.gguf import read_gguf
from autospec.catalog.gguf_header import read_header, read_tokens
from autospec.catalog.model import BLOCK
from autospec.errors import ModelFileError
from tests.catalog.making import TOKENS, write_gguf


def test_agrees_with_the_package_s_reader_on_values(tmp_path: Path) -> None:
    """Every scalar, string and short array has the value that GGUFReader gives it."""
    keys = {
        "general.name": "Größe 模型",
        "llama.rope.freq_base": 100000.5,
        "llama.attention.causal": True,
        "llama.negative": -7,
        "llama.large": np.uint64(1 << 60),
        "llama.per_layer": [2, 0, 4],
        "llama.fractions": [0.5, 0.25],
        "llama.flags": [True, False],
    }
    path = write_gguf(tmp_path / "m.gguf", keys=keys)
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    for name, field in theirs.fields.items():
        if name.startswith("GGUF.") or name == "tokenizer.ggml.tokens":
            continue
        assert ours.values[name] == field.contents(), name
    assert set(ours.values) | set(ours.lengths) == {n for n in theirs.fields if not n.startswith("GGUF.")}


def test_agrees_with_the_package_s_reader_on_tensors(tmp_path: Path) -> None:
    """Names, shapes, types, sizes and places of tensors are GGUFReader's, quantized ones too."""
    rows = np.ones((4, 256), dtype=np.float32)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1):
        writer.add_tensor(f"blk.0.{kind.name}", gguf.quantize(rows, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.f32", rows)
    writer.add_tensor("blk.0.f16", rows[0].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    assert ours.data_offset == theirs.data_offset
    assert [
        (t.name, list(t.shape), t.type, t.n_bytes, t.elements, ours.data_offset + t.offset)
        for t in ours.tensors
    ] == [
        (t.name, t.shape.tolist(), int(t.tensor_type), t.n_bytes, t.n_elements, t.data_offset)
        for t in theirs.tensors
    ]


def test_agrees_with_the_package_s_reader_on_tokens(tmp_path: Path) -> None:
    """The tokens' texts are GGUFReader's, in order, empty and non-ASCII ones among them."""
    tokens = ["", "é", *TOKENS, "模" * 50, "end"]
    path = write_gguf(tmp_path / "m.gguf", tokens=tokens)
    theirs = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    assert [t.decode() for t in read_tokens(path)] == theirs == tokens


def test_reads_a_header_larger_than_a_chunk(tmp_path: Path) -> None:
    """A vocabulary of some megabytes, read in several chunks, comes out whole."""
    tokens = [f"{i:x}" * 40 for i in range(20_000)]
    path = write_gguf(tmp_path / "m.gguf", tokens=tokens)
    assert path.stat().st_size > 3 << 20
    assert [t.decode() for t in read_tokens(path)] == tokens
    table = read_header(path).tokens
    assert table is not None
    assert (table.size, len(table.blocks)) == (20_000, 20_000 // BLOCK)


def test_blocks_do_not_see_the_first_five_tokens(tmp_path: Path) -> None:
    """Tokens that llama.cpp does not compare change the digest and not the blocks."""
    tokens = [str(i) for i in range(BLOCK + 10)]
    one = read_header(write_gguf(tmp_path / "a.gguf", tokens=tokens)).tokens
    two = read_header(write_gguf(tmp_path / "b.gguf", tokens=["x", "y", *tokens[2:]])).tokens
    late = read_header(write_gguf(tmp_path / "c.gguf", tokens=[*tokens[:7], "x", *tokens[8:]])).tokens
    assert one is not None
    assert two is not None
    assert late is not None
    assert one.digest != two.digest
    assert one.blocks == two.blocks
    assert one.blocks != late.blocks


def test_a_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    """However a download was cut off, the reader says truncated and nothing else."""
    whole = write_gguf(tmp_path / "m.gguf", tokens=TOKENS[:20], layers=1).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(1, 1200, 7), len(whole) // 2, len(whole) - 65]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            read_header(cut)


def test_weights_missing_behind_a_whole_header_is_truncated(tmp_path: Path) -> None:
    """A file shorter than its tensor infos say is truncated, and the sentence has both sizes."""
    path = write_gguf(tmp_path / "m.gguf", data=False)
    with pytest.raises(ModelFileError, match=r"truncated: it has \d+ of at least \d+ bytes"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"GG", "is not a GGUF file"),
        (b"PK\x03\x04 something else", "is not a GGUF file"),
        (b"GGUF", "truncated or damaged"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(40), "version 99"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "claims"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63), "truncated or damaged"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, content: bytes, says: str) -> None:
    """Each kind of damage has its own words, and impossible lengths end at once."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=says):
        read_header(path)


def test_random_bytes_are_an_error(tmp_path: Path) -> None:
    """Noise, also behind a true magic number, is a damaged file."""
    path = tmp_path / "m.gguf"
    noise = random.Random(1)
    for _ in range(50):
        path.write_bytes(b"GGUF\x03\0\0\0" + noise.randbytes(2000))
        with pytest.raises(ModelFileError):
            read_gguf(path)
        path.write_bytes(noise.randbytes(500))
        with pytest.raises(ModelFileError):
            read_gguf(path)


def test_changed_header_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    """Any few bytes of a header changed: the file reads, or it is a ModelFileError."""
    keys = {
        "llama.expert_count": 4, "llama.expert_used_count": 2, "llama.attention.sliding_window": 64,
        "llama.attention.shared_kv_layers": 1, "llama.attention.sliding_window_pattern": [True, False],
        "llama.nextn_predict_layers": 1, "llama.attention.key_length_mla": 3, "llama.full_attention_interval": 2,
        "llama.pooling_type": 0, "general.file_type": 3,
    }  # fmt: skip
    whole = write_gguf(tmp_path / "m.gguf", tokens=TOKENS[:8], keys=keys, width=8).read_bytes()
    path = tmp_path / "changed.gguf"
    chance = random.Random(7)
    header = read_header(tmp_path / "m.gguf").data_offset
    outcomes = set()
    for _ in range(700):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(header)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        path.write_bytes(changed)
        try:
            outcomes.add(type(read_gguf(path)).__name__)
        except ModelFileError as error:
            outcomes.add("named" if str(path) in str(error) else str(error))
    assert outcomes == {"Model", "named"}


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A file whose weights would take 64 GB (a sparse one) is read at once."""
    path = write_gguf(tmp_path / "m.gguf")
    with path.open("r+b") as file:
        file.truncate(64 << 30)
    assert read_header(path).file_size == 64 << 30


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    """What the system refuses becomes a sentence."""
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


def test_tensor_types_newer_than_the_package_are_no_damage(tmp_path: Path) -> None:
    """A type number that the installed gguf does not know leaves the size unknown and the model listed."""
    path = write_gguf(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight") + 4 + 16
    assert struct.unpack_from("<I", raw, at)[0] == gguf.GGMLQuantizationType.F16
    struct.pack_into("<I", raw, at, 250)
    path.write_bytes(raw)
    tensor = read_header(path).tensors[-1]
    assert (tensor.name, tensor.n_bytes, tensor.type_name) == ("blk.1.ffn_up.weight", None, "type-250")
    assert read_gguf(path).parameters == read_gguf(write_gguf(tmp_path / "n.gguf")).parameters
