"""The context length that servers are started with, read from their arguments: what memory is counted with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["CONTEXT_FLAGS", "context_of"]

# llama.cpp's two names of the setting.
CONTEXT_FLAGS = ("-c", "--ctx-size")


def context_of(args: Sequence[str], otherwise: int) -> int:
    """Tokens of context that a launch with these arguments has.

    Args:
        args: The launch settings; of a flag that is repeated the last one counts, as for llama-server.
        otherwise: Where they name none, or 0: that is the model's own, which the setting has to stand for.
    """
    context = otherwise
    for flag, value in pairwise((*args, "")):
        name, _, attached = flag.partition("=")
        number = attached or value
        if name in CONTEXT_FLAGS and number.isdigit():
            context = int(number) or otherwise
    return context
