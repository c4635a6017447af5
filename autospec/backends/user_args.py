"""The user's own server arguments: which ones autospec sets itself, which the build does not know, which a draft gets too. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from autospec.backends.flags import HelpText, Option, normalise
from autospec.cells import options_in
from autospec.errors import UnsupportedError, UsageError, did_you_mean

__all__ = ["args_of_draft", "check", "check_count", "options_of", "refuse_owned"]

_MODEL = "the model is chosen with --model"
_DRAFTING = "autospec sets the drafting itself. In a tune, choose drafts with --draft, and modes and ranges with --study"
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
# Whatever has such a name drafts, or changes how it drafts, unless it says where the draft runs.
_DRAFTS = re.compile(r"--?(no-)?(spec(ulative)?|draft)(-|$)")
_PLACES_DRAFT = re.compile(
    r"""--(no-)?spec-(
        draft-(ngl|device|type-[kv]|threads|cpu-mask|cpu-range|cpu-strict|prio|poll|backend-sampling
               |override-tensor|cpu-moe|n-cpu-moe|ncmoe)(-batch)?
        |ckpt-mode  # ik_llama.cpp: the memory that keeps a recurrent state
    )$""",
    re.VERBOSE,
)
_SLEEPS = "--sleep-idle-seconds"
# What llama-server passes on to its draft (`common_base_params_to_speculative`): how it computes, not what it loads besides.
# A list of what is kept, as an option that is missed here costs little, and one file of the main model's stops the draft's launch.
_PASSED_ON = """-c --ctx-size -b --batch-size -ub --ubatch-size -fa --flash-attn --swa-full
    -t --threads -C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll
    -tb --threads-batch -Cb --cpu-mask-batch -Crb --cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch
    -sm --split-mode -mg --main-gpu -ts --tensor-split -fit --fit -fitt --fit-target -fitc --fit-ctx --rpc
    -kvo --kv-offload -nkvo --no-kv-offload --repack -nr --no-repack --no-host --op-offload --no-op-offload
    -lm --load-mode --mmap --no-mmap --mlock -dio --direct-io --no-direct-io --numa --warmup --no-warmup
    --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --override-kv
    --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast"""
_OF_BOTH = frozenset(_PASSED_ON.split())
# A draft's own options, and what they are called where it is the only model. The main model's layers, devices, cache types and
# placed tensors are never its draft's; its context and threads are, unless the draft has its own.
_OF_DRAFT = {
    spelling: flag
    for flag, spellings in {
        "-c": "-cd --ctx-size-draft --spec-draft-ctx-size",
        "-ngl": "-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl",
        "-dev": "-devd --device-draft --spec-draft-device",
        "-ctk": "-ctkd --cache-type-k-draft --spec-draft-type-k",
        "-ctv": "-ctvd --cache-type-v-draft --spec-draft-type-v",
        "-ot": "-otd --override-tensor-draft --spec-draft-override-tensor",
        "-cmoe": "-cmoed --cpu-moe-draft --spec-draft-cpu-moe",
        "-ncmoe": "-ncmoed --n-cpu-moe-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe",
        "-t": "-td --threads-draft --spec-draft-threads",
        "-tb": "-tbd --threads-batch-draft --spec-draft-threads-batch",
        "-C": "-Cd --cpu-mask-draft --spec-draft-cpu-mask",
        "-Cr": "-Crd --cpu-range-draft --spec-draft-cpu-range",
        "-Cb": "-Cbd --cpu-mask-batch-draft --spec-draft-cpu-mask-batch",
        "--cpu-strict": "--cpu-strict-draft --spec-draft-cpu-strict",
        "--cpu-strict-batch": "--cpu-strict-batch-draft --spec-draft-cpu-strict-batch",
        "--prio": "--prio-draft --spec-draft-prio",
        "--prio-batch": "--prio-batch-draft --spec-draft-prio-batch",
        "--poll": "--poll-draft --spec-draft-poll",
        "--poll-batch": "--poll-batch-draft --spec-draft-poll-batch",
    }.items()
    for spelling in spellings.split()
}


def args_of_draft(args: Sequence[str]) -> tuple[str, ...]:
    """The user's arguments for a launch of a draft alone, so that it runs as llama-server runs it beside the main model.

    A projector, an adapter, a template or a sampler is the main model's; the draft's own options (``-ngld``) take their place.
    """
    options = [(normalise(flag), values) for flag, values in options_in(args)]
    shared = [(name, *values) for name, values in options if name in _OF_BOTH]
    own = [(_OF_DRAFT[name], *values) for name, values in options if name in _OF_DRAFT]
    if any(flag == "-t" for flag, *_ in own):  # then its batches do not take the main model's threads either
        shared = [option for option in shared if option[0] not in ("-tb", "--threads-batch")]
    return tuple(word for option in (*shared, *own) for word in option)  # the last of repeated options counts


def refuse_owned(name: str, option: Option | None = None) -> None:
    """Refuse an argument that autospec sets itself, or that drafts; `option` is the build's, if its help has one.

    Raises:
        UsageError: It is refused; the message says why.
    """
    spellings = {normalise(name), *(option.names if option is not None else ())}
    reason = next((_OWNED[spelling] for spelling in sorted(spellings) if spelling in _OWNED), None)
    if reason is None and any(_DRAFTS.match(s) and not _PLACES_DRAFT.match(s) for s in spellings):
        reason = _DRAFTING
    if reason is None and option is not None and "can download weights" in option.text:
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
    """Refuse an option with another number of words after it than wanted; `described` is what the help says of them.

    Raises:
        UsageError: There are more or fewer.
    """
    if len(values) < wanted:
        raise UsageError(f"{flag} needs a value ({described})." if described else f"{flag} needs a value.")
    if len(values) > wanted:
        raise _stray(program, values[wanted])


def _stray(program: str, word: str) -> UsageError:
    return UsageError(f"{word!r} is not an option of {program}.", "Quote a value that has spaces.")


def check(text: HelpText, build: str, args: Sequence[str], *, serving: bool = False) -> tuple[Option, ...]:
    """Check the user's arguments before anything starts, and return the options that were given, in order.

    Raises:
        UsageError: One of them is refused, its value is missing, or it is not an option.
        UnsupportedError: The build does not know one.
    """
    given: list[Option] = []
    for name, values in options_of("llama-server", args):
        option = text.find(name)
        refuse_owned(name, option)
        if normalise(name) == _SLEEPS and not serving:
            raise UsageError(
                f"{name} cannot be passed to a server that is measured: a request after a pause would load the model again.",
                f"Remove {name} while you measure; servers for users may have it.",
            )
        if option is None:
            raise _unknown(text, build, name)
        check_count("llama-server", name, values, text.arity(option, len(values)), option.value)
        given.append(option)
    return tuple(given)


def _unknown(text: HelpText, build: str, name: str) -> UnsupportedError:
    removal = text.removal(name)
    if removal:
        return UnsupportedError(f"llama-server {build} has removed {name}.", f"Its help says: {removal}.")
    known = [spelling for option in text.options for spelling in option.names]
    hint = did_you_mean(normalise(name), known) or "See llama-server --help."
    return UnsupportedError(f"llama-server {build} does not know {name}.", hint)
