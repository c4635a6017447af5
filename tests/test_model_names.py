"""One name finds the same model in every command and in the proxy, or is refused in the same words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autospec.catalog.scan import Catalog
from autospec.drafting import OFF
from autospec.errors import ModelChoiceError, NothingKnownError, UnknownModelError
from autospec.proxy.api import find_offered, running_model
from autospec.report.selection import Question, select
from autospec.serving.dispatch import Offered
from autospec.serving.model_registry import Engine, ModelRegistry
from tests.catalog.making import make_model
from tests.report.samples import HERE, recommendation, stored
from tests.serving.scene import FakeBackend

MODELS = tuple(
    make_model(name, fingerprint=name)
    for name in (
        "Llama-3.2-1B-Instruct.Q8_0",
        "llama3.2:3b",
        "mlx-community/Qwen2.5-7B-4bit",
        "Qwen3-0.6B",
        "Qwen3-8B-Q4_K_M",
        "Qwen3-8B-Q8_0",
    )
)


def tuned(name: str) -> str:
    """The model that `tune --model` takes."""
    return Catalog(MODELS).find(name).name


def recommended(name: str) -> str:
    """The model that `recommend`, `explain` and ``/autospec/v1/recommendations`` speak of."""
    known = [stored(recommendation(model=m.name, model_path="")) for m in MODELS]
    (found,) = select(known, HERE, Question(model=name)).recommendations
    return found.model


def lent(name: str) -> str:
    """The model that a request to the proxy gets."""
    backend = FakeBackend()
    return ModelRegistry(MODELS, {"gguf": Engine(backend, backend.capabilities())}).find(name).name


def shown(name: str) -> str:
    """The model that ``GET /v1/models/NAME`` shows."""
    found = find_offered(OFFERED, name)
    if found is None:
        raise UnknownModelError("The endpoint says 404.")
    return found.name


OFFERED = [Offered(m.name, m.aliases, "embedded", fingerprint=m.fingerprint) for m in MODELS]
PATHS = [tuned, recommended, lent, shown]


@pytest.mark.parametrize("find", PATHS)
@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Qwen3-0.6B", "Qwen3-0.6B"),
        ("Qwen3-0.6B.gguf", "Qwen3-0.6B"),
        ("qwen3-0.6b", "Qwen3-0.6B"),
        ("qwen3:0.6b", "Qwen3-0.6B"),
        ("qwen3_0_6b", "Qwen3-0.6B"),
        ("qwen306b", "Qwen3-0.6B"),
        ("0.6", "Qwen3-0.6B"),
        ("qwen3 8b q8", "Qwen3-8B-Q8_0"),
        ("llama-3-2-1b", "Llama-3.2-1B-Instruct.Q8_0"),
        ("llama3.2", "llama3.2:3b"),
        ("llama3.2-3b", "llama3.2:3b"),
        ("mlx-community/qwen2.5-7b-4bit", "mlx-community/Qwen2.5-7B-4bit"),
        ("qwen2.5", "mlx-community/Qwen2.5-7B-4bit"),
    ],
)
def test_a_name_finds_the_same_model_everywhere(find: Callable[[str], str], typed: str, name: str):
    """Whatever its case and separators, and as a part of a name."""
    assert find(typed) == name


@pytest.mark.parametrize("find", PATHS)
def test_an_ambiguous_name_is_refused_in_the_same_words(find: Callable[[str], str]):
    """Which models it could be, and what to do."""
    with pytest.raises(ModelChoiceError) as caught:
        find("qwen3-8b")
    assert caught.value.message == ("qwen3-8b could be any of 2 models:\n  Qwen3-8B-Q4_K_M\n  Qwen3-8B-Q8_0")
    assert caught.value.hint == "Give more of the name, or the path."


@pytest.mark.parametrize("find", PATHS)
@pytest.mark.parametrize("typed", ["qwen4", "-", "."])
def test_a_name_that_no_model_has(find: Callable[[str], str], typed: str, tmp_path, monkeypatch):
    """Also one that consists of separators: it is not a part of every name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ModelChoiceError, NothingKnownError)):
        find(typed)


def test_the_default_model_is_found_as_a_request_for_it_is():
    """By a part of its name; one that could be several is none, and then what runs is looked at."""
    running = [Offered(o.name, (), "embedded", (OFF,), fingerprint=o.fingerprint) for o in OFFERED]
    assert running_model(running, "qwen306b") == "Qwen3-0.6B"
    assert running_model(running, "qwen3-8b") == running[0].name
    assert running_model(OFFERED, "qwen306b") is None


def test_copies_of_one_file_are_no_ambiguity():
    """As for a request."""
    copies = [Offered(name, (), "embedded", fingerprint="same") for name in ("a-copy", "a-other")]
    assert find_offered(copies, "a-") is copies[0]
