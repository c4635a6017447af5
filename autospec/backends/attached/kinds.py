"""Find out by its API which kind of server is attached, and what its requests can set about drafting.

Tried here: llama-server b11434. Only read: the llama-servers of 2025, LM Studio
(https://lmstudio.ai/docs/developer/rest and the defaults in its SDK's KVConfig schema) and mlx-omni-server 0.5.3 (its
source).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from autospec.errors import UnsupportedError

__all__ = ["FoundServer", "ServerKind", "Sets", "find_out", "model_name"]


class ServerKind(StrEnum):
    """Kinds of servers that autospec can distinguish."""

    LLAMA_SERVER = "llama-server"
    LM_STUDIO = "LM Studio"
    MLX_OMNI = "mlx-omni-server"
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


# LM Studio's defaults per engine (KVConfig schema of lmstudio-js: maxTokensToDraft 16, minContinueDraftingProbability 0.75;
# numDraftTokensExact 2). Its HTTP API has no field for them; a user may have changed them in the model's own settings.
_LM_STUDIO_GGUF = (16, 0.75)
_LM_STUDIO_MLX = (2, None)
# stream_generate's default of num_draft_tokens in mlx-lm 0.31, which mlx-omni-server never sets.
_MLX_OMNI = (2, None)


def find_out(get: Callable[[str], Any]) -> FoundServer | None:
    """Ask what the server is.

    Args:
        get: Reads a path of its API, decoded; ``None`` if that fails.

    Returns:
        ``None`` if it has no route of an OpenAI-compatible server.
    """
    props = _mapping(get("/props"))
    if "default_generation_settings" in props:
        return _llama_server(props, get("/slots"))
    if entries := _entries(get("/api/v0/models")):
        return _lm_studio(entries)
    listed = get("/v1/models")
    names = tuple(str(entry["id"]) for entry in _entries(listed) if "id" in entry)
    if _mapping(_mapping(get("/openapi.json")).get("info")).get("title") == "MLX Omni Server":
        return _mlx_omni(names)
    if listed is None:
        return None
    note = "As far as autospec knows, requests to this server cannot set drafting. It is measured as it is."
    return FoundServer(ServerKind.OTHER, models=names, notes=(note,))


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
                "Choose that model with --model, or start the server with the other.",
            )
        return found.models[0] if found.models else ""
    wanted = _letters(path)
    fitting = [name for name in found.models if name in (path, PurePath(path).name, PurePath(path).stem)]
    fitting = fitting or [name for name in found.models if _letters(PurePath(name).name) in wanted]
    longest = max(map(len, fitting), default=0)
    fitting = [name for name in fitting if len(name) == longest]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(found.models) or "none"
    raise UnsupportedError(
        f"The attached {found.kind} lists no model that is {PurePath(path).name}; it lists {names}.",
        "Load it there first, or choose another with --model.",
    )


def _llama_server(props: Mapping[str, Any], slots: Any) -> FoundServer:
    told = (
        [s["speculative"] for s in slots if _mapping(s).get("speculative") is not None]
        if _is_list(slots)
        else []
    )
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


def _lm_studio(entries: list[Mapping[str, Any]]) -> FoundServer:
    names = tuple(str(e["id"]) for e in entries if e.get("type") in (None, "llm", "vlm"))
    loaded = [e for e in entries if e.get("state") == "loaded"] or entries
    mlx = all(e.get("compatibility_type") == "mlx" for e in loaded)
    return FoundServer(
        ServerKind.LM_STUDIO,
        models=names,
        sets=Sets.DRAFT,
        only=_LM_STUDIO_MLX if mlx else _LM_STUDIO_GGUF,
        tells_drafts=True,
        notes=(
            "LM Studio takes the draft model with the request; the number of drafted tokens is set in LM Studio.",
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


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _entries(answer: Any) -> list[Mapping[str, Any]]:
    data = _mapping(answer).get("data")
    found: Iterable[Any] = data if isinstance(data, list) else ()
    return [entry for entry in found if isinstance(entry, Mapping)]
