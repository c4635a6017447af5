"""Whose drafting cycle a backend has. A value, no I/O."""

from __future__ import annotations

from enum import Enum

__all__ = ["Cycle"]


class Cycle(Enum):
    """How drafting and verifying take turns; `autospec.predict.replay` plays both on paper."""

    LLAMA_CPP = "llama.cpp"
    """The prompt's own batch gives the first token, and cycles follow. The draft, too, computes what is verified."""
    MLX_LM = "mlx_lm"
    """The first cycle begins at the prompt's end: the first token is verified like all others."""
