"""Search this disk for models: `scan` returns a `Catalog`.

Metadata is cached between runs by path, with size and mtime of every file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import autospec
from autospec.catalog.folders import (
    FoundModel,
    ModelFolder,
    model_name,
    part_paths,
    places,
    printable,
    projectors_beside,
    walk,
)
from autospec.catalog.model import Model, Role
from autospec.catalog.resolve import OwnSettings, ambiguous_models, apply_sections, choose
from autospec.errors import ModelChoiceError, ModelFileError
from autospec.files import replace_file
from autospec.settings import Settings

__all__ = ["Catalog", "MetadataCache", "model_files", "scan", "signature", "silent_words"]


Signature = list[list[int]]

# Raise it when the readers give another result for the same file.
_VERSION: Final = 7


def signature(files: Iterable[Path]) -> Signature:
    """Size and mtime of the existing files; a model is read again when its signature changes."""
    result: Signature = []
    for path in files:
        with contextlib.suppress(OSError):
            status = path.stat()
            result.append([status.st_size, status.st_mtime_ns])
    return result


class MetadataCache:
    """The metadata cache: a JSON file that may vanish, be damaged, or be written by another process at any time.

    A damaged file counts as empty. It is replaced atomically, after merging what others wrote. If two processes write at the same
    moment, the entries of one are lost and read again later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _load(path)
        self._new: dict[str, dict[str, Any]] = {}

    def get(self, path: Path, files: Signature) -> Model | str | None:
        """Return the model, the sentence why it cannot be read, or ``None`` if the file must be read."""
        entry = self._entries.get(str(path))
        if not isinstance(entry, dict) or entry.get("files") != files:
            return None
        if isinstance(entry.get("error"), str):
            return str(entry["error"])
        try:
            return Model.from_json(entry["model"])
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, path: Path, files: Signature, what: Model | str) -> None:
        """Store a model, or the sentence why it cannot be read, with the signature from before the reading."""
        known = {"error": what} if isinstance(what, str) else {"model": what.to_json()}
        self._new[str(path)] = self._entries[str(path)] = {"files": files, **known}

    def models(self) -> Iterator[Model]:
        """The models as they were last read, without a look at their files: cheap, and perhaps out of date."""
        for entry in self._entries.values():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                yield Model.from_json(entry["model"])

    def save(self) -> None:
        """Write new entries. If the disk is full or read-only, the next scan is slower."""
        if not self._new:
            return
        entries = {k: v for k, v in {**_load(self._path), **self._new}.items() if os.path.exists(k)}  # noqa: PTH110
        document = json.dumps({"stamp": _stamp(), "entries": entries}, separators=(",", ":"))
        with contextlib.suppress(OSError):
            replace_file(self._path, document, durable=False)
        self._new = {}


def _stamp() -> list[str | int]:
    return [_VERSION, autospec.__version__]


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        if document["stamp"] == _stamp() and isinstance(document["entries"], dict):
            return document["entries"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return {}


CACHE_FILE: Final = "models.json"
# A disk that sleeps needs some ten seconds.
_ANSWERS_WITHIN_S: Final = 15.0
# Below the cache folder: links with a plain name to models whose path is not UTF-8.
_LINKS: Final = "links"

_NOT_A_MODEL: Final[dict[Role, str]] = {
    "embedding": "makes embeddings or ranks texts, and writes none",
    "projector": "is the image part of a model",
    "adapter": "is an adapter (LoRA) for a model",
    "vocabulary": "holds a vocabulary without weights",
    "combined": "holds image and text in one file, which only Ollama runs",
    "other": "holds no language model",
}
# Language models that were trained on for this (Qwen3-Embedding), converted by a program that does not say so in the files.
_EMBEDDING_NAME: Final = re.compile(r"(?<![a-z])(?:embedding|reranker)(?![a-z])")


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models that were found, each file once, by name; a warning per unreadable file or folder; the searched folders.

    `own`: what the config says of single models. `links`: the folder for links to models whose path is not UTF-8; without one,
    such models are refused. `others`: the names of files that are no language models, and what they are. `silent`: folders that
    did not answer, whose models are missing.
    """

    models: tuple[Model, ...]
    warnings: tuple[str, ...] = ()
    looked_in: tuple[Path, ...] = ()
    own: OwnSettings = field(default_factory=OwnSettings, compare=False)
    links: Path | None = field(default=None, compare=False)
    others: Mapping[str, Role] = field(default_factory=dict, compare=False)
    silent: tuple[Path, ...] = ()

    def find(self, name: str) -> Model:
        """Return the model for a path, also outside the catalogue, a name, or an unambiguous part of one.

        Raises:
            ModelChoiceError: None or several match, or the file is not a language model.
            ModelFileError: The path names a damaged file.
        """
        path = _expanded(name)
        if any(name == m.name for m in self.models) or not os.path.exists(path):  # noqa: PTH110
            return self._named(name, path)
        if path.is_dir() and os.sep not in name:
            # The folder may only share its name with a part of a model's name.
            with contextlib.suppress(ModelChoiceError):
                return choose(self.models, name)
        return self._at(path)

    def find_main(self, name: str) -> Model:
        """`find` for a main model; raises `ModelChoiceError` for a draft head, too."""
        found = self.find(name)
        if found.head is not None:
            raise ModelChoiceError(
                f"{found.name} is a draft head ({found.draft_kind}), not a main model.",
                "Name the model that it drafts for.",
            )
        return found

    def _named(self, name: str, path: Path) -> Model:
        if name.startswith(("/", "./", "../", "~")) or (os.sep in name and path.suffix.lower() == ".gguf"):
            raise ModelChoiceError(f"There is no model file {path}.", "`autospec models` lists the models.")
        try:
            return choose(self.models, name)
        except ModelChoiceError:
            if name not in self.others:
                raise
            raise _no_model(name, self.others[name]) from None

    def _at(self, path: Path) -> Model:
        for model in self.models:
            if any(_is_same(path, file) for file in (model.path, *model.files)):
                return model
        if path.is_dir() and not (path / "config.json").exists():
            inside = [m for m in self.models if _is_below(m.path, path)]
            inside = inside or [m for f in walk(path.absolute(), []) if (m := _read(f)).role == "text"]
            if not inside:
                raise ModelChoiceError(f"There is no model in {path}.", "Use the path of a .gguf file.")
            if len(inside) > 1:
                raise ambiguous_models(str(path), inside)
            return _with_plain_path(inside[0], self.links)
        model = _read(FoundModel(path.absolute(), "mlx" if path.is_dir() else "gguf"))
        if model.role != "text":
            raise _no_model(str(path), model.role)
        return _with_plain_path(model, self.links)


def scan(
    settings: Settings,
    *,
    environ: Mapping[str, str] | None = None,
    home: Path | None = None,
    beside: Iterable[str] = (),
) -> Catalog:
    """Find every model in the known caches and the folders of the config.

    Args:
        settings: The config's model folders and cache folder.
        environ: The environment; the process's own by default.
        home: The home folder; the user's by default.
        beside: Models that the user typed. Folders of paths are searched too: a draft often lies beside its main model.

    Raises:
        SettingsError: The config's sections for models contradict each other.
    """
    where = places(
        os.environ if environ is None else environ,
        Path.home() if home is None else home,
        sys.platform,
        settings.model_dirs,
    )
    where += tuple(_beside(name) for name in beside if os.path.exists(_expanded(name)))  # noqa: PTH110
    cache = MetadataCache(settings.cache_dir / CACHE_FILE)
    links = settings.cache_dir / _LINKS
    silent = _silent([place.path for place in where])
    warnings = list(map(silent_words, silent))
    models: dict[Path, Model] = {}
    projectors: dict[Path, Path] = {}
    others: dict[str, Role] = {}
    spellings: dict[tuple[int, int], Path] = {}
    for place in (place for place in where if place.path not in silent):
        for found in _in(place, warnings):
            real = _first_spelling(_real(found.path), spellings)
            if found.projector is not None:
                projectors.setdefault(found.path, found.projector)
            known = models.get(real)
            if known is not None:
                name = _name(found)
                if name not in (known.name, *known.aliases):
                    models[real] = dataclasses.replace(known, aliases=(*known.aliases, name))
                continue
            try:
                model = _cached(found, real, cache)
                if model.role == "text":
                    model = _with_plain_path(model, links)
                    models[real] = dataclasses.replace(model, source=place.source)
                else:
                    others[model.name] = model.role
            except ModelFileError as error:
                warnings.append(str(error))
    ordered = tuple(sorted(models.values(), key=lambda m: (m.name.casefold(), str(m.path))))
    described, own = apply_sections(
        ordered,
        settings.models,
        find=Catalog(ordered, links=links).find,
        adapter_digest=lambda path: _adapter_digest(path, cache),
    )
    cache.save()
    return Catalog(
        models=described,
        warnings=tuple(dict.fromkeys(map(printable, warnings))),
        looked_in=tuple(p.path for p in where),
        own=dataclasses.replace(own, projectors=_projectors(described, projectors)),
        links=links,
        others=others,
        silent=silent,
    )


def silent_words(folder: Path) -> str:
    """What a user is told of a folder that does not answer."""
    return f"{folder} does not answer: models in it are left out."


def _silent(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files and folders that do not answer, such as a network share that is gone: a look at them may never end."""
    looks = [threading.Thread(target=_look_at, args=(path,), daemon=True) for path in paths]
    for look in looks:
        look.start()
    until_s = time.monotonic() + _ANSWERS_WITHIN_S
    for look in looks:
        look.join(max(0.0, until_s - time.monotonic()))
    return tuple(path for path, look in zip(paths, looks, strict=True) if look.is_alive())


def _look_at(path: Path) -> None:
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        next(entries, None)


def _no_model(name: str, role: Role) -> ModelChoiceError:
    return ModelChoiceError(f"{name} {_NOT_A_MODEL[role]}.", "Choose a language model.")


def model_files(settings: Settings) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """The names of the model files in the folders that `scan` searches, without reading any, and those folders."""
    where = places(os.environ, Path.home(), sys.platform, settings.model_dirs)
    silent = _silent([place.path for place in where])
    answering = (place for place in where if place.path not in silent)
    names = {_real(found.path): _name(found) for place in answering for found in _in(place, [])}
    return tuple(sorted(names.values(), key=str.casefold)), tuple(place.path for place in where)


def _projectors(models: Iterable[Model], known: Mapping[Path, Path]) -> dict[Path, tuple[Path, ...]]:
    """The projectors of each model: what its place names (`known`), else files beside it."""
    by_folder: dict[Path, list[Path]] = {}
    for model in models:
        if model.format == "gguf" and model.head is None:
            by_folder.setdefault(model.path.parent, []).append(model.path)
    found: dict[Path, tuple[Path, ...]] = {}
    for folder, paths in by_folder.items():
        try:
            names = os.listdir(folder)  # noqa: PTH208 - names alone
        except OSError:
            names = []
        wanted = (name for name in names if "mmproj" in name.lower() and name.lower().endswith(".gguf"))
        files = [folder / name for name in wanted if os.path.isfile(folder / name)]  # noqa: PTH113 - as in `walk`
        for path in paths:
            beside = (known[path],) if path in known else projectors_beside(path, paths, files)
            found |= {path: beside} if beside else {}
    return found


def _adapter_digest(path: Path, cache: MetadataCache) -> str:
    """Of the adapter's contents. Raises `ModelFileError`."""
    if path.is_dir():  # of mlx_lm
        sizes = signature(sorted(path.glob("adapter*")))
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
    adapter = _cached(FoundModel(path, "gguf"), _real(path), cache)
    if adapter.role != "adapter":
        raise ModelFileError(
            f"{path} is not a LoRA adapter: it {_NOT_A_MODEL.get(adapter.role, 'is a model')}."
        )
    return adapter.fingerprint


def _beside(name: str) -> ModelFolder:
    path = _expanded(name).absolute()
    return ModelFolder(path.parent, "folder", depth=1 if path.is_dir() else 0)


def _in(place: ModelFolder, warnings: list[str]) -> list[FoundModel]:
    # os.path, because Path.exists raises if a parent folder may not be entered.
    if not os.path.exists(place.path):  # noqa: PTH110
        if place.chosen:
            warnings.append(f"{place.path}, a folder of model_dirs, does not exist.")
        return []
    if place.path.is_file():
        return [FoundModel(place.path, "gguf")]
    found: list[FoundModel] = []
    try:
        found.extend(walk(place.path, warnings, place.depth))
    except Exception as error:  # noqa: BLE001 - what was found before stays found
        warnings.append(f"{place.path} could not be searched to its end: {_unexpected(error)}.")
    return found


def _cached(found: FoundModel, real: Path, cache: MetadataCache) -> Model:
    """The cached model, or a new reading if the files changed. Raises `ModelFileError`."""
    files = signature(_made_of(found))
    known = cache.get(real, files)
    if isinstance(known, str):
        raise ModelFileError(known)
    if known is None:
        try:
            known = _read(found)
        except ModelFileError as error:
            # The system may allow the next read without a change of size and mtime.
            if not isinstance(error.__cause__, OSError | MemoryError):
                cache.put(real, files, str(error))
            raise
        cache.put(real, files, known)
    return _as_found(known, found)


def _read(found: FoundModel) -> Model:
    # A catalogue from the cache needs neither gguf nor NumPy.
    if found.format == "mlx":
        from autospec.catalog.mlx import read_mlx as read  # noqa: PLC0415
    else:
        from autospec.catalog.gguf import read_gguf as read  # noqa: PLC0415
    try:
        return _as_found(read(found.path), found)
    except ModelFileError:
        raise
    except Exception as error:
        # A file of a kind that the reader does not foresee must not hide the other models.
        raise ModelFileError(f"{found.path} cannot be read: {_unexpected(error)}.") from error


def _unexpected(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def _with_plain_path(model: Model, links: Path | None) -> Model:
    """The model under a path that JSON, SQLite and every terminal can hold: its own, or a link to it."""
    paths = (model.path, *model.files)
    if all(str(path) == printable(str(path)) for path in paths):
        return model
    target = model.path.absolute()
    refusal = f"{printable(str(target))} cannot be used: its path is not UTF-8"
    if links is None or (model.format == "mlx" and any(f.name != printable(f.name) for f in model.files)):
        raise ModelFileError(f"{refusal}.", "Rename the file or folder.")
    folder = links / hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if model.format == "mlx":
            path = _link(folder, target)
            return dataclasses.replace(model, path=path, files=tuple(path / f.name for f in model.files))
        files = tuple(_link(folder, file.absolute()) for file in model.files)
    except OSError as error:
        raise ModelFileError(
            f"{refusal}, and {links} cannot hold a link to it ({error.strerror or error}).",
            "Rename the file or folder.",
        ) from error
    return dataclasses.replace(model, path=files[0], files=files)


def _link(folder: Path, target: Path) -> Path:
    link = folder / printable(target.name)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(target)
    return link


def _as_found(model: Model, found: FoundModel) -> Model:
    """The model with the path and name of this search, and with the role that its name tells."""
    if found.format == "mlx":
        path, files = found.path, tuple(found.path / f.name for f in model.files)
    else:
        files = part_paths(found.path)
        path = files[0]
    name, role = _name(found), model.role
    if role == "text" and _EMBEDDING_NAME.search(name.rpartition("/")[2].casefold()):
        role = "embedding"
    return dataclasses.replace(model, name=name, path=path, files=files, role=role)


def _name(found: FoundModel) -> str:
    return printable(_raw_name(found))


def _raw_name(found: FoundModel) -> str:
    if found.name or found.format == "gguf":
        return found.name or model_name(found.path)
    repository = found.path.parent.parent.name
    if found.path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return found.path.name


def _made_of(found: FoundModel) -> list[Path]:
    """Every file whose change invalidates the cache entry."""
    if found.format == "gguf":
        return list(part_paths(found.path))
    try:
        entries = sorted(found.path.iterdir())
    except OSError:
        return []
    return [p for p in entries if p.suffix in (".json", ".safetensors")]


def _expanded(name: str) -> Path:
    try:
        # An empty name is no path; Path("") would be this folder.
        return Path(name).expanduser() if name.strip() else Path("/nonexistent")
    except RuntimeError:  # ~somebody who does not exist
        return Path(name)


def _is_below(path: Path, folder: Path) -> bool:
    """True for a model in the folder, also if a link in the folder or to it leads to the model."""
    return path.is_relative_to(folder.absolute()) or _real(path).is_relative_to(_real(folder))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _first_spelling(path: Path, spellings: dict[tuple[int, int], Path]) -> Path:
    """The path under which this file or folder was found first."""
    # macOS and its like ignore case: ``~/models`` and ``~/Models`` are one folder, which `os.path.realpath` does not know.
    try:
        status = path.stat()
    except OSError:
        return path
    return spellings.setdefault((status.st_dev, status.st_ino), path)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
