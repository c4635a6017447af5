"""How much memory a launch will take, before it runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from autospec.catalog.model import Model
from autospec.drafting import Drafting
from autospec.proxy.needs import Footprint

__all__ = ["footprint", "launch_seconds"]

# Compute buffers, the program and its libraries: 100 to 400 MB of a llama-server with default batch sizes.
_BUFFERS_BYTES: Final = 256 * 1024**2
# Of a launch that was never timed: 0.9 GB took 1.6 to 2.2 s from a warm cache, a cold disk reads 1 GB/s.
_START_S: Final = 1.5
_BYTES_PER_S: Final = 1e9


def footprint(
    model: Model, draft: Model | None, tokens: int, *, maps_weights: bool, limit_bytes: int
) -> Footprint:
    """The memory of one launch.

    Args:
        model: The main model.
        draft: The draft model, where the drafting has one.
        tokens: Length of the context; all slots share it.
        maps_weights: True if launches of the same file have its weights in memory once: memory-mapped and computed on the
            processor. What accelerators do with a mapped file differs, so there each launch counts in full.
        limit_bytes: No launch is taken for larger, since a server fits its context to what it finds: a model that fills
            the memory can then still run, alone.
    """
    models = [model] if draft is None else [model, draft]
    own = _BUFFERS_BYTES + sum(m.kv_bytes(min(tokens, m.context_length or tokens)) for m in models)
    weights = {str(m.path): m.size_bytes for m in models}
    if not maps_weights:
        return Footprint(min(own + sum(weights.values()), limit_bytes))
    room = limit_bytes - sum(weights.values())
    return Footprint(min(own, room), weights) if room > 0 else Footprint(0, {str(model.path): limit_bytes})


def launch_seconds(model: Model, draft: Model | None) -> float:
    """An estimate of the time from start to ready, for launches that were never timed."""
    size = model.size_bytes + (0 if draft is None else draft.size_bytes)
    return _START_S + size / _BYTES_PER_S


def draft_of(drafting: Drafting, models: Sequence[Model]) -> Model | None:
    """The catalogue's entry for a drafting's draft model; ``None`` where it has none or lies outside."""
    return next((m for m in models if str(m.path) == drafting.draft), None) if drafting.draft else None
