"""A model's weights by how a pass reads them, from the headers of its files."""

from __future__ import annotations

from autospec.catalog.model import Model, Weights

__all__ = ["weights_of"]


def weights_of(model: Model) -> Weights:
    """Add up a model's tensors.

    Raises:
        ModelFileError: A file cannot be read any more.
    """
    # Only the reader that is needed: `gguf` takes a while to import.
    if model.format == "mlx":
        from autospec.catalog import mlx  # noqa: PLC0415

        return mlx.weights_of(model)
    from autospec.catalog import gguf  # noqa: PLC0415

    return gguf.weights_of(model)
