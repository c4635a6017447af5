"""llama-server's arguments as xllamacpp's `CommonParams` fields: the user's own, and a drafting. Pure.

A field is a dotted path below `CommonParams`; a value is what JSON can hold. Members of xllamacpp's enums go by name,
``{"enum": "ggml_type", "name": "GGML_TYPE_Q8_0"}``, since only the child imports xllamacpp.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autospec.backends.flags import NGRAM_CACHE_N_MAX
from autospec.backends.help_text import normalise
from autospec.backends.user_args import refuse_owned
from autospec.drafting import Drafting, Mode
from autospec.errors import UnsupportedError, UsageError

__all__ = ["TYPES", "Fields", "drafting_fields", "user_fields"]

Fields = dict[str, Any]

# xllamacpp's member of `common_speculative_type` for each mode.
TYPES: dict[Mode, str] = {
    Mode.DRAFT_MODEL: "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE",
    Mode.EAGLE3: "COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3",
    Mode.MTP: "COMMON_SPECULATIVE_TYPE_DRAFT_MTP",
    Mode.DFLASH: "COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH",
    Mode.DSPARK: "COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK",
    Mode.NGRAM_SIMPLE: "COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE",
    Mode.NGRAM_MAP_K: "COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K",
    Mode.NGRAM_MAP_K4V: "COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K4V",
    Mode.NGRAM_MOD: "COMMON_SPECULATIVE_TYPE_NGRAM_MOD",
    Mode.NGRAM_CACHE: "COMMON_SPECULATIVE_TYPE_NGRAM_CACHE",
}


@dataclass(frozen=True, slots=True)
class _Argument:
    """One argument: its spellings, the fields that it sets, and how its value is read (``None``: a switch)."""

    names: tuple[str, ...]
    fields: tuple[str, ...]
    read: Callable[[str], Any] | None = None
    switched: Any = True


def _member(enum: str, prefix: str) -> Callable[[str], Any]:
    return lambda text: {"enum": enum, "name": f"{prefix}{text.upper()}"}


def _choice(values: dict[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return values[text.lower()]
        except KeyError:
            raise ValueError(f"one of {', '.join(values)}") from None

    return read


def _layers(text: str) -> int:
    """Layers on the GPU; the two words are llama.cpp's (common/arg.cpp)."""
    return {"auto": -1, "all": -2}.get(text) or int(text)


def _template_kwargs(text: str) -> dict[str, str]:
    """A JSON object, each value as JSON again: what llama.cpp keeps of ``--chat-template-kwargs``."""
    kwargs = json.loads(text)
    if not isinstance(kwargs, dict):
        raise ValueError("it must be a JSON object")  # noqa: TRY004 - told as a wrong value, like the others
    return {name: json.dumps(value) for name, value in kwargs.items()}


def _enum(name: str, **members: str) -> dict[str, Any]:
    return {text: {"enum": name, "name": member} for text, member in members.items()}


_FLASH = _enum(
    "llama_flash_attn_type",
    on="LLAMA_FLASH_ATTN_TYPE_ENABLED",
    off="LLAMA_FLASH_ATTN_TYPE_DISABLED",
    auto="LLAMA_FLASH_ATTN_TYPE_AUTO",
)
_LOADING = _enum(
    "llama_load_mode",
    auto="LLAMA_LOAD_MODE_AUTO",
    none="LLAMA_LOAD_MODE_NONE",
    mmap="LLAMA_LOAD_MODE_MMAP",
    mlock="LLAMA_LOAD_MODE_MLOCK",
    dio="LLAMA_LOAD_MODE_DIRECT_IO",
) | {"mmap+mlock": {"enum": "llama_load_mode", "name": "LLAMA_LOAD_MODE_MMAP_MLOCK"}}
_CACHE_TYPE = _choice(
    {
        name: {"enum": "ggml_type", "name": f"GGML_TYPE_{name.upper()}"}
        for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
    }
)
_ON_OFF = _choice({"on": True, "off": False})

_ARGUMENTS = (
    _Argument(("-c", "--ctx-size"), ("n_ctx",), int),
    _Argument(("-n", "--predict", "--n-predict"), ("n_predict",), int),
    _Argument(("-b", "--batch-size"), ("n_batch",), int),
    _Argument(("-ub", "--ubatch-size"), ("n_ubatch",), int),
    _Argument(("-np", "--parallel"), ("n_parallel",), int),
    _Argument(("-t", "--threads"), ("cpuparams.n_threads",), int),
    _Argument(("-tb", "--threads-batch"), ("cpuparams_batch.n_threads",), int),
    _Argument(("-ngl", "--gpu-layers", "--n-gpu-layers"), ("n_gpu_layers",), _layers),
    _Argument(("-sm", "--split-mode"), ("split_mode",), _member("llama_split_mode", "LLAMA_SPLIT_MODE_")),
    _Argument(("-mg", "--main-gpu"), ("main_gpu",), int),
    _Argument(("-fa", "--flash-attn"), ("flash_attn_type",), _choice(_FLASH)),
    _Argument(("-ctk", "--cache-type-k"), ("cache_type_k",), _CACHE_TYPE),
    _Argument(("-ctv", "--cache-type-v"), ("cache_type_v",), _CACHE_TYPE),
    _Argument(("-lm", "--load-mode"), ("load_mode",), _choice(_LOADING)),
    _Argument(("--mmap",), ("load_mode",), switched=_LOADING["mmap"]),
    _Argument(("--no-mmap",), ("load_mode",), switched=_LOADING["none"]),
    _Argument(("--mlock",), ("load_mode",), switched=_LOADING["mmap+mlock"]),
    _Argument(("-cb", "--cont-batching"), ("cont_batching",)),
    _Argument(("-nocb", "--no-cont-batching"), ("cont_batching",), switched=False),
    _Argument(("-kvu", "--kv-unified"), ("kv_unified",)),
    _Argument(("-kvo", "--kv-offload"), ("no_kv_offload",), switched=False),
    _Argument(("-nkvo", "--no-kv-offload"), ("no_kv_offload",)),
    _Argument(("-nr", "--no-repack"), ("no_extra_bufts",)),
    _Argument(("--no-op-offload",), ("no_op_offload",)),
    _Argument(("--swa-full",), ("swa_full",)),
    _Argument(("--no-warmup",), ("warmup",), switched=False),
    _Argument(("-fit", "--fit"), ("fit_params",), _ON_OFF),
    _Argument(("-cram", "--cache-ram"), ("cache_ram_mib",), int),
    _Argument(("-ctxcp", "--ctx-checkpoints"), ("n_ctx_checkpoints",), int),
    _Argument(("-ot", "--override-tensor"), ("tensor_buft_overrides",), str),
    _Argument(("--numa",), ("numa",), _member("ggml_numa_strategy", "GGML_NUMA_STRATEGY_")),
    _Argument(("--rope-freq-base",), ("rope_freq_base",), float),
    _Argument(("--jinja",), ("use_jinja",)),
    _Argument(("--no-jinja",), ("use_jinja",), switched=False),
    _Argument(("--chat-template",), ("chat_template",), str),
    _Argument(("--chat-template-kwargs",), ("default_template_kwargs",), _template_kwargs),
    _Argument(("--reasoning-budget",), ("sampling.reasoning_budget_tokens",), int),
    _Argument(("-a", "--alias"), ("model_alias",), lambda text: text.split(",")),
    _Argument(("--metrics",), ("endpoint_metrics",)),
    _Argument(("-lv", "--verbosity", "--log-verbosity"), ("verbosity",), int),
    _Argument(
        ("-ngld", "--gpu-layers-draft", "--spec-draft-ngl"), ("speculative.draft.n_gpu_layers",), _layers
    ),
    _Argument(("-devd", "--device-draft", "--spec-draft-device"), ("speculative.draft.devices",), str),
    _Argument(("-ctkd", "--cache-type-k-draft"), ("speculative.draft.cache_type_k",), _CACHE_TYPE),
    _Argument(("-ctvd", "--cache-type-v-draft"), ("speculative.draft.cache_type_v",), _CACHE_TYPE),
    _Argument(
        ("-td", "--threads-draft"),
        ("speculative.draft.cpuparams.n_threads", "speculative.draft.cpuparams_batch.n_threads"),
        int,
    ),
)
_BY_NAME = {name: argument for argument in _ARGUMENTS for name in argument.names}


def user_fields(args: Sequence[str]) -> Fields:
    """The user's own launch settings.

    Args:
        args: llama-server's arguments as typed.

    Raises:
        UsageError: One is autospec's own, lacks its value, or has one that cannot be read.
        UnsupportedError: xllamacpp has no field for it.
    """
    fields: Fields = {}
    rest = list(args)
    while rest:
        name = rest.pop(0)
        if not name.startswith("-"):
            raise UsageError(f"{name!r} is not an option of llama-server.", "Quote a value that has spaces.")
        refuse_owned(name)
        argument = _BY_NAME.get(normalise(name))
        if argument is None:
            raise UnsupportedError(
                f"The embedded backend cannot set {name}.",
                "Leave it out, or install llama-server (brew install llama.cpp), which takes all its options.",
            )
        value = argument.switched if argument.read is None else _value(argument, name, rest)
        fields |= dict.fromkeys(argument.fields, value)
    # llama-server gives the batch threads the same number; xllamacpp leaves each field alone.
    if "cpuparams.n_threads" in fields:
        fields.setdefault("cpuparams_batch.n_threads", fields["cpuparams.n_threads"])
    return fields


def _value(argument: _Argument, name: str, rest: list[str]) -> Any:
    if not rest:
        raise UsageError(f"{name} needs a value.")
    text = rest.pop(0)
    assert argument.read is not None
    try:
        return argument.read(text)
    except ValueError as error:
        raise UsageError(f"The value {text!r} of {name} cannot be read: {error}.") from error


def drafting_fields(drafting: Drafting) -> Fields:
    """A drafting, every parameter pinned; `off` sets nothing.

    Raises:
        UnsupportedError: The mode, or a value of it, is not llama.cpp's.
    """
    if drafting.is_off:
        return {}
    kind = TYPES.get(drafting.mode)
    if kind is None:
        raise UnsupportedError(f"The embedded backend has no mode {drafting.mode}.")
    fields: Fields = {"speculative.types": [{"enum": "common_speculative_type", "name": kind}]}
    match drafting.mode:
        case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
            sizes = f"speculative.{str(drafting.mode).replace('-', '_')}"
            fields |= {
                f"{sizes}.size_n": drafting.ngram_n,
                f"{sizes}.size_m": drafting.ngram_m,
                f"{sizes}.min_hits": drafting.min_hits,
            }
        case Mode.NGRAM_MOD:
            fields |= {
                "speculative.ngram_mod.n_match": drafting.ngram_n,
                "speculative.ngram_mod.n_max": drafting.n_max,
                "speculative.ngram_mod.n_min": drafting.n_min or 0,
            }
        case Mode.NGRAM_CACHE:
            if drafting.n_max != NGRAM_CACHE_N_MAX or drafting.n_min:
                raise UnsupportedError(
                    f"The embedded backend cannot set n_max={drafting.n_max} and n_min={drafting.n_min or 0} "
                    f"for ngram-cache.",
                    f"It always proposes up to {NGRAM_CACHE_N_MAX} tokens: ask for n_max={NGRAM_CACHE_N_MAX}.",
                )
        case _:
            fields |= {
                "speculative.draft.n_max": drafting.n_max,
                "speculative.draft.n_min": drafting.n_min or 0,
                "speculative.draft.p_min": drafting.p_min or 0.0,
            }
            if drafting.draft is not None:
                fields["speculative.draft.mparams.path"] = drafting.draft
    return fields
