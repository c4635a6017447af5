"""The models that clients may ask for, and the backend that serves each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autospec.catalog.model import Head
from autospec.catalog.resolve import OwnSettings
from autospec.errors import BackendMissingError, UnknownModelError, UsageError
from autospec.proxy.errors import problem_of
from autospec.serving.model_registry import Engine, ModelRegistry, engines_of
from autospec.settings import ModelSettings, load_settings
from tests.serving.scene import ALPHA, BETA, FakeBackend, FakeMlx, model

BACKEND, MLX = FakeBackend(), FakeMlx()
ENGINE = Engine(BACKEND, BACKEND.capabilities())
NO_MLX = {"mlx": "MLX models are not served: pip install mlx-lm"}


def test_draft_heads_are_not_offered():
    """They cannot answer; small whole models can, whether or not they also serve as drafts."""
    head = dataclasses.replace(model("alpha-eagle"), head=Head("eagle3"))
    registry = ModelRegistry((ALPHA, head, BETA), {"gguf": ENGINE})
    assert registry.models == (ALPHA, BETA)
    assert registry.catalog == (ALPHA, head, BETA)
    assert not registry.has(head.name)


def test_a_format_without_a_backend_is_not_offered_and_told():
    """But only to those who have such models."""
    folder = dataclasses.replace(model("gamma-mlx"), format="mlx")
    assert ModelRegistry((ALPHA,), {"gguf": ENGINE}, NO_MLX).refused == ()
    registry = ModelRegistry((ALPHA, folder), {"gguf": ENGINE}, NO_MLX)
    assert registry.models == (ALPHA,)
    assert registry.refused == (NO_MLX["mlx"],)


def test_of_two_files_with_one_name_the_first_is_offered():
    """A name means one file."""
    other = dataclasses.replace(ALPHA, path=Path("/other/alpha-1b.gguf"), fingerprint="other")
    registry = ModelRegistry((ALPHA, other), {"gguf": ENGINE})
    assert registry.models == (ALPHA,)
    assert registry.find("alpha-1b") is registry.named("alpha-1b") is ALPHA


def test_an_embedding_model_is_told_from_an_unknown_one():
    """A client that wants embeddings learnt only that there is no such model, and was shown those that write."""
    others = {"nomic-embed-text-v1.5.Q8_0": "embedding", "lora": "adapter"}
    registry = ModelRegistry((ALPHA,), {"gguf": ENGINE}, others=others)
    for offered in (registry, registry.with_engines({"mlx": Engine(MLX, MLX.capabilities())})):
        with pytest.raises(UnknownModelError, match=r"nomic-embed-text-v1.5.Q8_0 makes embeddings") as told:
            offered.find("Nomic-Embed-Text")
        problem = problem_of(told.value)
        assert (problem.status, problem.code) == (404, "model_not_found")
        assert "--embeddings" in problem.message
        assert "alpha" not in problem.message
        with pytest.raises(UnknownModelError, match="No model matches lora"):
            offered.find("lora")


def test_engines():
    """The user's choice serves GGUF files and MLX's own backend its folders."""
    asked = []

    def backend_for(name, _settings):
        asked.append(name)
        return MLX if name == "mlx" else BACKEND

    for backend, expected in (("", [None, "mlx"]), ("embedded", ["embedded", "mlx"]), ("mlx", [None, "mlx"])):
        asked.clear()
        engines, refused = engines_of(load_settings(overrides={"backend": backend}), backend_for)
        assert asked == expected
        assert (engines["gguf"].backend, engines["mlx"].backend, refused) == (BACKEND, MLX, {})
        assert (engines["gguf"].per_request, engines["mlx"].per_request) == (False, True)


def test_what_is_not_installed():
    """A sentence where nobody asked for it, an error where somebody did."""

    def backend_for(name, _settings):
        if name == "mlx":
            raise BackendMissingError("mlx-lm is not installed.", "pip install mlx-lm")
        if name == "nonsense":
            raise UsageError("There is no backend nonsense.")
        return BACKEND

    engines, refused = engines_of(load_settings(), backend_for)
    assert list(engines) == ["gguf"]
    assert refused == {"mlx": "MLX models are not served: mlx-lm is not installed. pip install mlx-lm"}
    with pytest.raises(BackendMissingError):
        engines_of(load_settings(overrides={"backend": "mlx"}), backend_for)
    with pytest.raises(UsageError, match="nonsense"):
        engines_of(load_settings(overrides={"backend": "nonsense"}), backend_for)


def test_models_in_a_folder_that_does_not_answer_stay():
    """With their sections of the config; models that are gone from a folder that answers do not stay."""
    section = ModelSettings(name="beta", server_args=("-c", "512"))
    before = ModelRegistry(
        (ALPHA, BETA),
        {"gguf": ENGINE},
        own=OwnSettings({BETA.fingerprint: section, ALPHA.fingerprint: section}),
    )
    now = ModelRegistry((), {"gguf": ENGINE}, silent=[BETA.path.parent])
    alone = dataclasses.replace(ALPHA, path=Path("/elsewhere/alpha.gguf"))
    assert [m.name for m in now.keeping(before).models] == [ALPHA.name, BETA.name]
    assert now.keeping(before).own.of(BETA) == section
    moved = ModelRegistry((alone, BETA), {"gguf": ENGINE})
    assert [m.name for m in now.keeping(moved).models] == [BETA.name]
    assert ModelRegistry((), {"gguf": ENGINE}).keeping(before).models == ()
