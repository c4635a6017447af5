"""An estimate before any measurement: how long passes take by what they read and compute, and the acceptance that would pay.

A roofline (Williams, Waterman and Patterson, *Roofline*, 2009): a pass over k tokens takes

    max(bytes(k) ÷ bandwidth, k · operations per token ÷ compute) + layers · time per layer

on a GPU, and the sum of the two instead of the longer one on a processor. It reads the shared weights and the KV cache once, and of a layer with E experts, of which a token chooses a, those that k tokens
choose: E · (1 - (1 - a/E)^k) if each chooses independently. The batches of a cycle, the steps of the draft and the break-even
acceptance follow as in `autospec.predict.costs`, whose curve this is, with nothing measured in it.

It is an estimate and is never called anything else: it decides nothing, and orders the daemon's queue among equals. Headers of
files are read, and no server is started. Where a model runs decides which figures count: the chip's known ones for a GPU, a
measurement for the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from autospec.backends.placement import Where, weights_of
from autospec.catalog.candidates import Candidate
from autospec.catalog.model import Model, Weights
from autospec.cells import Hardware
from autospec.drafting import Mode
from autospec.errors import ModelFileError
from autospec.hardware.bandwidth import Speeds, known
from autospec.hardware.gpu import Device, usable
from autospec.predict.costs import CostCurve

__all__ = [
    "ACCEPTANCES",
    "DraftEstimate",
    "Estimated",
    "Reads",
    "Steps",
    "cycle_ms",
    "distinct_experts",
    "draft_steps",
    "estimate",
    "estimate_draft",
    "estimate_free",
    "estimate_here",
    "least_acceptance",
    "pass_bytes",
    "pass_s",
    "read_weights",
    "reads_of",
    "speeds_for",
]

# Acceptance rates for which the speed is told.
ACCEPTANCES: Final = (0.5, 0.7, 0.9)
# Most proposals in a cycle that are looked at; llama.cpp's default is 16.
MOST_PROPOSALS: Final = 16
# Rarely are more than three quarters of a draft's proposals accepted (`autospec.catalog.candidates`), and half is common.
_SELDOM: Final = 0.75
_USUAL: Final = 0.5


@dataclass(frozen=True, slots=True)
class Reads:
    """What one pass of a model reads and computes.

    Attributes:
        shared_bytes: Weights that every pass reads once.
        expert_bytes: All experts of all layers.
        experts: Experts of a layer; 0 for a dense model.
        active_experts: Experts that a token chooses.
        kv_bytes: KV cache at the depth in question.
        flops_per_token: Operations for one token.
        layers: Layers that a pass goes through.
    """

    shared_bytes: float
    expert_bytes: float = 0.0
    experts: int = 0
    active_experts: int = 0
    kv_bytes: float = 0.0
    flops_per_token: float = 0.0
    layers: int = 0


def reads_of(model: Model, weights: Weights, depth_tokens: int) -> Reads:
    """What a pass of a model reads with this many tokens in its cache."""
    return Reads(
        shared_bytes=weights.shared_bytes + weights.row_bytes,
        expert_bytes=weights.expert_bytes,
        experts=model.experts,
        active_experts=model.active_experts,
        kv_bytes=model.kv_bytes(depth_tokens),
        flops_per_token=2.0 * weights.multiplied,
        layers=model.layers,
    )


def distinct_experts(experts: int, active: int, tokens: int) -> float:
    """Experts of one layer that are expected to be read for this many tokens."""
    if not experts:
        return 0.0
    return experts * (1.0 - (1.0 - active / experts) ** tokens)


def pass_bytes(reads: Reads, tokens: int) -> float:
    """Bytes that one pass over this many tokens is expected to read."""
    share = (
        distinct_experts(reads.experts, reads.active_experts, tokens) / reads.experts
        if reads.experts
        else 0.0
    )
    return reads.shared_bytes + share * reads.expert_bytes + reads.kv_bytes


def pass_s(reads: Reads, speeds: Speeds, tokens: int) -> float | None:
    """Seconds of one pass; ``None`` for several tokens where the compute limit is unknown."""
    fixed = reads.layers * (speeds.expert_layer_s if reads.experts else speeds.layer_s)
    reading = pass_bytes(reads, tokens) / speeds.bytes_per_s
    if speeds.flops_per_s is None:
        return reading + fixed if tokens == 1 else None
    computing = tokens * reads.flops_per_token / speeds.flops_per_s
    return (max(reading, computing) if speeds.overlaps else reading + computing) + fixed


@dataclass(frozen=True, slots=True)
class DraftEstimate:
    """What a draft would need.

    Attributes:
        name: The draft's, or the mode for one without a model.
        path: Its file; ``None`` without one.
        mode: How it drafts.
        bytes_per_token: What one step of it reads; 0 without a model.
        n_max: Proposals in a cycle with which it needs the least acceptance; ``None`` if unknown.
        break_even: That acceptance; above 1 if not even full acceptance pays; ``None`` if unknown.
        speeds: Acceptance → ratio to the speed without drafting and the draft-max of that, at the best draft-max for it.
        unknown: Why nothing can be said, a sentence; else empty.
    """

    name: str
    path: str | None
    mode: Mode
    bytes_per_token: float = 0.0
    n_max: int | None = None
    break_even: float | None = None
    speeds: Mapping[float, tuple[float, int]] | None = None
    unknown: str = ""

    @property
    def sentence(self) -> str:
        """The estimate in words."""
        if self.break_even is None:
            return self.unknown
        if self.break_even >= 1.0:
            return "Would be slower even if every proposal were accepted: measuring is not worth it, by this estimate."
        needs = f"Would need {self.break_even:.0%} accepted"
        if self.break_even > _SELDOM:
            return f"{needs}: measuring is hardly worth it."
        if self.break_even > _USUAL:
            return f"{needs}: worth measuring for predictable text, such as code."
        return f"{needs}: worth measuring."

    def to_json(self) -> dict[str, Any]:
        """The form in ``autospec estimate --json``."""
        return {
            "name": self.name,
            "path": self.path,
            "mode": str(self.mode),
            "bytes_per_token": round(self.bytes_per_token),
            "n_max": self.n_max,
            "break_even": None if self.break_even is None else round(self.break_even, 4),
            "at_acceptance": [
                {"acceptance": a, "ratio": round(ratio, 4), "n_max": n}
                for a, (ratio, n) in (self.speeds or {}).items()
            ],
            "sentence": self.sentence,
            "unknown": self.unknown,
        }


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """What is expected of a main model on a machine.

    Attributes:
        bytes_per_token: What generating one token reads, the cache included.
        token_ms: Time for one token, without drafting.
        batch_ms: Tokens in a batch → milliseconds; only one token where the compute limit is unknown.
        bound: What limits one token: ``memory``, ``compute`` or ``overhead``.
    """

    bytes_per_token: float
    token_ms: float
    batch_ms: Mapping[int, float]
    bound: str

    @property
    def tokens_per_s(self) -> float:
        """Speed without drafting."""
        return 1000.0 / self.token_ms

    def to_json(self) -> dict[str, Any]:
        """The form in ``autospec estimate --json``."""
        return {
            "bytes_per_token": round(self.bytes_per_token),
            "token_ms": round(self.token_ms, 3),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "batch_ms": [{"tokens": k, "ms": round(ms, 3)} for k, ms in self.batch_ms.items()],
            "bound": self.bound,
        }


_SHOWN_BATCHES: Final = (1, 2, 4, 8, 16)


def estimate(main: Reads, speeds: Speeds) -> ModelEstimate:
    """The speed of a model without drafting, and of its batches."""
    one = pass_s(main, speeds, 1)
    assert one is not None
    times = {k: pass_s(main, speeds, k) for k in _SHOWN_BATCHES}
    reading = pass_bytes(main, 1) / speeds.bytes_per_s
    computing = main.flops_per_token / speeds.flops_per_s if speeds.flops_per_s else 0.0
    fixed = one - (max(reading, computing) if speeds.overlaps else reading + computing)
    parts = {"memory": reading, "compute": computing, "overhead": fixed}
    return ModelEstimate(
        bytes_per_token=pass_bytes(main, 1),
        token_ms=1000.0 * one,
        batch_ms={k: 1000.0 * s for k, s in times.items() if s is not None},
        bound=max(parts, key=lambda name: parts[name]),
    )


@dataclass(frozen=True, slots=True)
class Steps:
    """How a draft proposes: what a step reads, whether a step gives a whole block, and whether it reads verified tokens again."""

    step: Reads
    block: bool = False
    again: bool = True


def draft_steps(
    candidate: Candidate, weights: Weights, main: Reads, main_weights: Weights, depth_tokens: int
) -> Steps | str:
    """What drafting with a candidate computes, or a sentence that says why that is unknown.

    Args:
        candidate: The draft.
        weights: Its weights; the main model's for its own MTP layers.
        main: A pass of the main model.
        main_weights: Its weights: a head without an output matrix uses that of the main model.
        depth_tokens: Tokens in the cache.
    """
    model = candidate.model
    # Operations for each byte of the main model that is read, for its matrices that a head uses.
    per_byte = main.flops_per_token / max(pass_bytes(main, 1) - main.kv_bytes, 1.0)
    if candidate.own_layers:
        if not weights.mtp_bytes:
            return "Unknown: the weights of the MTP layers are not in these files."
        # One layer is read for each proposal: the only one again, or the next of several.
        step = weights.mtp_bytes / max(model.mtp_layers, 1) + main_weights.output_bytes
        return Steps(Reads(step, flops_per_token=step * per_byte, layers=1))
    own = reads_of(model, weights, depth_tokens)
    if model.head is None:
        return Steps(own, again=model.format != "mlx")
    borrowed = 0 if weights.output_bytes else main_weights.output_bytes
    step_reads = Reads(
        shared_bytes=own.shared_bytes + own.expert_bytes + borrowed,
        kv_bytes=own.kv_bytes,
        flops_per_token=own.flops_per_token + borrowed * per_byte,
        layers=max(model.layers, 1),
    )
    return Steps(step_reads, block=model.head.kind in ("dflash", "dspark"))


def estimate_draft(candidate: Candidate, steps: Steps | str, main: Reads, speeds: Speeds) -> DraftEstimate:
    """What a draft would need to pay, by `draft_steps`."""
    draft = DraftEstimate(candidate.model.name, candidate.draft, candidate.mode)
    if isinstance(steps, str):
        return replace(draft, unknown=steps)
    return _estimated(draft, steps, main, speeds, candidate.n_max)


def estimate_free(main: Reads, speeds: Speeds) -> DraftEstimate:
    """What an n-gram mode would need to pay: it proposes from the text and costs nothing but verifying."""
    return _estimated(DraftEstimate("n-gram modes", None, Mode.NGRAM_SIMPLE), None, main, speeds)


def _estimated(
    draft: DraftEstimate, steps: Steps | None, main: Reads, speeds: Speeds, limit: int = 0
) -> DraftEstimate:
    draft = replace(draft, bytes_per_token=0.0 if steps is None else pass_bytes(steps.step, 1))
    if speeds.flops_per_s is None:
        why = "Unknown: no figure of how this chip computes small batches, so what verifying costs cannot be estimated."
        return replace(draft, unknown=why)
    most = min(limit or MOST_PROPOSALS, MOST_PROPOSALS)
    curves = {n: cycle_ms(steps, main, speeds, n) for n in range(1, most + 1)}
    needs = {n: curve.break_even(n) for n, curve in curves.items()}
    least = min(needs, key=lambda n: needs[n])
    at = {}
    for acceptance in ACCEPTANCES:
        ratios = {n: _ratio(curve, n, acceptance) for n, curve in curves.items()}
        best = max(ratios, key=lambda n: ratios[n])
        at[acceptance] = (ratios[best], best)
    return replace(draft, n_max=least, break_even=needs[least], speeds=at)


def cycle_ms(steps: Steps | None, main: Reads, speeds: Speeds, n: int) -> CostCurve:
    """The cost of cycles with n proposals, as `CostCurve`."""
    main_ms = _passes(main, speeds, n)
    draft_ms, step_ms = np.zeros(n + 1), 0.0
    if steps is not None:
        passes = _passes(steps.step, speeds, n)
        if steps.again:
            draft_ms = passes.copy()
        if steps.block:
            draft_ms[n] += passes[n]
        else:
            step_ms = float(passes[0])
    return CostCurve(float(main_ms[0]), main_ms, draft_ms, step_ms, np.array([0.0, n]), np.zeros((3, 3)))


def _passes(reads: Reads, speeds: Speeds, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    times = [pass_s(reads, speeds, k) for k in range(1, n + 2)]
    return np.array([1000.0 * (s or 0.0) for s in times])


def _ratio(curve: CostCurve, n: int, acceptance: float) -> float:
    """Speed with n proposals ÷ speed without, if each is accepted independently (Leviathan et al. 2023, eq. 1)."""
    tokens = sum(acceptance**k for k in range(n + 1))
    cost = (curve.verify_ms[n] + n * curve.step_ms) / curve.plain_ms
    return float(tokens / cost)


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
