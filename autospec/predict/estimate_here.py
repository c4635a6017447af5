"""The estimate of a model and its drafts on this machine: headers of files are read, no server is started.

Where a model runs decides which figures count: the chip's known ones for a GPU, a measurement for the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autospec.backends.placement import Where, weights_of
from autospec.catalog.candidates import Candidate
from autospec.catalog.model import Model, Weights
from autospec.cells import Hardware
from autospec.errors import ModelFileError
from autospec.hardware.bandwidth import Speeds, known
from autospec.hardware.gpu import Device, usable
from autospec.predict.estimate import (
    DraftEstimate,
    ModelEstimate,
    Reads,
    draft_steps,
    estimate,
    estimate_draft,
    estimate_free,
    reads_of,
)

__all__ = ["Estimated", "estimate_here", "least_acceptance", "read_weights", "speeds_for"]


def read_weights(model: Model) -> Weights:
    """Add up a model's tensors by how a pass reads them.

    Raises:
        ModelFileError: A file cannot be read any more.
    """
    # Only the reader that is needed: `gguf` takes a while to import.
    if model.format == "mlx":
        from autospec.catalog import mlx  # noqa: PLC0415

        return mlx.weights_of(model)
    from autospec.catalog import gguf  # noqa: PLC0415

    return gguf.weights_of(model)


@dataclass(frozen=True, slots=True)
class Estimated:
    """A main model's estimate, its weights, and one for each draft, the least acceptance first."""

    model: Model
    weights: Weights
    own: ModelEstimate
    drafts: tuple[DraftEstimate, ...]


def speeds_for(
    model: Model,
    args: Sequence[str],
    devices: Sequence[Device] | None,
    hardware: Hardware,
    processor: Callable[[], Speeds | None],
) -> Speeds | str:
    """The figures that count for a model, or a sentence that says why there are none.

    Args:
        model: The main model.
        args: The user's server arguments, which may keep it off the GPU.
        devices: What the backend computes on; ``None`` if unknown.
        hardware: This machine.
        processor: Gives the processor's figures, by measuring or from the last measurement.
    """
    where = weights_of(args, model.layers).where
    chosen = () if devices is None else usable(devices)
    if where is Where.MEMORY or (devices is not None and not chosen):
        return (
            processor() or "Unknown: this machine's memory has not been measured (`autospec estimate` does)."
        )
    if where is Where.BOTH:
        return "Unknown: by the server's arguments, a part of the model stays in the system's memory."
    if chosen and model.size_bytes > sum(d.total_bytes for d in chosen):
        return "Unknown: the model is larger than the GPU's memory, so a part of it runs on the processor."
    # On a Mac, the machine's own name of the GPU has its number of cores.
    named = hardware.gpu if hardware.os.startswith("macos") or not chosen else chosen[0].description
    return known(named) or f"Unknown: autospec knows no memory bandwidth of {named or 'this GPU'}."


def estimate_here(
    main: Model, candidates: Sequence[Candidate], speeds: Speeds, depth_tokens: int, *, free: bool = True
) -> Estimated:
    """The estimate of a main model with these drafts.

    Args:
        main: The main model.
        candidates: Drafts that fit.
        speeds: Of this machine, by `speeds_for`.
        depth_tokens: Tokens in the cache.
        free: True to add the n-gram modes.

    Raises:
        ModelFileError: A file of the main model cannot be read any more.
    """
    weights = read_weights(main)
    reads = reads_of(main, weights, depth_tokens)
    drafts = [_draft(c, reads, weights, speeds, depth_tokens) for c in candidates]
    if free:
        drafts.append(estimate_free(reads, speeds))
    drafts.sort(key=lambda d: (d.break_even is None, d.break_even or 0.0))
    return Estimated(main, weights, estimate(reads, speeds), tuple(drafts))


def least_acceptance(
    main: Model, candidates: Sequence[Candidate], speeds: Speeds | str, depth_tokens: int
) -> float | None:
    """The least acceptance that one of these drafts would need; ``None`` if nothing can be estimated."""
    if isinstance(speeds, str) or not candidates:
        return None
    try:
        found = estimate_here(main, candidates, speeds, depth_tokens, free=False).drafts
    except ModelFileError:
        return None
    return min((d.break_even for d in found if d.break_even is not None), default=None)


def _draft(
    candidate: Candidate, main: Reads, main_weights: Weights, speeds: Speeds, depth_tokens: int
) -> DraftEstimate:
    try:
        weights = main_weights if candidate.own_layers else read_weights(candidate.model)
    except ModelFileError as error:
        return estimate_draft(candidate, f"Unknown: {error.message}", main, speeds)
    return estimate_draft(
        candidate, draft_steps(candidate, weights, main, main_weights, depth_tokens), main, speeds
    )
