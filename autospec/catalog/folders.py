"""Find model files: the known folders of this machine, split GGUF names, and the layouts of Hugging Face and Ollama.

Sources: ``fs_get_cache_directory`` (common/common.cpp) and ``hf_cache::get_cache_directory`` (common/hf-cache.cpp) of llama.cpp
b11434, huggingface_hub's environment documentation, LM Studio's ``~/.lmstudio-home-pointer`` and settings.json, Ollama's FAQ.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autospec.catalog.model import Format
from autospec.files import privacy_hint

__all__ = [
    "FoundModel",
    "ModelFolder",
    "model_name",
    "part_paths",
    "places",
    "printable",
    "projectors_beside",
    "walk",
]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder to search, at most `depth` folders deep. `chosen`: the user named it, so its absence deserves a warning."""

    path: Path
    source: str
    chosen: bool = False
    depth: int | None = None


def places(
    environ: Mapping[str, str], home: Path, platform: str, model_dirs: Iterable[Path] = ()
) -> tuple[ModelFolder, ...]:
    """Return every folder that may hold models, the user's own (`model_dirs`) first, each once."""
    found = [ModelFolder(path, "folder", chosen=True) for path in model_dirs]
    cache = _folder(environ, "XDG_CACHE_HOME", home) or home / ".cache"
    found += [ModelFolder(p, "llama.cpp cache") for p in _llama_cpp(environ, home, platform, cache)]
    found += [ModelFolder(p, "Hugging Face cache") for p in _hugging_face(environ, home, cache)]
    found += [ModelFolder(p, "LM Studio") for p in _lm_studio(home)]
    found += [ModelFolder(p, "Ollama") for p in _ollama(environ, home, platform)]
    unique: dict[Path, ModelFolder] = {}
    for place in found:
        unique.setdefault(place.path, place)
    return tuple(unique.values())


def _llama_cpp(environ: Mapping[str, str], home: Path, platform: str, cache: Path) -> list[Path]:
    own = _folder(environ, "LLAMA_CACHE", home)
    if own:
        # Newer builds use Hugging Face's layout; `walk` reads both.
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
        # Home of the user that Ollama's installer creates for its service.
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
    except (OSError, ValueError, RecursionError):
        return ""
    value = document.get("downloadsFolder") if isinstance(document, dict) else None
    return value if isinstance(value, str) and Path(value).is_absolute() else ""


_SPLIT: Final = re.compile(
    r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE
)


def printable(text: str) -> str:
    r"""Return a path or name with each byte that is not UTF-8 written as ``\xe9``.

    Python holds such a byte of a file name as half of a surrogate pair, which JSON's readers, SQLite and terminals refuse.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair that came from JSON, not from a file name
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _split(name: str) -> re.Match[str] | None:
    """The match of a name of a split model's part; a part 3 of 2, or of 0, is a whole file to llama.cpp too."""
    match = _SPLIT.fullmatch(name)
    return match if match and 1 <= int(match["part"]) <= int(match["parts"]) else None


def part_paths(path: Path) -> tuple[Path, ...]:
    """Return the files that belong to a GGUF file by its name: itself, or every part of a split model."""
    match = _split(path.name)
    if match is None:
        return (path,)
    stem, count, suffix = match["stem"], int(match["parts"]), match["suffix"]
    return tuple(path.with_name(f"{stem}-{i:05d}-of-{count:05d}{suffix}") for i in range(1, count + 1))


def model_name(path: Path) -> str:
    """Return the catalogue name of a GGUF file: its stem, without the part number of a split."""
    match = _split(path.name)
    return match["stem"] if match else path.stem


def split_key(name: str) -> tuple[str, int] | None:
    """The stem and the number of parts that all parts of a split model share; ``None`` for a whole file."""
    match = _split(name)
    return (match["stem"], int(match["parts"])) if match else None


def is_first_or_whole(name: str) -> bool:
    """True for a file by which a model is loaded."""
    match = _split(name)
    return match is None or int(match["part"]) == 1


_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})")
_OLLAMA_MODEL: Final = "application/vnd.ollama.image.model"
# `MediaTypeImageDraft` of Ollama's manifest/layer.go: what `DRAFT` in a Modelfile adds. Ollama gives the blob of a GGUF draft to
# its llama-server; the draft of a safetensors model is stored under the same type, in a blob that is not a GGUF file.
_OLLAMA_DRAFT: Final = "application/vnd.ollama.image.draft"
_MANIFEST_LIMIT: Final = 1 << 20
_OLLAMA_PROJECTOR: Final = "application/vnd.ollama.image.projector"
# Depth limit of the search, below Python's own recursion limit.
_ENDLESS: Final = 200


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model before it is read. `path`: GGUF file (of a split one the first part if it exists) or MLX folder.

    `projector`: the file with the model's image part, where the place itself names it (Ollama).
    """

    path: Path
    format: Format
    name: str = ""
    projector: Path | None = None


def walk(root: Path, warnings: list[str], depth: int | None = None) -> Iterator[FoundModel]:
    """Find the models below a folder, in a fixed order; each unreadable file or folder adds a line to `warnings`."""
    yield from _walk_folder(root, warnings, set(), _ENDLESS if depth is None else depth)


def _walk_folder(
    folder: Path, warnings: list[str], seen: set[tuple[int, int]], depth: int, repo: str = ""
) -> Iterator[FoundModel]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as listing:
            entries = {e.name: e for e in listing if not e.name.startswith(".")}
    except OSError as error:
        warnings.append(_unreadable(folder, error))
        return
    if folder.name.startswith("models--") and "snapshots" in entries:
        yield from _hub_repository(folder, warnings, seen)
        return
    if "manifests" in entries and "blobs" in entries:
        yield from _ollama_store(folder, warnings)
        return
    names = sorted(entries)
    yield from _gguf_files(folder, names, warnings)
    if "config.json" in entries and any(n.lower().endswith(".safetensors") for n in names):
        yield FoundModel(folder, "mlx", repo)
    for name in names:
        if depth > 0 and _is_dir(entries[name]):
            yield from _walk_folder(folder / name, warnings, seen, depth - 1)


def _gguf_files(folder: Path, names: list[str], warnings: list[str]) -> Iterator[FoundModel]:
    models = [n for n in names if n.lower().endswith(".gguf") and "mmproj" not in n.lower()]
    have_first = {split_key(n) for n in models if is_first_or_whole(n)}
    for name in models:
        if not is_first_or_whole(name):
            if split_key(name) in have_first:
                continue
            # The first part is missing: yield another part once, and the reader reports it.
            have_first.add(split_key(name))
        path = folder / name
        # os.path, because Path.is_file raises in a folder that may be listed and not entered.
        if os.path.isfile(path):  # noqa: PTH113
            yield FoundModel(path, "gguf")
        elif os.path.islink(path):  # noqa: PTH114
            warnings.append(f"{path} is a link to a missing file.")


# The quantization in a file's name, with what the name has before it.
_QUANTIZATION: Final = re.compile(
    r"(?:^|[-._])(?:ud[-_])?(?:i?q\d\w*|tq\d\w*|bf16|fp?16|fp?32|mxfp4\w*|nvfp4\w*)(?=$|[-.])"
)
_SAYS_NOTHING: Final = frozenset({"mmproj", "model", "gguf"})


def _words_of(path: Path) -> tuple[str, ...]:
    """The words of a file's name that say which model it is, without its quantization."""
    name = _QUANTIZATION.sub("", model_name(path).casefold())
    return tuple(word for word in re.split(r"[-_.\s]+", name) if word and word not in _SAYS_NOTHING)


def projectors_beside(model: Path, models: Iterable[Path], projectors: Iterable[Path]) -> tuple[Path, ...]:
    """The projectors (mmproj) in a folder that belong to a model in it.

    A projector whose name says nothing (``mmproj-F16.gguf``) belongs to the folder's model if all models in the folder are
    the same one in different quantizations, as in a repository on Hugging Face and in a folder of llama.cpp's
    ``--models-dir``. Another belongs to the model with its name, or to the only one whose name begins with its name.
    """
    names = {_words_of(path) for path in models}
    mine = _words_of(model)

    def belongs(projector: Path) -> bool:
        words = _words_of(projector)
        if words in names:
            return words == mine
        return {name for name in names if name[: len(words)] == words} == {mine}

    return tuple(projector for projector in sorted(projectors) if belongs(projector))


def _hub_repository(folder: Path, warnings: list[str], seen: set[tuple[int, int]]) -> Iterator[FoundModel]:
    """``models--ORG--NAME/snapshots/REVISION/…``: links into ``blobs``, newest revision first."""
    repo = folder.name.removeprefix("models--").replace("--", "/")
    snapshots = folder / "snapshots"
    try:
        revisions = sorted(p for p in snapshots.iterdir() if p.is_dir())
    except OSError as error:
        warnings.append(_unreadable(snapshots, error))
        return
    current = _small_text(folder / "refs" / "main").strip()
    revisions.sort(key=lambda p: (p.name != current, -_mtime(p)))
    had_folder = False
    for revision in revisions:
        for found in _walk_folder(revision, warnings, seen, _ENDLESS, repo):
            if found.format == "mlx":
                if had_folder:
                    continue
                had_folder = True
            yield found


def _unreadable(folder: Path | str, error: OSError) -> str:
    reason = f"{error.strerror or error}."
    return f"{folder} cannot be read: {reason} {privacy_hint(reason)}".rstrip()


def _ollama_store(folder: Path, warnings: list[str]) -> Iterator[FoundModel]:
    """``manifests/HOST/NAMESPACE/NAME/TAG``: JSON that names the blob with the weights."""
    manifests = folder / "manifests"

    def report(error: OSError) -> None:
        warnings.append(_unreadable(error.filename, error))

    for where, folders, files in os.walk(manifests, onerror=report):
        folders.sort()
        for tag in sorted(files):
            if tag.startswith("."):
                continue
            path = Path(where, tag)
            try:
                layers = _manifest_layers(path)
                digest, draft = _digest(layers, _OLLAMA_MODEL), _digest(layers, _OLLAMA_DRAFT)
                projector = _digest(layers, _OLLAMA_PROJECTOR)
            except (OSError, ValueError, RecursionError) as error:
                warnings.append(f"{path} is not a readable Ollama manifest: {error}.")
                continue
            if not digest:
                continue  # a cloud model, or one in another format
            name = _ollama_name(path.relative_to(manifests).parts)
            blobs = {f"{name}-draft": draft, name: digest} if draft else {name: digest}
            for title, wanted in blobs.items():
                blob = folder / "blobs" / f"sha256-{wanted}"
                if not os.path.isfile(blob):  # noqa: PTH113 - Path.is_file raises if the folder may not be entered
                    warnings.append(f"Ollama's {title} is incomplete: {blob} is missing.")
                elif title == name or _is_gguf(blob):
                    beside = folder / "blobs" / f"sha256-{projector}" if projector and title == name else None
                    yield FoundModel(blob, "gguf", title, beside)


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return True  # the reader says why it cannot be read


def _manifest_layers(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError("it is not a file")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise ValueError("it is too large")
    manifest: Any = json.loads(path.read_bytes())
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list):
        raise ValueError("it has no layers")  # noqa: TRY004 - reported like invalid JSON
    return layers


def _digest(layers: list[Any], media_type: str) -> str:
    """The digest of the first layer of this type; empty if there is none."""
    for layer in layers:
        if isinstance(layer, dict) and layer.get("mediaType") == media_type:
            match = _DIGEST.fullmatch(str(layer.get("digest", "")))
            if match is None:
                raise ValueError("its digest is malformed")
            return match[1]
    return ""


def _ollama_name(parts: tuple[str, ...]) -> str:
    """The name as ``ollama list`` prints it, without the default registry and namespace."""
    *where, name, tag = ("", *parts)[-4:] if len(parts) < 4 else parts
    if where[:1] == ["registry.ollama.ai"]:
        where = where[1:]
        where = where[1:] if where == ["library"] else where
    return "/".join([*(w for w in where if w), name]) + f":{tag}"


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _small_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")[:200]
    except (OSError, ValueError):
        return ""
