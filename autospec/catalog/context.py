"""The context length in a server's arguments. Tuner and proxy count memory with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["context_of", "names_context", "without_context"]

# llama.cpp's two names of the setting. It takes no `--ctx-size=4096`, but underscores for dashes.
_FLAGS = ("-c", "--ctx-size")


def context_of(args: Sequence[str], own: int, unset: int) -> int:
    """Tokens of context that a launch with these arguments has.

    Args:
        args: The launch settings. Of repeated flags the last one counts, as for llama-server.
        own: The model's own context length, for which a 0 in the arguments stands; 0 where unknown.
        unset: The context where the arguments name none, or name 0 and the model's own is unknown.
    """
    given = _given(args)
    return unset if given is None else given or own or unset


def names_context(args: Sequence[str]) -> bool:
    """True if the arguments set the context length, be it to 0."""
    return _given(args) is not None


def without_context(args: Sequence[str]) -> list[str]:
    """The arguments without those that set the context length."""
    left: list[str] = []
    words = iter(args)
    for word in words:
        if _is_flag(word):
            next(words, None)
        else:
            left.append(word)
    return left


def _given(args: Sequence[str]) -> int | None:
    return next((int(value) for value in reversed(list(_values(args))) if value.isdecimal()), None)


def _values(args: Sequence[str]) -> Iterator[str]:
    words = iter(args)
    for word in words:
        if _is_flag(word):
            yield next(words, "")


def _is_flag(word: str) -> bool:
    return (word.replace("_", "-") if word.startswith("--") else word) in _FLAGS
