"""Where models are kept on this machine: a function of environment, home and platform.

The sources: ``fs_get_cache_directory`` (common/common.cpp) and ``hf_cache::get_cache_directory``
(common/hf-cache.cpp) of llama.cpp b11434, huggingface_hub's documentation of its environment, LM Studio's
``~/.lmstudio-home-pointer`` and settings.json, Ollama's FAQ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Place", "places"]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder to look in.

    Attributes:
        path: The folder; it need not exist.
        source: What to call it: `autospec.catalog.model.Model.source`.
        chosen: True if the user named it, so that its absence is worth a word.
        depth: How many folders deep to look; ``None`` for all the way down.
    """

    path: Path
    source: str
    chosen: bool = False
    depth: int | None = None


def places(
    environ: Mapping[str, str], home: Path, platform: str, model_dirs: Iterable[Path] = ()
) -> tuple[Place, ...]:
    """Every folder that may hold models, the user's own first, each once.

    Args:
        environ: The environment.
        home: The home folder.
        platform: ``sys.platform``.
        model_dirs: Folders from the config.
    """
    found = [Place(path, "folder", chosen=True) for path in model_dirs]
    cache = _folder(environ, "XDG_CACHE_HOME", home) or home / ".cache"
    found += [Place(p, "llama.cpp cache") for p in _llama_cpp(environ, home, platform, cache)]
    found += [Place(p, "Hugging Face cache") for p in _hugging_face(environ, home, cache)]
    found += [Place(p, "LM Studio") for p in _lm_studio(home)]
    found += [Place(p, "Ollama") for p in _ollama(environ, home, platform)]
    unique: dict[Path, Place] = {}
    for place in found:
        unique.setdefault(place.path, place)
    return tuple(unique.values())


def _llama_cpp(environ: Mapping[str, str], home: Path, platform: str, cache: Path) -> list[Path]:
    own = _folder(environ, "LLAMA_CACHE", home)
    if own:
        # Newer builds lay it out like Hugging Face's cache; the walk knows both.
        return [own]
    return [home / "Library/Caches/llama.cpp" if platform == "darwin" else cache / "llama.cpp"]


def _hugging_face(environ: Mapping[str, str], home: Path, cache: Path) -> list[Path]:
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        folder = _folder(environ, name, home)
        if folder:
            return [folder / below]
    return [cache / "huggingface/hub"]


def _lm_studio(home: Path) -> list[Path]:
    homes = [home / ".lmstudio", home / ".cache/lm-studio"]
    pointer = _first_line(home / ".lmstudio-home-pointer")
    if pointer:
        homes.insert(0, Path(pointer))
    found = []
    for folder in homes:
        downloads = _downloads_folder(folder / "settings.json")
        found += [Path(downloads)] if downloads else []
        found.append(folder / "models")
    return found


def _ollama(environ: Mapping[str, str], home: Path, platform: str) -> list[Path]:
    own = _folder(environ, "OLLAMA_MODELS", home)
    found = [own] if own else [home / ".ollama/models"]
    if platform.startswith("linux"):
        # The home of the user that Ollama's installer makes for its service.
        found.append(Path("/usr/share/ollama/.ollama/models"))
    return found


def _folder(environ: Mapping[str, str], name: str, home: Path) -> Path | None:
    value = environ.get(name, "")
    if not value:
        return None
    return home / value[2:] if value.startswith("~/") else Path(value)


def _first_line(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip().partition("\n")[0].strip()
    except (OSError, ValueError):
        return ""


def _downloads_folder(settings: Path) -> str:
    try:
        document = json.loads(settings.read_bytes())
    except (OSError, ValueError):
        return ""
    value = document.get("downloadsFolder") if isinstance(document, dict) else None
    return value if isinstance(value, str) and Path(value).is_absolute() else ""
