"""Check the user's own server arguments: which ones autospec sets itself, and which the build does not know. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autospec.backends.flags import HelpText, Option, normalise
from autospec.cells import options_in
from autospec.errors import UnsupportedError, UsageError

__all__ = ["check", "check_count", "options_of", "refuse_owned"]

_MODEL = "the model is chosen with --model"
_DRAFTING = "autospec varies the drafting; limit it with --draft or a study"
_ADDRESS = "autospec gives every launch its own port on the loopback address"
_WATCH = "autospec reads the server's log and slots to check that a drafting is in force"
_ENDS = "the server would print something and end"

_OWNED_BY_REASON = {
    _MODEL: """-m --model -mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file --models-dir
        --models-preset --models-max --models-autoload --no-models-autoload""",
    _DRAFTING: """-md --model-draft --spec-draft-model --spec-type --spec-default -hfd -hfrd --hf-repo-draft
        --spec-draft-hf --spec-draft-sampling --spec-draft-n-max --spec-draft-n-min --spec-draft-p-min
        --spec-draft-p-split -lcs --lookup-cache-static -lcd --lookup-cache-dynamic""",
    _ADDRESS: """--host --port --reuse-port --api-key --api-key-file --api-prefix --ssl-key-file
        --ssl-cert-file""",
    _WATCH: "--slots --no-slots --log-disable --log-file --log-jsonl",
    _ENDS: """-h --help --usage --version --license --list-devices --completion-bash -cl --cache-list""",
}
_OWNED = {name: reason for reason, names in _OWNED_BY_REASON.items() for name in names.split()}
# The user may set the draft's placement (-ngld, -devd, -ctkd, --spec-draft-threads …): it is not part of the drafting.
_OWNED_PREFIXES = ("--draft", "--spec-ngram-", "--spec-synth-")


def refuse_owned(name: str, text: str = "") -> None:
    """Refuse an argument that autospec sets itself.

    Args:
        name: The spelling that the user typed.
        text: Its description in the help, or empty.

    Raises:
        UsageError: autospec sets it; the message says why.
    """
    spelling = normalise(name)
    reason = _OWNED.get(spelling)
    if reason is None and spelling.startswith(_OWNED_PREFIXES):
        reason = _DRAFTING
    if reason is None and "can download weights" in text:
        reason = _MODEL
    if reason is not None:
        raise UsageError(f"{name} cannot be passed to the server: {reason}.", f"Remove {name}.")


def options_of(program: str, args: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """See `options_in`; raises UsageError for words before the first flag."""
    for flag, values in options_in(args):
        if not flag:
            raise _stray(program, values[0])
        yield flag, values


def check_count(program: str, flag: str, values: Sequence[str], wanted: int, described: str = "") -> None:
    """Refuse an option with too few or too many words after it.

    Args:
        program: The server's name, for error messages.
        flag: The option as typed.
        values: The words after it.
        wanted: How many belong to it.
        described: The values in the words of the help, or empty.

    Raises:
        UsageError: There are more or fewer.
    """
    if len(values) < wanted:
        raise UsageError(f"{flag} needs a value ({described})." if described else f"{flag} needs a value.")
    if len(values) > wanted:
        raise _stray(program, values[wanted])


def _stray(program: str, word: str) -> UsageError:
    return UsageError(f"{word!r} is not an option of {program}.", "Quote a value that has spaces.")


def check(text: HelpText, build: str, args: Sequence[str]) -> tuple[Option, ...]:
    """Check the user's arguments before anything starts.

    Args:
        text: The build's help.
        build: The build's name, for error messages.
        args: Arguments as typed.

    Returns:
        The options that were given, in order.

    Raises:
        UsageError: autospec sets one of them itself, its value is missing, or it is not an option.
        UnsupportedError: The build does not know one.
    """
    given: list[Option] = []
    for name, values in options_of("llama-server", args):
        option = text.find(name)
        refuse_owned(name, "" if option is None else option.text)
        if option is None:
            raise _unknown(text, build, name)
        check_count("llama-server", name, values, option.arity, option.value)
        given.append(option)
    return tuple(given)


def _unknown(text: HelpText, build: str, name: str) -> UnsupportedError:
    removal = text.removal(name)
    if removal:
        return UnsupportedError(f"llama-server {build} has removed {name}.", f"Its help says: {removal}.")
    nearest = text.nearest(name)
    hint = f"Did you mean {nearest}?" if nearest else "See llama-server --help."
    return UnsupportedError(f"llama-server {build} does not know {name}.", hint)
