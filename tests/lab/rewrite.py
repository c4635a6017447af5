"""Write a GGUF from the parts of another, one tensor at a time, so that a large one needs little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants
from numpy.typing import NDArray

__all__ = ["Parts", "Planned", "read_parts", "requantized", "write_gguf", "zeros_like"]

Data = NDArray[Any]

_PLAIN = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file to be.

    Attributes:
        name: Its name in the file.
        kind: How its values are stored.
        shape: The array's shape, rows first, in stored units: bytes for quantized kinds.
        data: Makes the array; called once, when its turn to be written has come.
    """

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: Callable[[], Data]

    @property
    def dtype(self) -> np.dtype[Any]:
        """How numpy holds the values: bytes for quantized kinds."""
        return np.dtype(_PLAIN.get(self.kind, np.uint8))

    @property
    def weights(self) -> tuple[int, ...]:
        """The shape in weights, rows first."""
        if self.kind in _PLAIN:
            return self.shape
        return tuple(gguf.quant_shape_from_byte_shape(self.shape, self.kind))

    def named(self, name: str) -> Planned:
        """The same tensor under another name."""
        return Planned(name, self.kind, self.shape, self.data)


@dataclass(frozen=True, slots=True)
class Parts:
    """A GGUF taken apart.

    Attributes:
        metadata: Key to (value, type, element type), in the file's order, without the architecture.
        architecture: The file's ``general.architecture``.
        tensors: Name to tensor, in the file's order; their data is read from the file when asked for.
    """

    metadata: Mapping[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]
    architecture: str
    tensors: Mapping[str, Planned]

    def layer(self, index: int) -> list[Planned]:
        """The tensors of one transformer layer."""
        return [t for name, t in self.tensors.items() if name.startswith(f"blk.{index}.")]

    def outside(self) -> list[Planned]:
        """The tensors of no layer: the embedding and the last norm."""
        return [t for name, t in self.tensors.items() if not name.startswith("blk.")]


def read_parts(path: Path) -> Parts:
    """Take a GGUF apart; weights stay on disk."""
    reader = gguf.GGUFReader(path)
    metadata = {
        name: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    tensors = {
        t.name: Planned(t.name, t.tensor_type, tuple(t.data.shape), partial(_same, t.data))
        for t in reader.tensors
    }
    return Parts(metadata, reader.fields["general.architecture"].contents(), tensors)


def write_gguf(
    out: Path,
    parts: Parts,
    tensors: Iterable[Planned],
    changes: Mapping[str, Any],
    *,
    extra: Mapping[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]] | None = None,
) -> None:
    """Write a GGUF with the metadata of `parts` and the given tensors.

    Args:
        out: The file to write.
        parts: Where metadata and architecture come from.
        tensors: What the file shall hold, in this order.
        changes: Other values for keys that `parts` has; ``None`` leaves the key out.
        extra: Keys that `parts` does not have, with their types.
    """
    unknown = set(changes) - set(parts.metadata)
    if unknown:
        raise KeyError(f"no such metadata to change: {sorted(unknown)}")
    planned = list(tensors)
    writer = gguf.GGUFWriter(None, parts.architecture)
    for key, (value, kind, element) in {**parts.metadata, **(extra or {})}.items():
        chosen = changes.get(key, value)
        if chosen is not None:
            writer.add_key_value(key, chosen, kind, element)
    for tensor in planned:
        size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, tensor.dtype, size, tensor.kind)
    writer.write_header_to_file(out)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in planned:
        writer.write_tensor_data(np.ascontiguousarray(tensor.data()))
    writer.close()


def requantized(tensor: Planned, kind: gguf.GGMLQuantizationType, *, again: bool = False) -> Planned:
    """The same weights stored as `kind`; norms stay as they are, as every quantizer leaves them.

    Args:
        tensor: The weights.
        kind: How they shall be stored.
        again: Also where they are single floats, which norms are.
    """
    if tensor.kind is kind or (tensor.kind is gguf.GGMLQuantizationType.F32 and not again):
        return tensor
    shape = tensor.weights if kind in _PLAIN else gguf.quant_shape_to_byte_shape(tensor.weights, kind)
    return Planned(
        tensor.name,
        kind,
        tuple(shape),
        lambda: quants.quantize(quants.dequantize(tensor.data(), tensor.kind), kind),
    )


def _same(data: Data) -> Data:
    return data


def zeros_like(tensor: Planned) -> Planned:
    """All weights zero: every block's scale and offset is zero in the kinds used here."""
    return Planned(tensor.name, tensor.kind, tensor.shape, lambda: np.zeros(tensor.shape, tensor.dtype))
