"""Find out by its API which kind of server is attached, and what its requests can set about drafting.

Tried here: llama-server b11434, also as a router. Only read: the llama-servers of 2025, LM Studio
(https://lmstudio.ai/docs/developer/rest and the defaults in its SDK's KVConfig schema), vLLM and mlx-omni-server 0.5.3
(their sources).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlencode

from autospec.catalog.folders import model_name as catalogue_name
from autospec.errors import UnsupportedError
from autospec.formats import counted

__all__ = ["FoundServer", "ServerKind", "Sets", "behind_router", "find_out", "model_name"]


class ServerKind(StrEnum):
    """Kinds of servers that autospec can distinguish."""

    LLAMA_SERVER = "llama-server"
    LLAMA_ROUTER = "llama-server router"
    """A llama-server that starts one llama-server per model and passes requests on by their `model`."""
    LM_STUDIO = "LM Studio"
    MLX_OMNI = "mlx-omni-server"
    VLLM = "vLLM"
    OTHER = "OpenAI-compatible server"


class Sets(StrEnum):
    """What a request can set about drafting."""

    NOTHING = "nothing"
    DRAFT = "draft"
    """Which draft model, or none."""
    LIMITS = "limits"
    """The limits for the draft that the server was started with; n_max 0 turns drafting off."""


@dataclass(frozen=True, slots=True)
class FoundServer:
    """The attached server, as its answers describe it.

    Attributes:
        kind: Its kind.
        version: As it reports; ``unknown`` if it does not.
        models: Names that a request may ask for.
        sets: What a request can set about drafting.
        only: The one (n_max, p_min) with which this kind drafts, where a request cannot choose.
        tells_drafts: True if answers carry drafted and accepted counts.
        speculates: True if it reports that it drafts without being asked; ``None`` if it does not report that.
        model_file: The model file that it reports.
        notes: Sentences for `doctor`.
        chat: Its route for chat completions.
        files: Of a router: the model file behind each name.
        drafting: Of a router: the names whose presets name drafting.
    """

    kind: ServerKind
    version: str = "unknown"
    models: tuple[str, ...] = ()
    sets: Sets = Sets.NOTHING
    only: tuple[int, float | None] | None = None
    tells_drafts: bool = False
    speculates: bool | None = None
    model_file: str = ""
    notes: tuple[str, ...] = ()
    chat: str = "/v1/chat/completions"
    files: Mapping[str, str] = field(default_factory=dict)
    drafting: frozenset[str] = frozenset()


# LM Studio's defaults per engine (KVConfig schema of lmstudio-js: maxTokensToDraft 16, minContinueDraftingProbability 0.75;
# numDraftTokensExact 2). Its HTTP API has no field for them; a user may have changed them in the model's own settings.
_LM_STUDIO_GGUF = (16, 0.75)
_LM_STUDIO_MLX = (2, None)
# stream_generate's default of num_draft_tokens in mlx-lm 0.31, which mlx-omni-server never sets.
_MLX_OMNI = (2, None)


def find_out(get: Callable[[str], Any]) -> FoundServer | None:
    """Ask what the server is; ``None`` if it has no route of an OpenAI-compatible server.

    `get` reads a path of its API, decoded, or gives ``None`` if that fails.
    """
    props = _mapping(get("/props"))
    if props.get("role") == "router":
        return _router(props, _entries(get("/v1/models")), get)
    if "default_generation_settings" in props:
        return _llama_server(props, get("/slots"))
    if entries := _entries(get("/api/v0/models")):
        # The first releases report drafted tokens on this route only.
        return _lm_studio(entries, chat="/api/v0/chat/completions")
    if entries := _entries(get("/api/v1/models"), "models"):
        # LM Studio 0.4 and later without its older route. Its `/api/v1/chat` takes no draft model, OpenAI's route does.
        return _lm_studio(entries, chat="/v1/chat/completions")
    listed = get("/v1/models")
    entries = [entry for entry in _entries(listed) if "id" in entry]
    names = tuple(str(entry["id"]) for entry in entries)
    if _mapping(_mapping(get("/openapi.json")).get("info")).get("title") == "MLX Omni Server":
        return _mlx_omni(names)
    if listed is None:
        return None
    if any(entry.get("owned_by") == "vllm" for entry in entries):
        return _vllm(names, _mapping(get("/version")))
    note = "As far as autospec knows, requests to this server cannot set drafting. It is measured as it is."
    return FoundServer(ServerKind.OTHER, models=names, notes=(note,))


def behind_router(get: Callable[[str], Any], name: str, **options: str) -> FoundServer | None:
    """What the server is that a router runs for a model; ``None`` if the router does not answer for that model.

    The router loads the model first, unless `options` say otherwise.
    """
    query = urlencode({"model": name, **options})
    props = _mapping(get(f"/props?{query}"))
    if "default_generation_settings" not in props:
        return None
    # The router finds the server by this name, whatever that calls itself.
    return replace(_llama_server(props, get(f"/slots?{query}")), models=(name,))


def model_name(path: str, found: FoundServer) -> str:
    """The server's name for the model at a path.

    Raises:
        UnsupportedError: It lists no such model, or several.
    """
    if found.kind is ServerKind.MLX_OMNI:
        return path  # mlx_lm.load takes a folder
    if found.kind is ServerKind.LLAMA_SERVER:
        if PurePath(found.model_file).name != PurePath(path).name:
            raise UnsupportedError(
                f"The attached llama-server runs {PurePath(found.model_file).name}, not {PurePath(path).name}.",
                "Choose that model with --model, or start the server with the other model.",
            )
        return found.models[0] if found.models else ""
    if found.kind is ServerKind.LLAMA_ROUTER:
        return _name_behind_router(path, found)
    fitting = _fitting(path, found.models)
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(found.models) or "none"
    raise UnsupportedError(
        f"The attached {found.kind} does not list {PurePath(path).name}; it lists {names}.",
        "Load it there first, or choose another model with --model.",
    )


# The quantization in a name; a sequence such as Q4_K_M is one.
_QUANTIZATION = re.compile(
    r"(?<![a-z0-9])(?:i?q\d\w*|tq\d\w*|bf16|fp?(?:8|16|32)|int[48]|mxfp\d\w*|nvfp\d\w*|[2-8][-_]?bit)(?![a-z0-9])"
)
# The size of a model, or of its active part: 30b, a3b, e4b, 8x7b, 270m.
_SIZE = re.compile(r"(?<![a-z0-9.])(?:[ae]?\d+(?:\.\d+)?|\d+x\d+(?:\.\d+)?)[bm](?![a-z0-9])")
# Words that a file's name may have and a server's name for it leaves out.
_LEFT_OUT = frozenset(
    {"instruct", "it", "chat", "qat", "gguf", "mlx", "ud", "i1", "imat", "dwq", "awq", "gptq"}
)
# Words that make another model of one with the same name; a date does so, too.
_VARIANTS = frozenset(
    {
        *("thinking", "reasoning", "reasoner", "coder", "code", "vl"),
        *("vision", "omni", "audio", "math", "base", "distill"),
        *("mini", "nano", "lite", "air", "flash", "next", "guard"),
        *("embedding", "reranker", "abliterated", "uncensored"),
    }
)
_DATE = re.compile(r"\d{4}|\d{6}|\d{8}")
# The folders that LM Studio makes: it lists all that lies there, under some name.
_LM_STUDIOS = frozenset({".lmstudio", "lm-studio"})


def _fitting(path: str, names: tuple[str, ...]) -> list[str]:
    """The names that may mean the model at a path: of the first rule by which any does, those that say most of the path."""
    pure = PurePath(path)
    own = _own_name(pure)
    in_lm_studio = any(part.lower() in _LM_STUDIOS for part in pure.parts)
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name in (path, pure.name, pure.stem),
        lambda name: _says_same(name, own, pure),
        lambda name: not _SIZE.search(_last(name).lower()) and _says_same(name, _SIZE.sub(" ", own), pure),
        lambda name: _is_part_of(name, pure, strict=not in_lm_studio),
    )
    told = _letters(path)

    def said(name: str) -> tuple[int, ...]:
        also = _words(_last(name)) & _LEFT_OUT & _words(path)
        parts = (_letters(_last(name)), _letters(str(PurePath(name).parent)))
        return (len(also), *(len(part) if part in told else 0 for part in parts))

    for fits in rules:
        if fitting := [name for name in names if fits(name)]:
            most = max(map(said, fitting))
            return [name for name in fitting if said(name) == most]
    return []


def _own_name(path: PurePath) -> str:
    """What the file is called, or the folder of an MLX model, in small letters."""
    if path.suffix.lower() == ".gguf":
        return catalogue_name(Path(path)).lower()
    if path.parent.name == "snapshots":  # of the Hugging Face cache
        return path.parent.parent.name.rpartition("--")[2].lower()
    return path.name.lower()


def _says_same(name: str, own: str, path: PurePath) -> bool:
    """Whether a name has the words of the model's own name, but for some that the name may leave out.

    Of those it may have none that the path lacks: `instruct` is not the base model, and Q8_0 is not Q4_K_M.
    """
    wanted, last = _kept(own), _last(name)
    if not wanted or wanted not in (_kept(last), _kept(name)):
        return False
    told = _letters(str(path))
    quantizations = (_letters(found) for found in _QUANTIZATION.findall(last.lower()))
    return _words(last) & _LEFT_OUT <= _words(str(path)) and all(found in told for found in quantizations)


def _kept(name: str) -> str:
    """A name's letters without those of words that may be left out."""
    return "".join(_split(_QUANTIZATION.sub(" ", name.lower()), without=_LEFT_OUT))


def _is_part_of(name: str, path: PurePath, *, strict: bool) -> bool:
    """Whether the path has the letters of a name, and (`strict`) names no date and no variant besides."""
    wanted = _letters(_last(name))
    if not wanted or wanted not in _letters(str(path)):
        return False
    # The innermost part of the path that has them all names the model.
    named = next((part for part in reversed(path.parts) if wanted in _letters(part)), str(path))
    besides = [word for word in _words(named) if word not in wanted]
    return not strict or not any(word in _VARIANTS or _DATE.fullmatch(word) for word in besides)


def _last(name: str) -> str:
    return PurePath(name).name


def _words(text: str) -> set[str]:
    return set(_split(text.lower()))


def _split(text: str, without: frozenset[str] = frozenset()) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text) if word and word not in without]


def _name_behind_router(path: str, found: FoundServer) -> str:
    fitting = [name for name, file in found.files.items() if file == path]
    fitting = fitting or [
        name for name, file in found.files.items() if PurePath(file).name == PurePath(path).name
    ]
    # A router lists no file for a model that it has by the name of a repository.
    fitting = fitting or [
        n for n in found.models if n not in found.files and _letters(PurePath(path).stem) in _letters(n)
    ]
    if len(fitting) > 1:
        # Presets of one file often differ in their drafting alone; autospec compares with the one that does not draft.
        fitting = [name for name in fitting if name not in found.drafting] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UnsupportedError(
            f"The attached {found.kind} has {PurePath(path).name} under several names: {', '.join(fitting)}.",
            "Remove all but one of them from its presets.",
        )
    raise UnsupportedError(
        f"The attached {found.kind} does not have {PurePath(path).name}; "
        f"it has {', '.join(found.models) or 'none'}.",
        "Add the model to its folder or its presets, or choose another model with --model.",
    )


def _router(
    props: Mapping[str, Any], entries: list[Mapping[str, Any]], get: Callable[[str], Any]
) -> FoundServer:
    by_name = {str(entry["id"]): _mapping(entry.get("status")) for entry in entries if "id" in entry}
    commands = {name: _command(status) for name, status in by_name.items()}
    loaded = [name for name, status in by_name.items() if status.get("value") == "loaded"]
    # All its servers are of one build; the first that has its limits in its requests tells for all. Nothing is loaded for that.
    known = [behind_router(get, name, autoload="false") for name in loaded]
    limits = any(found is not None and found.sets is Sets.LIMITS for found in known)
    return FoundServer(
        ServerKind.LLAMA_ROUTER,
        version=str(props.get("build_info") or "unknown"),
        models=tuple(by_name),
        sets=Sets.LIMITS if limits else Sets.NOTHING,
        tells_drafts=True,
        notes=(
            f"It is llama.cpp's router. It has {counted(len(by_name), 'model')}, {len(loaded)} loaded.",
            "A model's drafting is fixed in the router's presets. autospec measures a model as its preset says.",
        ),
        files={name: file for name, args in commands.items() if (file := _file_in(args))},
        drafting=frozenset(name for name, args in commands.items() if _names_drafting(args)),
    )


def _command(status: Mapping[str, Any]) -> list[str]:
    args = status.get("args")
    return [str(arg) for arg in args] if isinstance(args, list) else []


def _file_in(args: list[str]) -> str:
    return next((value for flag, value in pairwise(args) if flag in ("-m", "--model")), "")


def _names_drafting(args: list[str]) -> bool:
    return any(arg.startswith("-") and ("draft" in arg or "--spec-" in arg) for arg in args)


def _llama_server(props: Mapping[str, Any], slots: Any) -> FoundServer:
    listed = slots if isinstance(slots, list) else []
    told = [s["speculative"] for s in listed if _mapping(s).get("speculative") is not None]
    speculates = any(told) if told else None
    parameters = _mapping(_mapping(props["default_generation_settings"]).get("params"))
    # The servers of 2025 name the limits among a request's parameters; later ones compiled them out (2026).
    limits = "speculative.n_max" in parameters and speculates is not False
    note = (
        "Its draft is the one it was started with: give that file with --draft. n_max, n_min and p_min go with the request."
        if limits
        else "Drafting of this llama-server is fixed when it starts. It is measured as it is."
    )
    file = str(props.get("model_path") or "")
    return FoundServer(
        ServerKind.LLAMA_SERVER,
        version=str(props.get("build_info") or "unknown"),
        models=(str(props.get("model_alias") or file),),
        sets=Sets.LIMITS if limits else Sets.NOTHING,
        tells_drafts=True,
        speculates=speculates,
        model_file=file,
        notes=(note,),
    )


def _lm_studio(entries: list[Mapping[str, Any]], chat: str) -> FoundServer:
    """LM Studio by its list of models, whose older form says id, state and compatibility_type."""
    # Without those for embeddings: it brings one of its own, which is a GGUF file.
    models = [entry for entry in entries if entry.get("type") in (None, "llm", "vlm")]
    loaded = [e for e in models if e.get("state") == "loaded" or e.get("loaded_instances")] or models
    mlx = bool(loaded) and all("mlx" in (e.get("compatibility_type"), e.get("format")) for e in loaded)
    return FoundServer(
        ServerKind.LM_STUDIO,
        models=tuple(str(name) for e in models if (name := e.get("id") or e.get("key"))),
        sets=Sets.DRAFT,
        only=_LM_STUDIO_MLX if mlx else _LM_STUDIO_GGUF,
        tells_drafts=True,
        chat=chat,
        notes=(
            "LM Studio takes the draft model with the request; the number of drafted tokens is set in LM Studio.",
        ),
    )


def _vllm(names: tuple[str, ...], version: Mapping[str, Any]) -> FoundServer:
    return FoundServer(
        ServerKind.VLLM,
        version=str(version.get("version") or "unknown"),
        models=names,
        notes=(
            "Drafting of vLLM is fixed when it starts. It is measured as it is.",
            "Its answers report drafted tokens if vLLM was started with --per-request-spec-decode-metrics summary.",
        ),
    )


def _mlx_omni(names: tuple[str, ...]) -> FoundServer:
    return FoundServer(
        ServerKind.MLX_OMNI,
        models=names,
        sets=Sets.DRAFT,
        only=_MLX_OMNI,
        notes=(
            "mlx-omni-server takes the draft model with the request and always proposes 2 tokens.",
            (
                "It loads the main model again for each draft and reports no counts. If it cannot load a draft, it answers "
                "without one; only its log says so."
            ),
        ),
    )


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _entries(answer: Any, name: str = "data") -> list[Mapping[str, Any]]:
    data = _mapping(answer).get(name)
    found: Iterable[Any] = data if isinstance(data, list) else ()
    return [entry for entry in found if isinstance(entry, Mapping)]
