"""llama.cpp's own web page through the proxy: a chat in the real page gets an answer of the real server.

The lab's llama-server is built without its page, so the server gets one with ``--path``: the page that llama.cpp had in
August 2025, one file of HTML, from the sources that llama-cpp-python's sdist carries.
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autospec.proxy.serve import open_supervisor
from autospec.settings import load_settings
from tests.lab import LabError, lab_folder
from tests.lab.source import pip_download
from tests.proxy.harness import Loop, no_type, proxy_over

pytestmark = pytest.mark.real

_PACKAGE = "llama-cpp-python==0.3.16"
_FOLDER = lab_folder() / "llama-page"


@pytest.fixture(scope="session")
def web_page() -> Path:
    """A folder with the page; skips where PyPI is out of reach."""
    page = _FOLDER / "index.html"
    if not page.exists():
        with tempfile.TemporaryDirectory(prefix="autospec-page-") as folder:
            try:
                sdist = pip_download(_PACKAGE, Path(folder), source=True)
            except LabError as error:
                pytest.skip(f"llama.cpp's page cannot be fetched: {error}")
            with tarfile.open(sdist) as archive:
                name = next(n for n in archive.getnames() if n.endswith("tools/server/public/index.html.gz"))
                source = archive.extractfile(name)
                assert source is not None
                _FOLDER.mkdir(parents=True, exist_ok=True)
                page.write_bytes(gzip.decompress(source.read()))
    return _FOLDER
