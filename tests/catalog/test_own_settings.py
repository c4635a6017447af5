"""What the config says of single models: found by name, in every launch, part of the cells; and projectors beside models."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from autospec.catalog.folders import projectors_beside
from autospec.catalog.scan import Catalog, scan
from autospec.errors import SettingsError, UnknownModelError
from autospec.settings import Settings, load_settings
from autospec.tuning.request import TuneRequest, prepare
from tests.catalog.making import write_gguf, write_mlx


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models in a folder that the config names, and nothing else on the machine."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    models = tmp_path / "models"
    models.mkdir()
    write_gguf(models / "Main-7B-Q4_K_M.gguf", seed=1)
    write_gguf(models / "Small-1B-Q8_0.gguf", seed=2)
    return tmp_path


def settings_of(place: Path, text: str, **overrides: object) -> Settings:
    """Settings whose config file has this text."""
    (place / "config.toml").write_text(f'model_dirs = ["{place / "models"}"]\n{text}', "utf-8")
    return load_settings(environ={"AUTOSPEC_HOME": str(place)}, overrides=overrides)


def look(place: Path, text: str, **overrides: object) -> tuple[Catalog, Settings]:
    """The catalogue of a config file with this text, and its settings."""
    settings = settings_of(place, text, **overrides)
    return scan(settings), settings


def args(place: Path, text: str, name: str = "main", **overrides: object) -> tuple[str, ...]:
    """The server arguments of a model."""
    catalog, settings = look(place, text, **overrides)
    return catalog.own.args(catalog.find(name), settings)


def request(place: Path, text: str, *extra: str) -> TuneRequest:
    """A tune of the first model."""
    return prepare(settings_of(place, text, study="quick"), "main", args=extra)


def test_own_arguments_follow_the_common_ones(place: Path):
    """The last of repeated flags counts, so the model's own do."""
    text = """
    server_args = ["-ngl", "99", "-c", "4096"]
    [models."main-7b"]
    server_args = ["-ngl", "20"]
    context_tokens = 8192
    mmproj = "eyes.gguf"
    lora = ["a.gguf", {path = "b.gguf", scale = 0.5}]
    """
    folder = str(place)
    assert args(place, text) == (
        *("-ngl", "99", "-ngl", "20", "-c", "8192", "--mmproj", f"{folder}/eyes.gguf"),
        *("--lora", f"{folder}/a.gguf", "--lora-scaled", f"{folder}/b.gguf:0.5"),
    )
    assert args(place, text, "small") == ("-ngl", "99", "-c", "4096")


@pytest.mark.parametrize("name", ["Main-7B-Q4_K_M", "main 7b", "main", "{models}/Main-7B-Q4_K_M.gguf"])
def test_a_section_is_found_by_every_name_of_the_model(place: Path, name: str):
    """By its name, a part of it, or its path."""
    text = f'[models."{name.format(models=place / "models")}"]\nserver_args = ["--jinja"]'
    assert args(place, text) == ("--jinja",)


def test_a_section_for_no_model_is_a_note(place: Path):
    """It changes nothing, and the others hold."""
    text = '[models."gone"]\nserver_args = ["-x"]\n[models."b"]\n[models."small"]\nserver_args = ["--jinja"]'
    catalog, settings = look(place, text)
    assert [note.split(" in the config")[0] for note in catalog.own.notes] == [
        '[models."gone"]',
        '[models."b"]',
    ]
    assert "No model matches gone" in catalog.own.notes[0]
    assert "could be any of 2 models" in catalog.own.notes[1]
    assert catalog.own.args(catalog.find("small"), settings) == ("--jinja",)


def test_two_sections_for_one_model_are_an_error(place: Path):
    """Which one holds would be a guess."""
    with pytest.raises(SettingsError, match="are for the same model"):
        look(place, '[models."main"]\n[models."main-7b"]')


def test_an_alias_finds_the_model(place: Path):
    """As its own name does."""
    catalog, _ = look(place, '[models."main"]\naliases = ["fast"]')
    assert catalog.find("fast").name == "Main-7B-Q4_K_M"
    with pytest.raises(UnknownModelError):
        look(place, "")[0].find("fast")


def test_an_alias_that_is_a_models_name_is_an_error(place: Path):
    """A client that asks for it would get either."""
    with pytest.raises(SettingsError, match="is the name of another model"):
        look(place, '[models."main"]\naliases = ["Small-1B-Q8_0"]')
    assert look(place, '[models."main"]\naliases = ["Main-7B-Q4_K_M"]')[0].own.notes == ()


def test_the_context_is_set_once(place: Path):
    """Two values in one section contradict each other."""
    with pytest.raises(SettingsError, match="sets the context twice"):
        look(place, '[models."main"]\ncontext_tokens = 1024\nserver_args = ["-c", "2048"]')


def test_a_tune_measures_with_them(place: Path):
    """They are the cell's settings, and the user's: nothing of measuring is among them."""
    text = '[models."main"]\nserver_args = ["--jinja"]\ncontext_tokens = 1024'
    tune = request(place, text, "-t", "4")
    assert tune.args == ("--jinja", "-c", "1024", "-t", "4")
    assert tune.model_args == ("--jinja", "-c", "1024")
    assert tune.settings().args == tune.args
    assert request(place, "").settings().args == ("-c", "2048")  # of measuring: the model has no more


def test_other_adapters_are_another_cell(place: Path):
    """By their path, by their contents, and by their scale; the catalogue's fingerprint stays that of the file."""
    lora = place / "a.gguf"
    seen = {}
    for what, seed, text in (
        ("none", 0, '[models."main"]'),
        ("one", 1, '[models."main"]\nlora = ["a.gguf"]'),
        ("again trained", 2, '[models."main"]\nlora = ["a.gguf"]'),
        ("scaled", 2, '[models."main"]\nlora = [{path = "a.gguf", scale = 0.5}]'),
    ):
        write_gguf(lora, keys={"general.type": "adapter"}, seed=seed)
        os.utime(lora, (seed, seed))  # a file of the same size and time would count as unchanged
        catalog, _ = look(place, text)
        assert catalog.own.notes == ()
        model = catalog.find("main")
        seen[what] = (model.ref.fingerprint, model.fingerprint)
    assert len({ref for ref, _ in seen.values()}) == 4
    assert len({fingerprint for _, fingerprint in seen.values()}) == 1


@pytest.mark.parametrize(
    ("file", "says"), [("gone.gguf", "gone.gguf"), ("models/Small-1B-Q8_0.gguf", "is not a LoRA adapter")]
)
def test_an_adapter_that_is_none_is_a_note(place: Path, file: str, says: str):
    """The launch fails with the server's own words; other models go on."""
    catalog, _ = look(place, f'[models."main"]\nlora = ["{file}"]')
    (note,) = catalog.own.notes
    assert says in note


def test_mlx_takes_one_adapter_as_it_is(place: Path):
    """mlx_lm.server has --adapter-path, no scale and no projector; its context is not set."""
    write_mlx(place / "models" / "Apple")
    text = '[models."Apple"]\nlora = ["style"]\ncontext_tokens = 512\nserver_args = ["--prompt-concurrency", "1"]'
    assert args(place, text, "Apple") == ("--prompt-concurrency", "1", "--adapter-path", f"{place}/style")
    for wrong in ('mmproj = "x.gguf"', 'lora = ["a", "b"]', 'lora = [{path = "a", scale = 2}]'):
        with pytest.raises(SettingsError, match=r"mlx_lm\.server does not have"):
            look(place, f'[models."Apple"]\n{wrong}')


# Projectors.

EYES = "mmproj-F16.gguf"


@pytest.mark.parametrize(
    ("model", "others", "projectors", "expected"),
    [
        ("gemma-3-4b-it-Q4_K_M", ["gemma-3-4b-it-Q8_0"], ["mmproj-model-f16"], ["mmproj-model-f16"]),
        ("Qwen3-VL-8B-UD-Q4_K_XL", [], ["mmproj-F16", "mmproj-BF16"], ["mmproj-BF16", "mmproj-F16"]),
        ("gemma-3-4b-it-Q4_K_M", ["other-Q8_0"], ["mmproj-model-f16"], []),
        (
            "gemma-3-4b-it-Q4_K_M",
            ["gemma-2-4b-it-Q4_K_M"],
            ["mmproj-F16", "gemma-3-4b-it.mmproj-f16"],
            ["gemma-3-4b-it.mmproj-f16"],
        ),
        ("V-500M-Q8_0", ["V-256M-Q8_0"], ["mmproj-V-500M-Q8_0", "mmproj-V-Q8_0"], ["mmproj-V-500M-Q8_0"]),
        ("V-500M-Instruct-Q8_0", ["W-Q8_0"], ["mmproj-V-500M"], ["mmproj-V-500M"]),
        ("V-500M-Q8_0", [], ["mmproj-W-F16"], []),
        ("V-IQ4_XS-00001-of-00002", [], ["V-mmproj-f32"], ["V-mmproj-f32"]),
    ],
)
def test_which_projector_belongs_to_a_model(
    model: str, others: list[str], projectors: list[str], expected: list[str]
):
    """By its name; without one, only where the folder has one model, in whatever quantizations."""
    paths = [Path(f"{name}.gguf") for name in (model, *others)]
    found = projectors_beside(paths[0], paths, [Path(f"{name}.gguf") for name in projectors])
    assert [path.stem for path in found] == expected


def test_the_only_projector_beside_a_model_is_offered(place: Path):
    """Unless the section or the arguments say something of projectors, or the setting is off."""
    folder = place / "models" / "vision"
    folder.mkdir()
    write_gguf(folder / "V-Q4_K_M.gguf", seed=3)
    write_gguf(folder / EYES, architecture="clip")

    def projector(text: str, **overrides: object) -> Path | None:
        catalog, settings = look(place, text, **overrides)
        assert catalog.own.projectors == {folder / "V-Q4_K_M.gguf": tuple(sorted(folder.glob("*mmproj*")))}
        model = catalog.find("V-Q4_K_M")
        assert "--mmproj" not in catalog.own.args(model, settings) or "other.gguf" in text  # not in the cell
        return catalog.own.projector(model, settings)

    assert projector("") == folder / EYES
    assert projector("mmproj_auto = false") is None
    assert projector('[models."V-Q4"]\nmmproj = ""') is None
    assert projector('[models."V-Q4"]\nmmproj = "other.gguf"') is None
    assert projector('server_args = ["--no-mmproj"]') is None
    write_gguf(folder / "mmproj-BF16.gguf", architecture="clip")
    assert projector("") is None


def test_ollamas_manifest_names_the_projector(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Its files have no names of their own."""
    import json

    store = place / "ollama"
    (store / "blobs").mkdir(parents=True)
    layers = []
    for kind, digit, architecture in (("model", "a", "llama"), ("projector", "b", "clip")):
        write_gguf(store / "blobs" / f"sha256-{digit * 64}", architecture=architecture, seed=7)
        layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digit * 64}"})
    tag = store / "manifests" / "registry.ollama.ai" / "library" / "eye" / "4b"
    tag.parent.mkdir(parents=True)
    tag.write_text(json.dumps({"layers": layers}), "utf-8")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    catalog, settings = look(place, "")
    assert catalog.own.projector(catalog.find("eye:4b"), settings) == store / "blobs" / f"sha256-{'b' * 64}"


def test_the_cache_does_not_keep_adapters(place: Path):
    """They are the config's, not the file's."""
    model = look(place, "")[0].find("main")
    assert type(model).from_json(dataclasses.replace(model, adapters="x").to_json()) == model
