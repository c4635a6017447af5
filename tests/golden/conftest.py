"""A home with models, a llama-server that answers at once, and the database that 31c5bcf wrote."""

from __future__ import annotations

import gzip
import json
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from autospec.cli import cli
from tests.catalog.making import write_gguf, write_mlx
from tests.golden.golden import DATA, normalized

RECORD = "m2-ultra-2025-12-13"
OLD = DATA / "31c5bcf"
ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "backends" / "fake_server.py"
# No llama-server of the developer's; macOS keeps sysctl in /usr/sbin.
SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
# Where models could be found that are not the test's.
_ELSEWHERE = (
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE"),
    *("HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS"),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where one test works.

    Attributes:
        folder: Everything below it is the test's.
        home: AUTOSPEC_HOME.
        models: A folder with `main`, `draft`, `foreign` (another vocabulary) and the MLX folder `apple`.
        server: A program in place of llama-server.
    """

    folder: Path
    home: Path
    models: Path
    server: Path

    @property
    def database(self) -> Path:
        """The database's file."""
        return self.home / "state" / "autospec.db"

    @property
    def names(self) -> dict[str, str]:
        """What stands for the folders in a golden copy."""
        return {
            str(self.home): "<home>",
            str(self.models): "<models>",
            str(self.server): "<llama-server>",
            str(self.server.parent): "<folder of llama-server>",
            str(self.folder): "<tmp>",
        }

    def document(self, result: Result) -> Any:
        """The document on stdout, normalized."""
        assert result.exit_code == 0, (result.stderr, result.exception)
        return normalized(json.loads(result.stdout), self.names)


def run(*args: str) -> Result:
    """One call of the command line."""
    return CliRunner().invoke(cli, args)


def restore(database: Path) -> None:
    """Put the database that 31c5bcf wrote there."""
    database.parent.mkdir(parents=True)
    database.write_bytes(gzip.decompress((OLD / "autospec.db.gz").read_bytes()))


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, written once."""
    folder = tmp_path_factory.mktemp("models")
    write_gguf(folder / "main.gguf", layers=8, width=64)
    write_gguf(folder / "main-draft.gguf", layers=1, width=32)
    write_gguf(folder / "foreign.gguf", tokens=[f"other{i}" for i in range(200)], tensors=None)
    write_mlx(folder / "apple")
    return folder


@pytest.fixture(scope="session")
def server_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that answers as llama-server does, at once."""
    program = tmp_path_factory.mktemp("bin") / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{STAND_IN}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def environment(place: Place) -> dict[str, str]:
    """The environment for a program of its own; none of the developer's variables is in it."""
    return {
        "AUTOSPEC_HOME": str(place.home),
        "AUTOSPEC_MODEL_DIRS": str(place.models),
        "AUTOSPEC_LLAMA_SERVER": str(place.server),
        "AUTOSPEC_TEST_LOCK_DIR": str(place.folder),
        "HOME": str(place.folder / "user"),
        "PATH": SYSTEM_PATH,
        "PYTHONPATH": str(ROOT),
    }


def use(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Let what runs in this process work there, and find no models elsewhere."""
    for name in _ELSEWHERE:
        patch.delenv(name, raising=False)
    for name, value in environment(place).items():
        patch.setenv(name, value)


@pytest.fixture
def place(tmp_path: Path, model_files: Path, server_program: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty home that knows the models and the program."""
    here = Place(tmp_path, tmp_path / "home", model_files, server_program)
    use(here, monkeypatch)
    return here


@pytest.fixture(scope="session")
def this_machine(
    tmp_path_factory: pytest.TempPathFactory, model_files: Path, server_program: Path
) -> dict[str, Any]:
    """The machine as autospec describes it: the document that speaks of several machines names this one."""
    folder = tmp_path_factory.mktemp("machine")
    here = Place(folder, folder / "home", model_files, server_program)
    restore(here.database)
    with pytest.MonkeyPatch.context() as patch:
        use(here, patch)
        assert run("studies", "import", RECORD).exit_code == 0
        hardware: dict[str, Any] = json.loads(run("recommend", "--json", "--all-hardware").stdout)["hardware"]
    assert hardware["id"] != "test-machine"
    return hardware


def make_known(place: Place, machine: dict[str, Any]) -> None:
    """Put the database there as if all of it had been measured on this machine, with the models that are here."""
    restore(place.database)
    columns = (
        *(
            "autospec_recommendations.recommendation",
            "autospec_measurements.drafting",
            "autospec_measurements.compared",
        ),
        *("autospec_live_samples.drafting", "trial_user_attributes.value_json"),
    )
    with sqlite3.connect(place.database) as connection:
        for table, column in (name.split(".") for name in columns):
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, '/models/', ?)",  # noqa: S608
                (f"{place.models}/",),
            )
        connection.execute(
            "UPDATE autospec_recommendations SET hardware = ?, hardware_id = ?",
            (json.dumps(machine), machine["id"]),
        )
    connection.close()


@pytest.fixture
def known(place: Place, this_machine: dict[str, Any]) -> Place:
    """A home that knows what 31c5bcf measured, as if on this machine."""
    make_known(place, this_machine)
    return place
