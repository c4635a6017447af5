"""A real browser: Debian's Chromium, driven by Selenium. One browser serves the whole session; each test gets a blank page."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autospec.proxy.app import Rules
from tests.browser.pages import Page
from tests.browser.stage import Stage, set_up
from tests.lab import lab_folder

# Read before any test's home is set apart.
_CACHE = lab_folder() / "axe-core"
# The rules change with versions: a newer one would fail a page that has not changed.
_AXE = "axe-core@4.14.1"
SCREENSHOTS = Path(__file__).parents[2] / ".ci" / "reports" / "screenshots"


def _program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> Iterator[Any]:
    """Chromium without a window; skips where it or Selenium is not installed."""
    pytest.importorskip("selenium", reason="selenium is not installed (extra: browser)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    service = Service(_program("chromedriver"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
        *(
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
        ),
        # A name of somebody else's, for pages that attack this machine.
        "--host-resolver-rules=MAP evil.example 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(argument)
    running = webdriver.Chrome(options=options, service=service)
    running.set_page_load_timeout(60)
    yield running
    running.quit()


@pytest.fixture
def page(driver) -> Iterator[Page]:
    """A page to open; at its end the browser has shown no error and has asked nobody else."""
    opened = Page(driver, SCREENSHOTS)
    yield opened
    opened.leave()


@pytest.fixture
def rules() -> Rules:
    """What the proxy allows."""
    return Rules()


@pytest.fixture
def stage(tmp_path: Path, rules: Rules) -> Iterator[Stage]:
    """A proxy that the test directs."""
    with set_up(tmp_path, rules) as made:
        yield made


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, from npm once; skips where npm or its registry is out of reach."""
    file = _CACHE / f"{_AXE.replace('@', '-')}.js"
    if not file.exists():
        if shutil.which("npm") is None:
            pytest.skip("axe-core cannot be fetched: npm is not installed")
        _CACHE.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", _AXE],
            cwd=_CACHE,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            pytest.skip(f"axe-core cannot be fetched: npm ended with {done.returncode}")
        with tarfile.open(_CACHE / done.stdout.strip().splitlines()[-1]) as archive:
            source = archive.extractfile("package/axe.min.js")
            assert source is not None
            file.write_bytes(source.read())
    return file.read_text("utf-8")
