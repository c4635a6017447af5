"""Read the header of a GGUF file: key/value pairs, token table, tensor infos; never the weights.

Constants, value types and block sizes come from the `gguf` package; the parser is our own. `GGUFReader` creates several NumPy
views per string: for SmolLM2-135M (49,152 tokens and 48,900 merges, warm cache, 2 cores) it takes 2.9 s, this parser 0.04 s,
so a catalogue of a hundred models would take five minutes. It also maps the weights, fails on newer tensor types, and follows
a damaged length without limit. A test compares both readers.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGUF_VERSION,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)

from autospec.catalog.model import BLOCK, FIRST_CHECKED_ID
from autospec.errors import ModelFileError

__all__ = ["Header", "TensorInfo", "read_header", "read_tokens"]

TOKENS_KEY: Final = "tokenizer.ggml.tokens"

_CHUNK = 1 << 20
# Larger than any real header (a 262k-token tokenizer takes about 16 MB); limits a damaged length.
_MAX_HEADER = 1 << 28
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_ARRAY = 1 << 24
_MOST_TAGS = 256
# Longer arrays are per token, not per layer, and are not used.
_MAX_KEPT = 4096
_MAX_DIMS = 4  # GGML_MAX_DIMS
_VERSIONS = (2, GGUF_VERSION)

_FORMATS: Final = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The vocabulary's tokens as digests; see `autospec.catalog.model.Vocabulary`."""

    size: int
    digest: str
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the header. `shape`: innermost first. `type`: ggml's number. `offset`: from the data section."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int | None

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def type_name(self) -> str:
        """The type's name in ggml: ``Q4_K``, ``F16``."""
        try:
            return GGMLQuantizationType(self.type).name
        except ValueError:
            return f"type-{self.type}"


_Values = dict[str, bool | int | float | str | list[int] | list[float] | list[str]]


@dataclass(frozen=True, slots=True)
class Header:
    """One file's header.

    `values` has scalars, strings, short arrays of numbers, and the tags; of other arrays there are only `lengths`. `data_offset` is the start of
    the weights in bytes, `digest` the SHA-256 of the header.
    """

    values: _Values
    lengths: dict[str, int]
    tokens: TokenTable | None
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_size: int
    digest: bytes


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file, or of one part, and check that the file is long enough for its tensors.

    Raises:
        ModelFileError: Damaged, truncated, empty, not GGUF, or unreadable.
    """
    try:
        with path.open("rb") as file:
            return _Walk(file, path).header()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_tokens(path: Path) -> list[bytes]:
    """Read the text of every token, in order; empty without a vocabulary. Raises `ModelFileError`."""
    texts: list[bytes] = []
    try:
        with path.open("rb") as file:
            _Walk(file, path, texts).header()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return texts


class _Walk:
    """One pass over a header, in chunks. The file is not mapped: if it shrinks meanwhile, a mapping kills the process."""

    def __init__(self, file: BinaryIO, path: Path, texts: list[bytes] | None = None) -> None:
        self._file = file
        self._path = path
        self._texts = texts
        self._size = file.seek(0, 2)
        file.seek(0)
        self._buffer = bytearray()
        self._at = 0

    def header(self) -> Header:
        tensor_count, pair_count = self._preamble()
        values: _Values = {}
        lengths: dict[str, int] = {}
        tokens = None
        for _ in range(pair_count):
            key = self._string()
            if key in values or key in lengths:
                raise self._damaged(f"it has the key {_short(key)} twice")
            kind = self._value_type()
            if kind is GGUFValueType.STRING:
                values[key] = self._string()
            elif kind is not GGUFValueType.ARRAY:
                values[key] = self._scalar(_FORMATS[kind])
            else:
                tokens = self._array(key, values, lengths) or tokens
        tensors = tuple(self._tensor() for _ in range(tensor_count))
        if len({t.name for t in tensors}) != len(tensors):
            raise self._damaged("two of its tensors have the same name")
        end = self._at
        alignment = values.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment}")
        data_offset = end + -end % alignment
        self._check_length(tensors, data_offset)
        return Header(
            values=values,
            lengths=lengths,
            tokens=tokens,
            tensors=tensors,
            data_offset=data_offset,
            file_size=self._size,
            digest=hashlib.sha256(memoryview(self._buffer)[:end]).digest(),
        )

    def _array(self, key: str, values: _Values, lengths: dict[str, int]) -> TokenTable | None:
        """Read an array; returns the table of tokens if it is that one."""
        item = self._value_type()
        lengths[key] = count = self._count(_MAX_ARRAY, f"entries in {_short(key)}")
        if item is GGUFValueType.STRING:
            if key == Keys.General.TAGS and count <= _MOST_TAGS:
                values[key] = [self._string() for _ in range(count)]
                return None
            return self._strings(count, keep=key == TOKENS_KEY)
        if item is GGUFValueType.ARRAY:
            raise self._damaged(f"{_short(key)} is an array of arrays")
        if (numbers := self._numbers(_FORMATS[item], count)) is not None:
            values[key] = numbers
        return None

    def _preamble(self) -> tuple[int, int]:
        if self._size == 0:
            raise ModelFileError(f"{self._path} is empty.", "Download it again.")
        if self._size < 4 or self._number("I") != GGUF_MAGIC:
            raise ModelFileError(f"{self._path} is not a GGUF file.", "Download it again.")
        version = self._number("I")
        if version & 0xFFFF == 0 and version:
            raise ModelFileError(
                f"{self._path} is a GGUF file for big-endian machines.",
                "Convert it, or download another file.",
            )
        if version not in _VERSIONS:
            raise ModelFileError(
                f"{self._path} has GGUF version {version}; autospec reads versions 2 and 3.",
                "Download a newer file of this model, or update autospec.",
            )
        tensors = self._count(_MAX_TENSORS, "tensors")
        return tensors, self._count(_MAX_PAIRS, "metadata keys")

    def _tensor(self) -> TensorInfo:
        name = self._string()
        dims = self._number("I")
        if not 0 < dims <= _MAX_DIMS:
            raise self._damaged(f"tensor {_short(name)} has {dims} dimensions")
        shape = tuple(self._number("Q") for _ in range(dims))
        elements = math.prod(shape)
        if elements >= 1 << 62:
            raise self._damaged(f"tensor {_short(name)} is impossibly large")
        number = self._number("I")
        offset = self._number("Q")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
        except (ValueError, KeyError):
            return TensorInfo(name, shape, number, offset, None)
        if shape[0] % block:
            raise self._damaged(f"tensor {_short(name)} has rows that its type cannot hold")
        return TensorInfo(name, shape, number, offset, elements // block * size)

    def _check_length(self, tensors: tuple[TensorInfo, ...], data_offset: int) -> None:
        if not tensors:
            return
        needed = data_offset + max(t.offset + (t.n_bytes or 0) for t in tensors)
        if needed > self._size:
            raise ModelFileError(
                f"{self._path} is truncated: it has {self._size} of at least {needed} bytes.",
                "Download it again.",
            )

    def _strings(self, count: int, *, keep: bool) -> TokenTable | None:
        """Skip an array of strings, and digest the bytes in between."""
        if count * 8 > self._size:
            raise self._truncated()
        begin = self._at
        edges = [i for i in (FIRST_CHECKED_ID, *range(BLOCK, count + 1, BLOCK)) if i <= count]
        marks: dict[int, int] = {}
        done = 0
        for stop in (*edges, count):
            self._step_over(stop - done)
            marks[stop], done = self._at, stop
        if not keep:
            return None
        if self._texts is not None:
            self._texts.extend(self._split(begin, count))
        with memoryview(self._buffer) as view:
            return TokenTable(
                size=count,
                digest=hashlib.sha256(view[begin : self._at]).hexdigest(),
                blocks=tuple(
                    hashlib.sha256(view[marks[a] : marks[b]]).hexdigest()[:16] for a, b in pairwise(edges)
                ),
            )

    def _step_over(self, count: int) -> None:
        # The hot loop of a cold read: 250,000 iterations for a large vocabulary.
        unpack, buffer, at = _U64.unpack_from, self._buffer, self._at
        done = 0
        while done < count:
            try:
                while done < count:
                    at += 8 + unpack(buffer, at)[0]
                    done += 1
            except (struct.error, OverflowError):
                self._fill(at + 8)
        self._fill(at)
        self._at = at

    def _split(self, begin: int, count: int) -> list[bytes]:
        texts = []
        at = begin
        for _ in range(count):
            end = at + 8 + _U64.unpack_from(self._buffer, at)[0]
            texts.append(bytes(self._buffer[at + 8 : end]))
            at = end
        return texts

    def _numbers(self, code: str, count: int) -> list[int] | list[float] | None:
        width = struct.calcsize("<" + code)
        self._fill(self._at + width * count)
        values = struct.unpack_from(f"<{count}{code}", self._buffer, self._at) if count <= _MAX_KEPT else None
        self._at += width * count
        return None if values is None else list(values)

    def _value_type(self) -> GGUFValueType:
        number = self._number("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self._damaged(f"it has a value of the unknown type {number}") from None

    def _count(self, most: int, what: str) -> int:
        number = self._number("Q")
        if number > most:
            raise self._damaged(f"it claims {number} {what}")
        return number

    def _string(self) -> str:
        length = self._number("Q")
        self._fill(self._at + length)
        text = bytes(self._buffer[self._at : self._at + length])
        self._at += length
        return text.decode("utf-8", "replace")

    def _number(self, code: str) -> int:
        return int(self._scalar(code))

    def _scalar(self, code: str) -> bool | int | float:
        width = struct.calcsize("<" + code)
        self._fill(self._at + width)
        value: bool | int | float = struct.unpack_from("<" + code, self._buffer, self._at)[0]
        self._at += width
        return value

    def _fill(self, end: int) -> None:
        """Read until the buffer reaches this offset."""
        if end <= len(self._buffer):
            return
        if end > self._size:
            raise self._truncated()
        if end > _MAX_HEADER:
            raise self._damaged("its header does not end")
        while len(self._buffer) < end:
            chunk = self._file.read(max(_CHUNK, end - len(self._buffer)))
            if not chunk:
                raise self._truncated()
            self._buffer += chunk

    def _truncated(self) -> ModelFileError:
        return ModelFileError(
            f"{self._path} is truncated or damaged: it ends within its header.", "Download it again."
        )

    def _damaged(self, how: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is damaged: {how}.", "Download it again.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
