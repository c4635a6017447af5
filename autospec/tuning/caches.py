"""What a model's file says of its cache and its output matrix, as far as costs depend on them."""

from __future__ import annotations

from pathlib import Path

from autospec.catalog.gguf_file import read_gguf
from autospec.catalog.gguf_header import read_header
from autospec.catalog.model import Model
from autospec.errors import ModelFileError

__all__ = ["keeps_state", "output_share", "timed_apart"]

# Gemma 3 of 270M has an output matrix of 1.7 times its layers.
_MOST_OUTPUT = 3.0


def _header(path: str) -> Model | None:
    """What a GGUF file says of its model; ``None`` for what is none, whose server cuts every cache or refuses to draft."""
    try:
        return read_gguf(Path(path))
    except (ModelFileError, OSError):
        return None


def keeps_state(path: str) -> bool:
    """Whether a model's cache, or part of it, is a state that has no way back."""
    model = _header(path)
    return model is not None and model.has_recurrent_state


def timed_apart(path: str) -> bool:
    """Whether batches of a model are computed whole only by a server that is launched so."""
    model = _header(path)
    return model is not None and (model.has_recurrent_state or model.sliding_window > 0)


def output_share(path: str) -> float:
    """The output matrix ÷ what else decoding a token reads; 0 for what is no GGUF file."""
    model = _header(path)
    if model is None:
        return 0.0
    sizes = {t.name: t.n_bytes or 0 for part in model.files for t in read_header(part).tensors}
    # Without a matrix of its own, the embedding is the output matrix as well.
    output = sizes.get("output.weight") or sizes.get("token_embd.weight", 0)
    layers = model.bytes_per_token - output
    return min(output / layers, _MOST_OUTPUT) if layers > 0 else 0.0
