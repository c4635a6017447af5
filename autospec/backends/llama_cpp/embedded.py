"""The backend `embedded`: llama.cpp's server from the xllamacpp wheel, in a child process, with llama-server's API.

llama-server's arguments become fields of xllamacpp's `CommonParams`. A field is a dotted path below `CommonParams`, a
value is JSON. Members of xllamacpp's enums go by name, ``{"enum": "ggml_type", "name": "GGML_TYPE_Q8_0"}``, and its objects as
``{"object": "CommonAdapterLoraInfo", "path": …}``, since only the child imports xllamacpp.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autospec.backends import binaries
from autospec.backends.flags import NGRAM_CACHE_NOTE, normalise
from autospec.backends.llama_cpp.scorer import LlamaCppScorer
from autospec.backends.process import HOST, ask_child
from autospec.backends.protocol import Capabilities, LaunchSettings
from autospec.backends.server import LlamaHttpServer, start_child
from autospec.backends.user_args import args_of_draft, check_count, options_of, refuse_owned
from autospec.cells import Build, options_in
from autospec.drafting import Drafting, Mode
from autospec.errors import BackendMissingError, UnsupportedError, UsageError
from autospec.hardware.gpu import Device, on_metal, shares_memory

__all__ = ["TYPES", "Embedded", "drafting_fields", "user_fields"]

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
}


@dataclass(frozen=True, slots=True)
class _Argument:
    """An argument: its spellings, the fields that it sets, how its value is read (``None`` for a switch)."""

    # One that `adds` is read as a list, and may be repeated.

    names: tuple[str, ...]
    fields: tuple[str, ...]
    read: Callable[[str], Any] | None = None
    switched: Any = True
    adds: bool = False


def _member(enum: str, prefix: str) -> Callable[[str], Any]:
    return lambda text: {"enum": enum, "name": f"{prefix}{text.upper()}"}


def _enum(enum: str, prefix: str, members: dict[str, str]) -> dict[str, Any]:
    return {text: _member(enum, prefix)(member) for text, member in members.items()}


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
    """A JSON object whose values are JSON texts, as llama.cpp keeps ``--chat-template-kwargs``."""
    kwargs = json.loads(text)
    if not isinstance(kwargs, dict):
        raise ValueError("it must be a JSON object")  # noqa: TRY004 - a wrong value, like the others
    return {name: json.dumps(value) for name, value in kwargs.items()}


def _adapters(text: str) -> list[dict[str, Any]]:
    """LoRA adapters, as llama.cpp reads ``--lora``: paths with commas between them."""
    return [_adapter(path, 1.0) for path in text.split(",")]


def _scaled_adapters(text: str) -> list[dict[str, Any]]:
    """LoRA adapters, as llama.cpp reads ``--lora-scaled``: ``PATH:SCALE`` with commas between them."""
    found = []
    for entry in text.split(","):
        path, colon, scale = entry.rpartition(":")
        if not colon:
            raise ValueError("it must be PATH:SCALE")
        found.append(_adapter(path, float(scale)))
    return found


def _adapter(path: str, scale: float) -> dict[str, Any]:
    return {"object": "CommonAdapterLoraInfo", "path": path, "scale": scale}


_FLASH = _enum(
    "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_", {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
)
_LOADING = _enum(
    "llama_load_mode",
    "LLAMA_LOAD_MODE_",
    {name: name for name in ("auto", "none", "mmap", "mlock")}
    | {"dio": "DIRECT_IO", "mmap+mlock": "MMAP_MLOCK"},
)
_TYPES_OF_CACHES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_CACHE_TYPE = _choice(_enum("ggml_type", "GGML_TYPE_", {name: name for name in _TYPES_OF_CACHES}))
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
    _Argument(("--lora",), ("lora_adapters",), _adapters, adds=True),
    _Argument(("--lora-scaled",), ("lora_adapters",), _scaled_adapters, adds=True),
    _Argument(("-mm", "--mmproj"), ("mmproj.path",), str),
    _Argument(("--no-mmproj", "--no-mmproj-auto"), ("no_mmproj",)),
    _Argument(("--no-mmproj-offload",), ("mmproj_use_gpu",), switched=False),
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
    """The fields for llama-server's arguments as the user typed them.

    Raises:
        UsageError: autospec sets one of them itself, or its value is missing or cannot be read.
        UnsupportedError: xllamacpp has no field for one.
    """
    fields: Fields = {}
    for name, values in options_of("llama-server", args):
        refuse_owned(name)
        argument = _BY_NAME.get(normalise(name))
        if argument is None:
            raise UnsupportedError(
                f"The embedded backend cannot set {name}.",
                "Remove it, or install llama-server (brew install llama.cpp), which has all options.",
            )
        check_count("llama-server", name, values, 0 if argument.read is None else 1)
        try:
            value = argument.switched if argument.read is None else argument.read(values[0])
        except ValueError as error:
            raise UsageError(f"The value {values[0]!r} of {name} cannot be read: {error}.") from error
        before = [*fields.get(argument.fields[0], ())] if argument.adds else None
        fields |= dict.fromkeys(argument.fields, value if before is None else before + value)
    # llama-server uses the same number of threads for batches; xllamacpp does not.
    if "cpuparams.n_threads" in fields:
        fields.setdefault("cpuparams_batch.n_threads", fields["cpuparams.n_threads"])
    return fields


def drafting_fields(drafting: Drafting) -> Fields:
    """The fields for a drafting, every parameter pinned; none for `off`.

    Raises:
        UnsupportedError: llama.cpp does not have the mode.
    """
    if drafting.is_off:
        return {}
    if drafting.engine is not None:
        raise UnsupportedError(f"The embedded backend has no {drafting.engine} drafting.")
    types = []
    fields: Fields = {}
    for part in drafting.parts:
        if part.mode not in TYPES:
            raise UnsupportedError(f"The embedded backend has no mode {part.mode}.")
        types.append({"enum": "common_speculative_type", "name": TYPES[part.mode]})
        fields |= _parameter_fields(part)
    return {"speculative.types": types, **fields}


def _parameter_fields(drafting: Drafting) -> Fields:
    match drafting.mode:
        case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
            sizes = f"speculative.{str(drafting.mode).replace('-', '_')}"
            return {
                f"{sizes}.size_n": drafting.ngram_n,
                f"{sizes}.size_m": drafting.ngram_m,
                f"{sizes}.min_hits": drafting.min_hits,
            }
        case Mode.NGRAM_MOD:
            return {
                "speculative.ngram_mod.n_match": drafting.ngram_n,
                "speculative.ngram_mod.n_max": drafting.n_max,
                "speculative.ngram_mod.n_min": drafting.n_min or 0,
            }
        case _:
            file = {} if drafting.draft is None else {"speculative.draft.mparams.path": drafting.draft}
            return {
                "speculative.draft.n_max": drafting.n_max,
                "speculative.draft.n_min": drafting.n_min or 0,
                "speculative.draft.p_min": drafting.p_min or 0.0,
                **file,
            }


_CHILD = ("-m", "autospec.backends.llama_cpp.embedded_child")
# Importing xllamacpp takes 50 ms; a wheel with GPU libraries, from a cold disk, seconds.
_PROBE_TIMEOUT_S = 60.0
# The slots tell whether the drafting is in force.
_FIXED = {"endpoint_slots": True}
# The same as `LlamaServer` sets for measuring.
_MEASURED_WITH = {"cache_ram_mib": 0, "cache_idle_slots": False, "n_parallel": 1}
# The place of the weights is a message of the level "trace"; see `placement`.
_TELLING_PLACEMENT = {"verbosity": 4}
# xllamacpp's default differs from llama-server's: -1 is "auto", four slots that share one cache.
_SERVED_WITH = {"n_parallel": -1}


# A wheel that was built with a macOS SDK before 15 lacks this class of Metal, whatever its log says.
_RESIDENCY_SETS = b"MTLResidencySetDescriptor"
_NO_RESIDENCY_NOTE = (
    "With this wheel, macOS may take a model out of the GPU's memory during a pause (it lacks Metal residency sets): the first request "
    "after a pause of a second is slower than with Homebrew's llama-server (brew install llama.cpp)."
)


@dataclass(frozen=True, slots=True)
class _Wheel:
    abilities: Capabilities
    devices: tuple[Device, ...]


class Embedded:
    """The backend `embedded`; `state_dir` takes records, logs and hashes."""

    name = "embedded"

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def capabilities(self) -> Capabilities:
        """See `autospec.backends.protocol.Backend`."""
        return self._wheel.abilities

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`; the port is not part of it."""
        return self._command(self._fields(model_path, drafting, settings))

    def drafting_args(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`: the JSON of all fields."""
        return () if drafting.is_off else self.command(model_path, drafting, settings)[-1:]

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> LlamaHttpServer:
        """See `autospec.backends.protocol.Backend`."""
        fields = self._fields(model_path, drafting, settings)
        return start_child(
            lambda process, port: LlamaHttpServer(process, drafting, port, self.name),
            lambda port: self._command(fields | {"hostnames": [HOST], "port": port}),
            lambda server: server.verify(self.capabilities()),
            settings=settings,
            state_dir=self._state_dir,
        )

    def devices(self) -> tuple[Device, ...] | None:
        """See `autospec.backends.registry.OnDevices`."""
        try:
            return _probe(self._state_dir).devices
        except BackendMissingError:
            return None

    def settings_of_draft(self, settings: LaunchSettings) -> LaunchSettings:
        """See `autospec.backends.registry.DraftsAlone`."""
        options = options_in(args_of_draft(settings.args))
        # The draft's devices can be set, and those of a main model cannot.
        args = (word for flag, values in options if flag in _BY_NAME for word in (flag, *values))
        return replace(settings, args=tuple(args))

    def scorer(self, model_path: str, n_ctx: int) -> LlamaCppScorer:
        """See `autospec.backends.registry.Scores`."""
        return LlamaCppScorer.launch(model_path, n_ctx=n_ctx, state_dir=self._state_dir)

    @staticmethod
    def _command(fields: Fields) -> tuple[str, ...]:
        return (sys.executable, *_CHILD, json.dumps(fields))

    def _fields(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> Fields:
        abilities = self.capabilities()
        lacking = [part.mode for part in drafting.parts if part.mode not in abilities.modes]
        if lacking:
            raise UnsupportedError(
                f"The embedded backend {abilities.build.version} has no mode {lacking[0]}.",
                f"It offers: {', '.join(sorted(abilities.modes))}.",
            )
        return {
            "model.path": model_path,
            **_FIXED,
            **(_SERVED_WITH if settings.serving else _MEASURED_WITH),
            **(_TELLING_PLACEMENT if self._wheel.devices and not settings.serving else {}),
            **({"model_alias": [settings.served_as]} if settings.served_as else {}),
            **user_fields(settings.args),
            **drafting_fields(drafting),
        }

    @cached_property
    def _wheel(self) -> _Wheel:
        return _probe(self._state_dir)


def _probe(state_dir: Path) -> _Wheel:
    if importlib.util.find_spec("xllamacpp") is None:
        raise BackendMissingError("xllamacpp is not installed.", "pip install xllamacpp")
    try:
        told = ask_child(*_CHILD, "--probe", timeout_s=_PROBE_TIMEOUT_S)
    except ValueError as error:
        raise BackendMissingError(
            f"xllamacpp is installed but cannot be loaded: {error}.",
            "pip install --force-reinstall xllamacpp, or install llama-server.",
        ) from error
    facts = binaries.facts_of((Path(told["library"]),), state_dir)
    version = f"xllamacpp-{told['version']}"
    fingerprint = hashlib.sha256(f"{version}\n{facts.sha256}".encode()).hexdigest()[:16]
    modes = {Mode.OFF} | {mode for mode, name in TYPES.items() if name in told["types"]}
    devices = tuple(
        Device(
            d["name"],
            d["description"],
            int(d["total"]),
            int(d["free"]),
            unified=d["type"].endswith("IGPU") or shares_memory(d["description"]),
        )
        for d in told.get("devices", ())
        if d["type"].endswith("GPU")
    )
    notes: tuple[str, ...] = (
        (NGRAM_CACHE_NOTE,) if "COMMON_SPECULATIVE_TYPE_NGRAM_CACHE" in told["types"] else ()
    )
    if on_metal() and _lacks_residency_sets(Path(told["library"])):
        notes += (_NO_RESIDENCY_NOTE,)
    build = Build("embedded", version, fingerprint)
    abilities = Capabilities(
        build, frozenset(modes), tells_drafts=facts.tells_drafts, notes=notes, combines=True
    )
    return _Wheel(abilities, devices)


def _lacks_residency_sets(library: Path) -> bool:
    with library.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_RESIDENCY_SETS) < 0
