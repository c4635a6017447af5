"""What every test may ask for: lab models, a native llama-server, a home of its own. Each test gets its tier here, too."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings

from tests import tiers
from tests.backends.waiting import wait_until
from tests.catalog.making import TOKENS, write_gguf
from tests.lab import RECIPES, Lab, LabError, Recipe, lab_folder

# Read before any test's home is set apart: the fixtures below take every AUTOSPEC_ variable away.
_LAB_FOLDER = lab_folder()
_LLAMA_SERVER = os.environ.get("AUTOSPEC_TEST_LLAMA_SERVER")

# No test judges a time: a machine may be busy, and the first run of a clone builds Hypothesis's tables of characters for a second.
settings.register_profile("autospec", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("autospec")

# A shell without job control has what it starts with `&` ignore Ctrl-C, and every child inherits that: the tests that press
# it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_WATCH = tiers.SpawnWatch()

# Further arguments to the server's address and process.
ByHand: TypeAlias = "Callable[..., tuple[str, subprocess.Popen[bytes]]]"


@sa.event.listens_for(sa.Engine, "connect")
def _does_not_wait_for_the_disk(connection: object, _: object) -> None:
    """Databases that a test opens itself: only a power cut would lose what a kill does not."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no other files where only the tests that run alone are wanted: all take a quarter of a minute to import."""
    wanted = config.getoption("markexpr") == f"{tiers.REAL.name} and alone"
    return True if wanted and collection_path.is_file() and not tiers.runs_alone(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before pytest's own selection by -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test its tier and the tier's timeout; a ``--timeout`` on the command line is for all tiers."""
    tiers.assign(items, with_timeouts=config.getoption("timeout") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A unit test that starts a process fails: in the test, or in its teardown if that does it."""
    if item.get_closest_marker(tiers.UNIT.name) is None:
        return (yield)
    _WATCH.begin()
    try:
        return (yield)
    finally:
        _WATCH.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """What the test and its fixtures started."""
    result = yield
    _WATCH.check()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """What the teardown started, or the test before it failed by itself."""
    result = yield
    _WATCH.check()
    return result


class LabModels:
    """The lab's models, each built when a test first asks for it; the test is skipped where PyPI is out of reach."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def path(self, recipe: str | Recipe) -> Path:
        """The file of a named recipe (``slow-main``) or of one made for the test (``slow_main(60)``)."""
        try:
            return self._lab.path(recipe)
        except LabError as error:
            pytest.skip(str(error))

    def __getattr__(self, name: str) -> Path:
        if name.replace("_", "-") not in RECIPES:
            raise AttributeError(f"no lab model is called {name}; there are {', '.join(RECIPES)}")
        return self.path(name.replace("_", "-"))


@pytest.fixture(scope="session")
def lab_models() -> LabModels:
    """Paths of models with a known truth: ``lab_models.smollm2``, ``.slow_main``, ``.tiny`` and others.

    All are listed by ``python -m tests.lab --list``, with underscores for dashes. They are shared: copy a file before
    changing it.
    """
    return LabModels(Lab(_LAB_FOLDER))


@pytest.fixture(scope="session")
def llama_server_binary() -> Path:
    """A native llama-server: ``AUTOSPEC_TEST_LLAMA_SERVER``, PATH, or the one that ``make native`` built."""
    built = _LAB_FOLDER / "llama-server" / "llama-server"
    for candidate in (_LLAMA_SERVER, shutil.which("llama-server"), built):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    if _LLAMA_SERVER:
        pytest.fail(f"AUTOSPEC_TEST_LLAMA_SERVER is {_LLAMA_SERVER}, which is no program")
    pytest.skip("no native llama-server: `make native` builds one where there are cmake and a compiler")


@pytest.fixture
def by_hand(llama_server_binary: Path, lab_models: LabModels) -> Iterator[ByHand]:
    """Starts the native llama-server on the tiny model as a user would; ends it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> tuple[str, subprocess.Popen[bytes]]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [str(llama_server_binary), "-m", str(lab_models.tiny), "-c", "2048", "-t", "1"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([*command, "--port", str(port), *arguments], stdout=quiet, stderr=quiet)
        started.append(process)
        wait_until(lambda: _healthy(port), 120)
        return f"http://127.0.0.1:{port}", process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def router_by_hand(llama_server_binary: Path, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts the native llama-server as a router over presets, as a user would; ends it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(presets: str) -> str:
        (tmp_path / "presets.ini").write_text(presets)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [
            str(llama_server_binary),
            "--models-preset",
            str(tmp_path / "presets.ini"),
            "--models-max",
            "1",
        ]
        quiet = subprocess.DEVNULL
        own = {**os.environ, "HOME": str(tmp_path), "LLAMA_CACHE": str(tmp_path / "cache")}
        started.append(
            subprocess.Popen(
                [*command, "-c", "2048", "-t", "1", "--port", str(port)], stdout=quiet, stderr=quiet, env=own
            )
        )
        wait_until(lambda: _healthy(port), 120)
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()  # a router that is killed leaves its servers to themselves
        process.wait()


def _healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture
def only_model(tmp_path: Path, lab_models, monkeypatch) -> Path:
    """A folder with one model, ``main``, of which there is nothing else in this home; skips where no server can run."""
    if sys.platform == "win32":
        pytest.skip("no servers on Windows")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    models = tmp_path / "models"
    models.mkdir()
    (models / "main.gguf").symlink_to(lab_models.tiny)
    return models


@pytest.fixture(scope="session", autouse=True)
def servers_wait_asleep() -> Iterator[None]:
    """Two servers that wait by spinning on two cores become twenty times slower, and no test asks how fast a server is.

    It holds for the whole session: a server that several tests share starts before the fixtures of a single test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """An empty folder for models; the test's settings name it."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def no_model_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of another program names a folder with models. With a HOME of its own, a test finds only its own models."""
    for name in (
        "LLAMA_CACHE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "XDG_CACHE_HOME",
        "OLLAMA_MODELS",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def own_models(models_dir: Path, home: Path, no_model_stores: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with models on this machine; empty."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AUTOSPEC_MODEL_DIRS", str(models_dir))
    return models_dir


@pytest.fixture
def two_models(models_dir: Path) -> Path:
    """A main model, a draft that fits, and one that does not."""
    write_gguf(models_dir / "Tiny-Main-F16.gguf", layers=40, width=64)
    write_gguf(models_dir / "Tiny-Draft-F16.gguf", layers=1)
    write_gguf(models_dir / "Stranger.gguf", layers=1, tokens=[*TOKENS[:9], "x", *TOKENS[10:]])
    return models_dir


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the wall clock, and with it the boot time from which psutil derives every start."""
    true = psutil.Process.create_time

    def set_by(seconds: float) -> None:
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: true(self) + seconds)

    return set_by


@pytest.fixture(autouse=True)
def autospec_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for autospec under the test's own folder, and none of the developer's AUTOSPEC_ variables.

    No width of a terminal either: a pytest-xdist worker has one, and tables would be cut.
    """
    for name in [name for name in os.environ if name.startswith("AUTOSPEC_") or name in {"COLUMNS", "LINES"}]:
        monkeypatch.delenv(name)
    home = tmp_path / "autospec-home"
    monkeypatch.setenv("AUTOSPEC_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def machine_lock_of_its_own(autospec_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may tune while somebody else does on this machine: what they assert is not a speed."""
    monkeypatch.setenv("AUTOSPEC_TEST_LOCK_DIR", str(tmp_path))


@pytest.fixture(autouse=True)
def machine_may_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test starts no process, also none that keeps this machine awake."""
    monkeypatch.setattr("autospec.hardware.awake.awake_command", lambda *_: ())
