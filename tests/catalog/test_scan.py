"""Finding models on a disk: layouts, damage, links, and the cache of what was read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autospec.catalog import gguf as gguf_file
from autospec.catalog import mlx as mlx_folder
from autospec.catalog import scan
from autospec.catalog.candidates import candidates
from autospec.catalog.folders import printable
from autospec.catalog.scan import Catalog
from autospec.errors import ModelChoiceError
from autospec.settings import load_settings
from tests.catalog.making import write_gguf, write_mlx

Look = Callable[..., Catalog]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file or folder whose metadata is read, as it is read."""
    seen: list[Path] = []
    for module, name in ((gguf_file, "read_gguf"), (mlx_folder, "read_mlx")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, real=real: (seen.append(path), real(path))[1])
    return seen


def names(catalog: Catalog) -> list[str]:
    """The names in the catalogue."""
    return [m.name for m in catalog.models]


class TestLayouts:
    """Who put the files there, and under which names they are found."""

    def test_folder_of_the_config(self, look: Look, models_dir: Path) -> None:
        """Files at any depth, by their stems, whatever the case of the suffix."""
        write_gguf(models_dir / "a.gguf", seed=1)
        (models_dir / "deep" / "er").mkdir(parents=True)
        write_gguf(models_dir / "deep" / "er" / "B.GGUF", seed=2)
        catalog = look()
        assert [(m.name, m.source) for m in catalog.models] == [("a", "folder"), ("B", "folder")]
        assert catalog.warnings == ()

    def test_a_folder_that_does_not_answer_hides_no_other(
        self, look: Look, models_dir: Path, home: Path, monkeypatch
    ) -> None:
        """A network share that is gone: a look at it may never end, and the search waited for it for ever."""
        write_gguf(models_dir / "a.gguf", seed=1)
        lost = home / ".lmstudio" / "models"
        lost.mkdir(parents=True)
        write_gguf(lost / "b.gguf", seed=2)
        answers, look_at = threading.Event(), scan._look_at
        monkeypatch.setattr(scan, "_ANSWERS_WITHIN_S", 0.2)
        monkeypatch.setattr(
            scan, "_look_at", lambda path: answers.wait(20) if path == lost else look_at(path)
        )
        catalog = look()
        monkeypatch.setenv("HOME", str(home))
        assert scan.model_files(load_settings(overrides={"model_dirs": [str(models_dir)]}))[0] == ("a",)
        answers.set()
        assert names(catalog) == ["a"]
        assert catalog.silent == (lost,)
        assert catalog.warnings == (f"{lost} does not answer: models in it are left out.",)
        assert names(look()) == ["a", "b"]

    def test_llama_cpp_cache(self, look: Look, home: Path) -> None:
        """llama.cpp's own cache is flat."""
        caches = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        (caches / "llama.cpp").mkdir(parents=True)
        write_gguf(caches / "llama.cpp" / "ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf")
        (model,) = look().models
        assert model.source == "llama.cpp cache"
        assert model.name == "ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M"

    def test_hugging_face_snapshots(self, look: Look, home: Path) -> None:
        """Snapshots are links to blobs; the link's name is the model's, and two revisions are one file."""
        repo = home / ".cache/huggingface/hub/models--org--Tiny-GGUF"
        (repo / "blobs").mkdir(parents=True)
        blob = write_gguf(repo / "blobs" / ("ab" * 32))
        for revision in ("1" * 40, "2" * 40):
            (repo / "snapshots" / revision).mkdir(parents=True)
            (repo / "snapshots" / revision / "Tiny-Q8_0.gguf").symlink_to(
                os.path.relpath(blob, repo / "snapshots" / revision)
            )
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("2" * 40)
        (model,) = look().models
        assert (model.name, model.source) == ("Tiny-Q8_0", "Hugging Face cache")
        assert model.path == repo / "snapshots" / ("2" * 40) / "Tiny-Q8_0.gguf"

    def test_hugging_face_split_in_a_subfolder(self, look: Look, home: Path) -> None:
        """Large models are split, in a folder per quantization, with blobs named by hash."""
        repo = home / ".cache/huggingface/hub/models--org--Big-GGUF"
        folder = repo / "snapshots" / ("1" * 40) / "Q4_K_M"
        folder.mkdir(parents=True)
        (repo / "blobs").mkdir()
        for i in (1, 2):
            keys = {"split.count": np.uint32(2)}
            blob = write_gguf(repo / "blobs" / (f"{i}" * 64), keys=keys, tensors={f"blk.{i}.x": np.ones(8)})
            (folder / f"Big-Q4_K_M-0000{i}-of-00002.gguf").symlink_to(blob)
        (model,) = look().models
        assert (model.name, len(model.files)) == ("Big-Q4_K_M", 2)
        assert model.size_bytes == sum(p.stat().st_size for p in (repo / "blobs").iterdir())

    def test_hugging_face_mlx_folder(self, look: Look, home: Path) -> None:
        """An MLX model in the hub cache is called like its repository, not like its revision."""
        repo = home / ".cache/huggingface/hub/models--mlx-community--Tiny-4bit"
        for revision in ("1" * 40, "2" * 40):
            write_mlx(repo / "snapshots" / revision)
        (model,) = look().models
        assert (model.name, model.format) == ("mlx-community/Tiny-4bit", "mlx")

    def test_llama_cache_in_the_hub_s_layout(self, look: Look, tmp_path: Path) -> None:
        """Newer llama.cpp builds lay LLAMA_CACHE out like the hub."""
        folder = tmp_path / "cache" / "models--org--T" / "snapshots" / ("1" * 40)
        folder.mkdir(parents=True)
        write_gguf(folder / "T-Q8_0.gguf")
        (model,) = look({"LLAMA_CACHE": str(tmp_path / "cache")}).models
        assert (model.name, model.source) == ("T-Q8_0", "llama.cpp cache")

    def test_lm_studio(self, look: Look, home: Path) -> None:
        """LM Studio keeps publisher/repository/file, and MLX folders beside."""
        studio = home / ".lmstudio" / "models"
        (studio / "lmstudio-community" / "T-GGUF").mkdir(parents=True)
        write_gguf(studio / "lmstudio-community" / "T-GGUF" / "T-Q4_K_M.gguf")
        write_mlx(studio / "mlx-community" / "T-4bit")
        assert [(m.name, m.format, m.source) for m in look().models] == [
            ("T-4bit", "mlx", "LM Studio"),
            ("T-Q4_K_M", "gguf", "LM Studio"),
        ]

    def test_mmproj_is_left_out(self, look: Look, models_dir: Path, reads: list[Path]) -> None:
        """Files called mmproj are not even opened; one under another name is told by its architecture."""
        write_gguf(models_dir / "model.gguf")
        write_gguf(models_dir / "mmproj-model-f16.gguf", architecture="clip")
        write_gguf(models_dir / "T.MMProj-F16.gguf", architecture="clip")
        write_gguf(models_dir / "vision-tower.gguf", architecture="clip")
        catalog = look()
        assert names(catalog) == ["model"]
        assert catalog.warnings == ()
        assert {p.name for p in reads} == {"model.gguf", "vision-tower.gguf"}

    def test_what_writes_no_text_is_left_out(self, look: Look, models_dir: Path) -> None:
        """Adapters, embedding models, vocabularies and imatrix files are no main models and no warnings."""
        write_gguf(models_dir / "lora.gguf", keys={"general.type": "adapter"})
        write_gguf(models_dir / "embed.gguf", architecture="nomic-bert")
        write_gguf(models_dir / "vocab.gguf", tensors={})
        write_gguf(models_dir / "imatrix.gguf", keys={"general.type": "imatrix"})
        assert look() == Catalog((), (), look().looked_in)

    def test_embedding_models_are_told_by_their_names_too(self, look: Look, models_dir: Path) -> None:
        """Some programs that convert Qwen3-Embedding do not write how it pools: it would be offered and tuned."""
        write_gguf(models_dir / "Qwen3-Embedding-0.6B-Q8_0.gguf")
        write_gguf(models_dir / "qwen3_reranker.gguf", seed=2)
        write_gguf(models_dir / "Pangu-Embedded-7B.gguf", seed=3)
        write_mlx(models_dir / "Qwen3-Embedding-4bit-DWQ")
        write_mlx(models_dir / "Chat-4bit")
        catalog = look()
        assert names(catalog) == ["Chat-4bit", "Pangu-Embedded-7B"]
        assert set(catalog.others.values()) == {"embedding"}
        for name in (*catalog.others, str(models_dir / "qwen3_reranker.gguf")):
            with pytest.raises(ModelChoiceError, match="makes embeddings or ranks texts, and writes none"):
                catalog.find(name)
        assert names(look()) == names(catalog)  # from the cache

    def test_split_is_listed_once(self, look: Look, models_dir: Path) -> None:
        """Three parts are one model."""
        for i in (1, 2, 3):
            keys = {"split.count": np.uint32(3)}
            write_gguf(
                models_dir / f"Big-0000{i}-of-00003.gguf", keys=keys, tensors={f"blk.{i}.x": np.ones(8)}
            )
        assert names(look()) == ["Big"]

    def test_config_folder_that_is_a_file(self, settings, look: Look, models_dir: Path, home: Path) -> None:
        """A file in the config's list is that model."""
        from dataclasses import replace

        from autospec.catalog.scan import scan

        path = write_gguf(models_dir / "one.gguf")
        write_gguf(models_dir / "two.gguf", seed=2)
        assert names(scan(replace(settings, model_dirs=(path,)), environ={}, home=home)) == ["one"]

    def test_beside_the_named_file(self, look: Look, tmp_path: Path) -> None:
        """A path outside of all places brings its neighbours, and no folders below."""
        folder = tmp_path / "elsewhere"
        (folder / "below").mkdir(parents=True)
        main = write_gguf(folder / "main.gguf")
        write_gguf(folder / "draft.gguf", seed=2)
        write_gguf(folder / "below" / "far.gguf", seed=3)
        assert names(look(beside=(str(main),))) == ["draft", "main"]
        assert names(look(beside=("main",))) == []


class TestOllama:
    """Manifests name the blob that holds the weights."""

    def _add(
        self, home: Path, where: str, seed: int = 0, write: dict[str, Any] | None = None, **changes: object
    ) -> Path:
        root = home / ".ollama" / "models"
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        path = write_gguf(root / "blobs" / "new", seed=seed, **(write or {}))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = path.rename(root / "blobs" / f"sha256-{digest}")
        manifest = root / "manifests" / where
        manifest.parent.mkdir(parents=True, exist_ok=True)
        layers = [
            {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64, "size": 1},
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": 9},
        ]
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers, **changes}))
        return blob

    def test_names_are_those_of_ollama_list(self, look: Look, home: Path) -> None:
        """The registry and ``library`` are left out, other namespaces and hosts stay."""
        blob = self._add(home, "registry.ollama.ai/library/llama3.2/3b", 1)
        self._add(home, "registry.ollama.ai/ana/tiny/latest", 2)
        self._add(home, "hf.co/bartowski/T-GGUF/Q4_K_M", 3)
        catalog = look()
        assert names(catalog) == ["ana/tiny:latest", "hf.co/bartowski/T-GGUF:Q4_K_M", "llama3.2:3b"]
        assert catalog.models[2].path == blob
        assert {m.source for m in catalog.models} == {"Ollama"}
        assert catalog.warnings == ()

    def test_two_tags_of_one_blob(self, look: Look, home: Path) -> None:
        """One file is one model, which answers to both tags."""
        self._add(home, "registry.ollama.ai/library/t/3b")
        self._add(home, "registry.ollama.ai/library/t/latest")
        catalog = look()
        assert names(catalog) == ["t:3b"]
        assert catalog.find("t:latest") == catalog.find("t:3b")

    def test_missing_blob_is_a_warning(self, look: Look, home: Path) -> None:
        """An interrupted pull is one line that names the model."""
        self._add(home, "registry.ollama.ai/library/t/3b").unlink()
        catalog = look()
        assert catalog.models == ()
        assert len(catalog.warnings) == 1
        assert "Ollama's t:3b is incomplete" in catalog.warnings[0]

    def test_cloud_models_are_passed_over(self, look: Look, home: Path) -> None:
        """A manifest without weights is no model and no warning."""
        self._add(home, "registry.ollama.ai/library/t/cloud", layers=[])
        assert (look().models, look().warnings) == ((), ())

    @pytest.mark.parametrize("content", ["", "[1]", '{"layers": 7}', "{", '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../etc/passwd"}]}'])  # fmt: skip
    def test_damaged_manifest_is_a_warning(self, look: Look, home: Path, content: str) -> None:
        """A manifest that makes no sense is one line, and leads nowhere."""
        self._add(home, "registry.ollama.ai/library/good/1b", 1)
        (home / ".ollama/models/manifests/registry.ollama.ai/library/bad").write_text(content)
        catalog = look()
        assert names(catalog) == ["good:1b"]
        assert len(catalog.warnings) == 1
        assert "not a readable Ollama manifest" in catalog.warnings[0]

    def test_a_draft_layer_is_a_draft_of_its_model(self, look: Look, home: Path) -> None:
        """`DRAFT` in a Modelfile adds a layer, here beside weights and a projector; safetensors drafts are no GGUF files."""
        root = home / ".ollama" / "models"
        (root / "blobs").mkdir(parents=True)
        layers = []
        for kind in ("model", "projector", "draft"):
            file = write_gguf(root / "blobs" / "new", layers=1 if kind == "draft" else 40, seed=len(kind))
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            file.rename(root / "blobs" / f"sha256-{digest}")
            layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"})
        manifest = root / "manifests" / "registry.ollama.ai" / "library" / "gem" / "4b"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"layers": layers}))
        catalog = look()
        assert names(catalog) == ["gem:4b", "gem:4b-draft"]
        assert catalog.warnings == ()
        main, draft = catalog.models
        (candidate,) = candidates(main, catalog.models, memory_bytes=0, context_tokens=512)
        assert (candidate.model, candidate.fits) == (draft, True)
        draft.path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
        assert (names(look()), look().warnings) == (["gem:4b"], ())
        draft.path.unlink()
        assert names(look()) == ["gem:4b"]
        assert ["gem:4b-draft is incomplete" in w for w in look().warnings] == [True]

    def test_its_own_vision_models_are_left_out(self, look: Look, home: Path) -> None:
        """Image and text in one blob: neither a model nor a draft, and who names it is told why."""
        self._add(home, "registry.ollama.ai/library/good/1b")
        names_of = ("token_embd.weight", "blk.0.attn_q.weight", "v.patch_embd.weight")
        tensors = {name: np.ones((32, 32), np.float16) for name in names_of}
        self._add(
            home,
            "registry.ollama.ai/library/gemma3/4b",
            1,
            write={"architecture": "gemma3", "tensors": tensors},
        )
        catalog = look()
        assert (names(catalog), catalog.warnings) == (["good:1b"], ())
        for _ in range(2):  # the second time from the cache
            with pytest.raises(
                ModelChoiceError, match=r"^gemma3:4b holds image and text in one file"
            ) as caught:
                look().find("gemma3:4b")
            assert "which only Ollama runs" in str(caught.value)

    def test_deep_manifest(self, look: Look, home: Path) -> None:
        """Brackets without end are a manifest that makes no sense."""
        self._add(home, "registry.ollama.ai/library/good/1b")
        (home / ".ollama/models/manifests/registry.ollama.ai/bad").write_text("[" * 200_000)
        catalog = look()
        assert names(catalog) == ["good:1b"]
        assert len(catalog.warnings) == 1


class TestDamage:
    """A damaged or truncated file is one warning line and the rest is found."""

    @pytest.mark.parametrize("content", [b"", b"GGUF", os.urandom(3000), b"\0" * 5000])
    def test_damaged_file(self, look: Look, models_dir: Path, content: bytes) -> None:
        """Empty, cut off, noise, zeros."""
        write_gguf(models_dir / "good.gguf")
        (models_dir / "bad.gguf").write_bytes(content)
        catalog = look()
        assert names(catalog) == ["good"]
        assert len(catalog.warnings) == 1
        assert str(models_dir / "bad.gguf") in catalog.warnings[0]
        assert "\n" not in catalog.warnings[0]

    def test_truncated_file(self, look: Look, models_dir: Path) -> None:
        """A download that broke off in the weights."""
        write_gguf(models_dir / "bad.gguf", data=False)
        assert [("truncated" in w, w.count("\n")) for w in look().warnings] == [(True, 0)]

    def test_missing_parts(self, look: Look, models_dir: Path) -> None:
        """A split model without its first part, or a later one, is one line each."""
        for i in (2, 3):
            write_gguf(models_dir / f"A-0000{i}-of-00003.gguf")
        write_gguf(models_dir / "B-00001-of-00002.gguf")
        catalog = look()
        assert catalog.models == ()
        assert [w.count("missing") > 0 for w in catalog.warnings] == [True, True]

    def test_dangling_link(self, look: Look, models_dir: Path) -> None:
        """A link to a blob that was cleaned away."""
        (models_dir / "gone.gguf").symlink_to(models_dir / "nowhere")
        assert look().warnings == (f"{models_dir / 'gone.gguf'} is a link to a missing file.",)

    def test_pipe_and_folder_called_gguf(self, look: Look, models_dir: Path) -> None:
        """What is no regular file is not opened: a pipe would wait for ever."""
        os.mkfifo(models_dir / "pipe.gguf")
        (models_dir / "folder.gguf").mkdir()
        write_gguf(models_dir / "folder.gguf" / "inner.gguf")
        assert names(look()) == ["inner"]

    def test_folder_that_cannot_be_read(
        self, look: Look, models_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder that the system refuses is one line (stood in for: the tests may run as root)."""
        secret = models_dir / "secret"
        secret.mkdir()
        write_gguf(models_dir / "good.gguf")
        real = os.scandir

        def refuse(path: Path) -> object:
            if Path(path) == secret:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", refuse)
        catalog = look()
        assert names(catalog) == ["good"]
        assert catalog.warnings == (f"{secret} cannot be read: Permission denied.",)

    def test_refused_file_is_tried_again(
        self, look: Look, models_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Permissions can change without size or mtime, so a refusal is not remembered."""
        path = write_gguf(models_dir / "m.gguf")
        real = Path.open

        def refuse(self: Path, *args: object, **kwargs: object) -> object:
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            assert look().warnings == (f"{path} cannot be read: Permission denied.",)
        assert names(look()) == ["m"]

    def test_config_folder_that_is_not_there(self, look: Look, models_dir: Path) -> None:
        """A folder that the user named is missed; the caches of programs are not."""
        models_dir.rmdir()
        assert look().warnings == (f"{models_dir}, a folder of model_dirs, does not exist.",)

    def test_link_loops_end(self, look: Look, models_dir: Path) -> None:
        """Links to folders are followed, each folder once."""
        (models_dir / "a").mkdir()
        (models_dir / "a" / "up").symlink_to(models_dir)
        (models_dir / "a" / "self").symlink_to(models_dir / "a")
        (models_dir / "x").symlink_to(models_dir / "y")
        (models_dir / "y").symlink_to(models_dir / "x")
        write_gguf(models_dir / "a" / "m.gguf")
        catalog = look()
        assert names(catalog) == ["m"]
        assert catalog.warnings == ()

    def test_linked_folder_is_followed(self, look: Look, models_dir: Path, tmp_path: Path) -> None:
        """Models on another disk are often behind a link."""
        (tmp_path / "disk").mkdir()
        write_gguf(tmp_path / "disk" / "m.gguf")
        (models_dir / "linked").symlink_to(tmp_path / "disk")
        assert names(look()) == ["m"]

    def test_one_file_behind_two_links_is_one_model(self, look: Look, models_dir: Path) -> None:
        """The same file under two names is listed once and answers to both."""
        write_gguf(models_dir / "a.gguf")
        (models_dir / "b.gguf").symlink_to(models_dir / "a.gguf")
        catalog = look()
        assert names(catalog) == ["a"]
        assert catalog.find("b") == catalog.models[0]

    def test_one_file_in_two_spellings_is_one_model(
        self, look: Look, models_dir: Path, tmp_path: Path
    ) -> None:
        """As ~/models and ~/Models on a Mac. Linux has them as two names of one file."""
        write_gguf(models_dir / "a.gguf")
        other = tmp_path / "Models"
        other.mkdir()
        os.link(models_dir / "a.gguf", other / "a.gguf")
        catalog = look(beside=[str(other / "a.gguf")])
        assert names(catalog) == ["a"]
        assert catalog.find(str(other / "a.gguf")) == catalog.models[0]
        assert look().find(str(other / "a.gguf")) == catalog.models[0]

    @pytest.mark.parametrize(
        "numbers", ["00001-of-00000", "00000-of-00000", "00000-of-00002", "00003-of-00002"]
    )
    def test_part_numbers_that_cannot_be(self, look: Look, models_dir: Path, numbers: str) -> None:
        """Part 1 of 0, 0 of 2 and 3 of 2 are no split: noise is one warning, a whole file is a model."""
        write_gguf(models_dir / "good.gguf")
        (models_dir / f"x-{numbers}.gguf").write_bytes(b"any bytes")
        catalog = look()
        assert names(catalog) == ["good"]
        assert catalog.warnings == (
            f"{models_dir / f'x-{numbers}.gguf'} is not a GGUF file. Download it again.",
        )
        write_gguf(models_dir / f"x-{numbers}.gguf", seed=7)
        assert names(look()) == ["good", f"x-{numbers}"]

    @pytest.mark.parametrize(
        "error", [IndexError("x"), RecursionError(), MemoryError(), UnicodeError("two\nlines")]
    )
    def test_what_the_reader_does_not_foresee(
        self, look: Look, models_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        """Any exception of a reader is one warning for that file, and the rest is found."""
        bad = write_gguf(models_dir / "bad.gguf", seed=1)
        write_gguf(models_dir / "good.gguf", seed=2)
        real = gguf_file.read_gguf

        def read(path: Path) -> object:
            if path == bad:
                raise error
            return real(path)

        monkeypatch.setattr(gguf_file, "read_gguf", read)
        catalog = look()
        assert names(catalog) == ["good"]
        assert len(catalog.warnings) == 1
        assert f"{bad} cannot be read: {type(error).__name__}: " in catalog.warnings[0]
        assert "\n" not in catalog.warnings[0]

    def test_a_search_that_breaks_off_keeps_what_it_found(
        self, look: Look, models_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unexpected error between two folders is one warning."""
        write_gguf(models_dir / "a.gguf")
        (models_dir / "b").mkdir()
        real = Path.stat

        def refuse(self: Path, **kwargs: bool) -> object:
            if self == models_dir / "b":
                raise ValueError("odd")
            return real(self, **kwargs)

        monkeypatch.setattr(Path, "stat", refuse)
        catalog = look()
        assert names(catalog) == ["a"]
        assert catalog.warnings == (f"{models_dir} could not be searched to its end: ValueError: odd.",)

    def test_target_layers_that_are_no_numbers(self, look: Look, models_dir: Path) -> None:
        """Infinite and negative layers of a draft head count as missing."""
        layers = [float("inf"), float("nan"), -1.0, 2.0]
        write_gguf(models_dir / "h.gguf", architecture="eagle3", keys={"eagle3.target_layers": layers})
        (model,) = look().models
        assert model.head is not None
        assert model.head.target_layers == (2,)

    def test_pipes_in_an_mlx_folder(self, look: Look, models_dir: Path) -> None:
        """A pipe where a file is read would be waited for without end."""
        for i, name in enumerate(("config.json", "tokenizer.json", "model.safetensors")):
            (write_mlx(models_dir / str(i)) / name).unlink()
            os.mkfifo(models_dir / str(i) / name)
        catalog = look()
        assert catalog.models == ()
        assert [w.split(" ")[0] for w in catalog.warnings] == [
            str(models_dir / "0" / "config.json"),
            str(models_dir / "1" / "tokenizer.json"),
            str(models_dir / "2"),
        ]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses names that are no UTF-8")
class TestNamesThatAreNoUtf8:
    """Every name and path of the catalogue can be JSON in UTF-8, a text in SQLite, and printed."""

    @pytest.mark.parametrize("kind", ["file", "parts", "folder", "mlx"])
    def test_the_model_is_listed_and_can_be_opened(
        self, look: Look, models_dir: Path, tmp_path: Path, kind: str
    ) -> None:
        """Under an escaped name, behind a link with a plain path."""
        write_gguf(models_dir / "good.gguf", seed=3)
        odd = models_dir / os.fsdecode(b"mod\xe9le")
        if kind == "mlx":
            write_mlx(odd)
        elif kind == "folder":
            odd.mkdir()
            write_gguf(odd / "mod.gguf")
        elif kind == "parts":
            for i in (1, 2):
                part = odd.with_name(f"{odd.name}-0000{i}-of-00002.gguf")
                write_gguf(part, keys={"split.count": np.uint32(2)}, seed=i)
        else:
            write_gguf(odd.with_name(f"{odd.name}.gguf"))
        catalog = look()
        name = "mod" if kind == "folder" else r"mod\xe9le"
        assert names(catalog) == ["good", name]
        assert catalog.warnings == ()
        model = catalog.models[1]
        text = json.dumps(model.to_json(), ensure_ascii=False)
        assert json.loads(text.encode())["name"] == name
        with sqlite3.connect(":memory:") as database:
            row = database.execute("SELECT ?, ?", (model.ref.name, model.ref.path)).fetchone()
        assert row == (model.name, str(model.path))
        assert model.path.is_relative_to(tmp_path / "autospec")
        assert all(file.stat().st_size for file in model.files)
        assert catalog.find(name) == catalog.find(str(model.path)) == model
        assert catalog.find(next(str(p) for p in models_dir.iterdir() if "good" not in p.name)) == model
        assert look().models == catalog.models

    def test_a_path_outside_of_the_catalogue(self, look: Look, tmp_path: Path) -> None:
        """A typed path is linked too."""
        odd = write_gguf(tmp_path / os.fsdecode(b"\xff.gguf"))
        assert str(look().find(str(odd)).path).encode()

    def test_a_warning_is_escaped(self, look: Look, models_dir: Path) -> None:
        """A damaged file with such a name is told by the escaped one."""
        (models_dir / os.fsdecode(b"\xe9.gguf")).write_bytes(b"noise")
        (warning,) = look().warnings
        assert warning.startswith(rf"{models_dir}/\xe9.gguf is not a GGUF file".encode().decode())

    def test_without_a_place_for_links(self, look: Look, models_dir: Path, tmp_path: Path) -> None:
        """The model is left out with the reason, the others stay."""
        write_gguf(models_dir / os.fsdecode(b"\xe9.gguf"))
        write_gguf(models_dir / "good.gguf", seed=2)
        (tmp_path / "autospec").mkdir()
        (tmp_path / "autospec" / "cache").mkdir()
        (tmp_path / "autospec" / "cache" / "links").write_text("in the way")
        catalog = look()
        assert names(catalog) == ["good"]
        assert len(catalog.warnings) == 1
        assert "its path is not UTF-8" in catalog.warnings[0]
        assert "Rename" in catalog.warnings[0]

    @pytest.mark.parametrize(
        ("text", "shown"), [("a/é", "a/é"), (os.fsdecode(b"a\xe9"), r"a\xe9"), ("\ud800b", r"\ud800b")]
    )
    def test_printable(self, text: str, shown: str) -> None:
        """Bytes of names, and halves of pairs that came from JSON."""
        assert printable(text) == shown


class TestMetadataIsReadOnce:
    """The cache is keyed by path, size and mtime."""

    def test_a_thousand_files_are_read_once(self, look: Look, models_dir: Path, reads: list[Path]) -> None:
        """The second listing of a thousand files opens none of them and says the same."""
        first = write_gguf(models_dir / "m0000.gguf", layers=1, tokens=["a", "b"], width=8)
        for i in range(1, 1000):
            shutil.copy(first, models_dir / f"m{i:04d}.gguf")
        one = look()
        assert (len(one.models), len(reads)) == (1000, 1000)
        reads.clear()
        assert look() == one
        assert reads == []

    def test_a_known_catalogue_needs_neither_gguf_nor_numpy(
        self, look: Look, models_dir: Path, home: Path, settings
    ) -> None:
        """What comes from the cache comes at once: nothing heavy is imported for it."""
        write_gguf(models_dir / "m.gguf")
        look()
        program = (
            "import sys; from pathlib import Path; from autospec.catalog import candidates, scan;"
            "from autospec.settings import load_settings;"
            "found = scan.scan(load_settings(), home=Path(sys.argv[1]));"
            "print([m.name for m in found.models], sorted({'gguf', 'numpy', 'rich'} & set(sys.modules)))"
        )
        environ = {
            "PATH": os.environ["PATH"],
            "AUTOSPEC_HOME": str(settings.home),
            "AUTOSPEC_MODEL_DIRS": str(models_dir),
        }
        done = subprocess.run(
            [sys.executable, "-c", program, str(home)],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "['m'] []\n"

    def test_touch_reads_again(self, look: Look, models_dir: Path, reads: list[Path]) -> None:
        """A new mtime means reading again, and only that file."""
        path = write_gguf(models_dir / "a.gguf", seed=1)
        write_gguf(models_dir / "b.gguf", seed=2)
        look()
        reads.clear()
        os.utime(path, ns=(1, 1))
        assert names(look()) == ["a", "b"]
        assert reads == [path]

    def test_a_replaced_file_shows_its_new_self(self, look: Look, models_dir: Path) -> None:
        """Another model under the same name is another model."""
        write_gguf(models_dir / "a.gguf", layers=1)
        assert look().models[0].layers == 1
        write_gguf(models_dir / "a.gguf", layers=3)
        assert look().models[0].layers == 3

    def test_damage_is_remembered(self, look: Look, models_dir: Path, reads: list[Path]) -> None:
        """A damaged file warns again without being read again, until it changes."""
        path = models_dir / "bad.gguf"
        path.write_bytes(b"GGUF")
        first = look().warnings
        reads.clear()
        assert look().warnings == first
        assert reads == []
        write_gguf(path)
        assert (names(look()), look().warnings) == (["bad"], ())

    def test_an_arriving_part_completes_a_split_model(self, look: Look, models_dir: Path) -> None:
        """The missing part's arrival changes the signature, though the first part is as it was."""
        paths = [models_dir / f"A-0000{i}-of-00002.gguf" for i in (1, 2)]
        for i, path in enumerate(paths):
            write_gguf(path, keys={"split.count": np.uint32(2)}, tensors={f"blk.{i}.x": np.ones(8)})
        later = paths[1].rename(models_dir / "later")
        assert look().models == ()
        later.rename(paths[1])
        assert names(look()) == ["A"]

    def test_mlx_folders_too(self, look: Look, models_dir: Path, reads: list[Path]) -> None:
        """A folder is read again when one of its files changes."""
        folder = write_mlx(models_dir / "t")
        look()
        reads.clear()
        look()
        assert reads == []
        write_mlx(folder, config={"max_position_embeddings": 4096})
        assert look().models[0].context_length == 4096
        assert reads == [folder]

    def test_a_moved_link_finds_the_cached_file_under_its_new_name(
        self, look: Look, models_dir: Path, tmp_path: Path, reads: list[Path]
    ) -> None:
        """The cache is by real path; names are those of this time."""
        (tmp_path / "blobs").mkdir()
        blob = write_gguf(tmp_path / "blobs" / "f00")
        (models_dir / "old.gguf").symlink_to(blob)
        assert names(look()) == ["old"]
        reads.clear()
        (models_dir / "old.gguf").rename(models_dir / "new.gguf")
        (model,) = look().models
        assert (model.name, model.path, model.files) == (
            "new",
            models_dir / "new.gguf",
            (models_dir / "new.gguf",),
        )
        assert reads == []
