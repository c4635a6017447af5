"""llama.cpp's own web page through the proxy: a chat in the real page gets an answer of the real server.

The lab's llama-server is built without its page, so it gets one with ``--path``: from the sources in llama-cpp-python's sdist.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from autospec.proxy.serve import open_supervisor
from autospec.settings import load_settings
from tests.lab import LabError, lab_folder
from tests.lab.source import pip_download
from tests.proxy.harness import Loop, no_type, proxy_over

pytestmark = pytest.mark.real

# llama.cpp of spring 2026: later sdists carry no page that is built.
_PACKAGE = "llama-cpp-python==0.3.22"
_FOLDER = lab_folder() / "llama-page"


@pytest.fixture(scope="session")
def web_page() -> Path:
    """A folder with the page; skips where PyPI is out of reach."""
    if not (_FOLDER / "index.html").exists():
        with tempfile.TemporaryDirectory(prefix="autospec-page-") as folder:
            try:
                sdist = pip_download(_PACKAGE, Path(folder), source=True)
            except LabError as error:
                pytest.skip(f"llama.cpp's page cannot be fetched: {error}")
            with tarfile.open(sdist) as archive:
                inside = [m for m in archive.getmembers() if "/tools/server/public/" in m.name and m.isfile()]
                _FOLDER.mkdir(parents=True, exist_ok=True)
                # The page itself comes last: without it the rest is fetched again.
                for member in sorted(inside, key=lambda m: m.name.endswith("/index.html")):
                    source = archive.extractfile(member)
                    assert source is not None
                    (_FOLDER / Path(member.name).name).write_bytes(source.read())
    return _FOLDER


@pytest.fixture
def proxy(only_model: Path, llama_server_binary: Path, web_page: Path, tmp_path: Path) -> Iterator[Any]:
    """A proxy with one model, which does not run yet; its llama-server has the page."""
    settings = load_settings(
        overrides={
            "model_dirs": [only_model],
            "backend": "llama-server",
            "llama_server": str(llama_server_binary),
            "server_args": ["-c", "2048", "-t", "1", "-n", "24", "--path", str(web_page)],
        }
    )
    loop = Loop()
    supervisor = loop.run(open_supervisor(settings))
    with proxy_over(loop, supervisor, tmp_path / "autospec.db", classify=no_type) as listening:
        yield listening, supervisor, lambda: loop.run(supervisor.unload("main"))
    loop.run(supervisor.close())
    loop.close()


def test_a_chat_in_llama_cpps_own_page(proxy, page):
    """The page comes from the server that its GET has started. What is typed there is answered, also after the model was unloaded."""
    listening, supervisor, unload = proxy
    # The page asks for tools that the server has not switched on; it says so without the proxy, too.
    page.expected_errors = ["403", "feature is disabled"]
    page.open(f"{listening.base_url}/")
    page.wait(lambda: page.has("textarea"))
    asked = supervisor.status()["busy"]["requests"]
    page.press("textarea", "Say something.")
    page.press("textarea", "\ue007")
    page.wait_for("24 tokens")
    assert supervisor.status()["busy"]["requests"] == asked + 1
    page.picture("llama-cpp-page")
    unload()
    page.wait(lambda: supervisor.status()["launches"] == [])
    page.press("textarea", "Say more.")
    page.press("textarea", "\ue007")
    page.wait(lambda: page.text().count("24 tokens") == 2)
    tokens = httpx.get(f"{listening.base_url}/autospec/metrics", trust_env=False).text
    assert re.search(r'autospec_tokens_total\{[^}]*kind="predicted",model="main"[^}]*\} 48\.0', tokens)
