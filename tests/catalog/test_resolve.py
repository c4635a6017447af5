"""What a user may type for a model: a path, a name, a part of a name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autospec.catalog.model import Head
from autospec.catalog.resolve import choose
from autospec.catalog.scan import Catalog
from autospec.errors import ModelChoiceError, ModelFileError, UnknownModelError
from tests.catalog.making import make_model, write_gguf, write_mlx

MODELS = [
    make_model("Qwen3-Coder-30B-A3B-Instruct-Q6_K"),
    make_model("Qwen3-0.6B-Q8_0"),
    make_model("Qwen3-0.6B-Q4_K_M"),
    make_model("Llama-3.2-1B-Instruct.Q8_0"),
    make_model("mlx-community/Qwen2.5-7B-4bit"),
    make_model("llama3.2:3b"),
]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("qwen3-coder-30b", "Qwen3-Coder-30B-A3B-Instruct-Q6_K"),
        ("Qwen3-Coder-30B-A3B-Instruct-Q6_K.gguf", "Qwen3-Coder-30B-A3B-Instruct-Q6_K"),
        ("QWEN3_CODER", "Qwen3-Coder-30B-A3B-Instruct-Q6_K"),
        ("qwen3 coder", "Qwen3-Coder-30B-A3B-Instruct-Q6_K"),
        ("qwen3coder", "Qwen3-Coder-30B-A3B-Instruct-Q6_K"),
        ("qwen3-0.6b-q8", "Qwen3-0.6B-Q8_0"),
        ("llama-3-2-1b", "Llama-3.2-1B-Instruct.Q8_0"),
        ("llama3.2:3b", "llama3.2:3b"),
        ("llama3.2", "llama3.2:3b"),
        ("qwen2.5", "mlx-community/Qwen2.5-7B-4bit"),
        ("mlx-community/qwen2.5-7b-4bit", "mlx-community/Qwen2.5-7B-4bit"),
    ],
)
def test_names_and_parts(typed: str, name: str) -> None:
    """Case, ``-``, ``_``, ``.`` and the suffix do not matter where one model answers."""
    assert choose(MODELS, typed).name == name


def test_ambiguous_lists_what_it_could_be() -> None:
    """Several answer: an error of usage that lists them."""
    with pytest.raises(ModelChoiceError) as caught:
        choose(MODELS, "qwen3-0.6b")
    assert caught.value.exit_code == 2
    assert "Qwen3-0.6B-Q8_0" in str(caught.value)
    assert "Qwen3-0.6B-Q4_K_M" in str(caught.value)
    assert "Coder" not in str(caught.value)


def test_a_long_list_is_cut() -> None:
    """A hundred matches are not all listed."""
    with pytest.raises(ModelChoiceError, match="and 88 more"):
        choose([make_model(f"m{i}") for i in range(100)], "m")


def test_exact_name_beats_a_part() -> None:
    """A name that is also a part of others means itself."""
    models = [make_model("qwen3"), make_model("qwen3-8b"), make_model("QWEN3-14b")]
    assert choose(models, "qwen3").name == "qwen3"
    assert choose(models, "Qwen3").name == "qwen3"


def test_none_names_the_nearest_and_the_command() -> None:
    """A typing error gets the nearest names and the command that lists all."""
    with pytest.raises(UnknownModelError, match="No model matches") as caught:
        choose(MODELS, "qwne3-0.6b-q8_0")
    assert caught.value.known == tuple(m.name for m in MODELS)
    assert "Qwen3-0.6B-Q8_0" in caught.value.message
    assert "autospec models" in caught.value.hint


def test_folders_are_no_part_of_a_name() -> None:
    """A word that only a folder on the way has, such as ``models``, is no name of everything below it."""
    with pytest.raises(ModelChoiceError, match="No model matches"):
        choose(MODELS, "models")


@pytest.mark.parametrize("typed", ["", "  ", "-", ".gguf"])
def test_an_empty_name_is_not_everything(typed: str) -> None:
    """Nothing typed is not a part of every name."""
    with pytest.raises(ModelChoiceError, match="empty"):
        choose(MODELS, typed)


def test_copies_of_a_file_count_as_one() -> None:
    """The same model in two places is no ambiguity."""
    copies = [make_model("a-copy", fingerprint="same"), make_model("a-other", fingerprint="same")]
    assert choose(copies, "a-") is copies[0]


def test_same_name_other_model_lists_paths() -> None:
    """Two models of one name can be told apart by path alone, so the paths are listed."""
    models = [make_model("m", fingerprint=f, path=Path(f"/{f}/m.gguf")) for f in "ab"]
    with pytest.raises(ModelChoiceError, match=r"/a/m\.gguf\n  /b/m\.gguf"):
        choose(models, "m")


def test_a_whole_model_goes_before_a_head() -> None:
    """A main model and its EAGLE-3 head share most of a name; the head is seldom meant."""
    models = [make_model("Qwen3-8B-eagle3", head=Head("eagle3")), make_model("Qwen3-8B-Q4_K_M")]
    assert choose(models, "qwen3-8b").name == "Qwen3-8B-Q4_K_M"
    assert choose(models, "qwen3-8b-eagle").name == "Qwen3-8B-eagle3"


class TestPaths:
    """`Catalog.find` with paths, in and outside of the catalogue."""

    @pytest.fixture
    def catalog(self, look: Callable[..., Catalog], models_dir: Path) -> Catalog:
        """Two models."""
        write_gguf(models_dir / "one.gguf", seed=1)
        write_gguf(models_dir / "two.gguf", seed=2)
        return look()

    def test_path_in_the_catalogue(self, catalog: Catalog, models_dir: Path) -> None:
        """It is the catalogue's own entry."""
        assert catalog.find(str(models_dir / "one.gguf")) is catalog.models[0]

    def test_path_outside(self, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that no place has is read, by absolute, relative and home path."""
        path = write_gguf(tmp_path / "mine.gguf", seed=3)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for typed in (str(path), "mine.gguf", "./mine.gguf", "~/mine.gguf"):
            found = catalog.find(typed)
            assert (found.name, found.path) == ("mine", path)

    def test_link_to_a_known_file(self, catalog: Catalog, models_dir: Path, tmp_path: Path) -> None:
        """Another path to a known file is the known model."""
        (tmp_path / "link.gguf").symlink_to(models_dir / "two.gguf")
        assert catalog.find(str(tmp_path / "link.gguf")) is catalog.models[1]

    def test_mlx_folder(self, catalog: Catalog, tmp_path: Path) -> None:
        """A folder with a configuration and weights is a model."""
        assert catalog.find(str(write_mlx(tmp_path / "Tiny-4bit"))).name == "Tiny-4bit"

    def test_folder_with_one_model(self, catalog: Catalog, tmp_path: Path) -> None:
        """A repository's folder with one file means that file."""
        (tmp_path / "repo").mkdir()
        write_gguf(tmp_path / "repo" / "t.gguf")
        assert catalog.find(str(tmp_path / "repo")).name == "t"

    def test_folder_with_several(self, catalog: Catalog, models_dir: Path) -> None:
        """One with several lists them."""
        with pytest.raises(ModelChoiceError, match="any of 2 models:\n  one\n  two"):
            catalog.find(str(models_dir))

    def test_folder_with_none(self, catalog: Catalog, tmp_path: Path) -> None:
        """One with none says so."""
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelChoiceError, match="no model in"):
            catalog.find(str(tmp_path / "empty"))

    def test_a_folder_here_called_like_a_model(
        self, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bare word is a name first, also where a folder of that name lies about."""
        (tmp_path / "one").mkdir()
        (tmp_path / "tw").mkdir()
        monkeypatch.chdir(tmp_path)
        assert catalog.find("one").name == "one"
        assert catalog.find("tw").name == "two"

    @pytest.mark.parametrize("typed", ["/nowhere/x.gguf", "./x", "~/x.gguf", "some/x.gguf", "~nobody/x.gguf"])
    def test_no_such_file(self, catalog: Catalog, typed: str) -> None:
        """What can only be a path says that there is no such file."""
        with pytest.raises(ModelChoiceError, match="There is no model file"):
            catalog.find(typed)

    def test_damaged_file(self, catalog: Catalog, tmp_path: Path) -> None:
        """A path to a damaged file is that file's error."""
        (tmp_path / "bad.gguf").write_bytes(b"GGUF")
        with pytest.raises(ModelFileError, match=r"bad\.gguf"):
            catalog.find(str(tmp_path / "bad.gguf"))

    def test_file_that_is_no_language_model(self, catalog: Catalog, tmp_path: Path) -> None:
        """An adapter or a projector says what it is."""
        path = write_gguf(tmp_path / "proj.gguf", architecture="clip")
        with pytest.raises(ModelChoiceError, match="is the image part of a model"):
            catalog.find(str(path))

    def test_copies_in_two_places(self, look: Callable[..., Catalog], models_dir: Path) -> None:
        """Two copies with one name are one choice."""
        (models_dir / "a").mkdir()
        (models_dir / "b").mkdir()
        shutil.copy(write_gguf(models_dir / "a" / "m.gguf"), models_dir / "b" / "m.gguf")
        assert look().find("m").path == models_dir / "a" / "m.gguf"
