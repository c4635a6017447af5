"""The cache file of the scan: damaged, of another version, written by two processes at once, or not writable."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from autospec.catalog.model import Head
from autospec.catalog.scan import MetadataCache, signature
from tests.catalog.making import make_model

MODEL = make_model("m", head=Head("eagle3", 4096, (1, 2, 3)), aliases=("x",))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Something to have metadata of."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"12345")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the cache is; the folder does not exist yet."""
    return tmp_path / "cache" / "models.json"


def filled(path: Path, file: Path) -> MetadataCache:
    """A cache that knows the model."""
    cache = MetadataCache(path)
    cache.put(file, signature([file]), MODEL)
    cache.save()
    return cache


def test_a_model_comes_back_whole(path: Path, file: Path) -> None:
    """Every field, with tuples, paths and inner values, survives the file."""
    filled(path, file)
    assert MetadataCache(path).get(file, signature([file])) == MODEL
    assert MetadataCache(path).get(file, [[5, 0]]) is None


def test_a_sentence_comes_back(path: Path, file: Path) -> None:
    """What is wrong with a file is kept as well."""
    cache = MetadataCache(path)
    cache.put(file, [], "It is damaged.")
    cache.save()
    assert MetadataCache(path).get(file, []) == "It is damaged."


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"7", b"null", b'{"stamp": [0, "0"], "entries": {}}', b'{"entries": 3}',
     b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_or_foreign_cache_is_rebuilt_silently(path: Path, file: Path, content: bytes) -> None:
    """Whatever stands in the file, it counts as empty and is replaced."""
    path.parent.mkdir()
    path.write_bytes(content)
    assert MetadataCache(path).get(file, signature([file])) is None
    filled(path, file)
    assert MetadataCache(path).get(file, signature([file])) == MODEL


def test_a_damaged_entry_is_read_again(path: Path, file: Path) -> None:
    """An entry that another version wrote in its own way is a miss, not a crash."""
    filled(path, file)
    document = json.loads(path.read_text())
    for change in ({"vocab": 7}, {"unknown": 1}, {"files": None}):
        broken = json.loads(json.dumps(document))
        broken["entries"][str(file)]["model"].update(change)
        path.write_text(json.dumps(broken))
        assert MetadataCache(path).get(file, signature([file])) is None
    document["entries"][str(file)] = "nonsense"
    path.write_text(json.dumps(document))
    assert MetadataCache(path).get(file, signature([file])) is None


def test_two_processes_keep_each_other_s_entries(path: Path, tmp_path: Path) -> None:
    """Both opened the cache when it was empty; both entries are there in the end."""
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    caches = [MetadataCache(path), MetadataCache(path)]
    for cache, file in zip(caches, files, strict=True):
        file.write_bytes(b"1")
        cache.put(file, signature([file]), dataclasses.replace(MODEL, name=file.stem))
    for cache in caches:
        cache.save()
    again = MetadataCache(path)
    assert [again.get(f, signature([f])) for f in files] == [
        dataclasses.replace(MODEL, name="a"),
        dataclasses.replace(MODEL, name="b"),
    ]


def test_a_reader_never_sees_half_a_file(path: Path, file: Path) -> None:
    """While others write again and again, what is read is whole."""
    filled(path, file)
    writers = [threading.Thread(target=lambda: [filled(path, file) for _ in range(30)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(w.is_alive() for w in writers):
        json.loads(path.read_text())
        assert MetadataCache(path).get(file, signature([file])) == MODEL
    for writer in writers:
        writer.join()
    assert [p.name for p in path.parent.iterdir()] == ["models.json"]


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path, file: Path) -> None:
    """A file where the folder should be: nothing is kept, and nothing fails."""
    (tmp_path / "cache").write_text("in the way")
    filled(tmp_path / "cache" / "models.json", file)
    assert (tmp_path / "cache").read_text() == "in the way"


def test_entries_of_removed_files_go(path: Path, file: Path, tmp_path: Path) -> None:
    """The file does not grow for ever."""
    filled(path, file)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"1")
    file.unlink()
    filled(path, other)
    assert list(json.loads(path.read_text())["entries"]) == [str(other)]
