"""What a test does with a page: open it at a width, look, press keys, wait for words, take a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.backends.waiting import wait_until

__all__ = ["Page"]

WAIT_S = 20.0


class Page:
    """One page of a browser."""

    def __init__(self, driver: Any, screenshots: Path) -> None:
        self.driver = driver
        self._screenshots = screenshots
        self._url = ""
        self.expected_errors: list[str] = []

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page at a size, in a scheme of colours."""
        self.size(width, height)
        self.scheme(dark=dark)
        self._url = url
        self.driver.get(url)

    def size(self, width: int, height: int) -> None:
        """Of the visible part. A window of Chromium's own has a least width, which a phone is below."""
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)

    def scheme(self, *, dark: bool) -> None:
        """Dark or light."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def script(self, code: str, *arguments: Any) -> Any:
        """The value of a script's `return`."""
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str = "body") -> str:
        """The visible text of the first element; empty if there is none."""
        return self.script(
            "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''", selector
        )

    def has(self, selector: str) -> bool:
        """True if an element is there and visible."""
        return self.script(
            "const e = document.querySelector(arguments[0]); return Boolean(e && e.getClientRects().length)",
            selector,
        )

    def wait(self, true: Callable[[], object]) -> None:
        """Until something holds."""
        wait_until(true, WAIT_S)

    def wait_for(self, words: str, selector: str = "body") -> None:
        """Until words are visible."""
        try:
            self.wait(lambda: words in self.text(selector))
        except AssertionError as error:
            raise AssertionError(
                f"{words!r} did not appear in {selector}: {self.text(selector)!r}"
            ) from error

    def press(self, selector: str, *keys: str) -> None:
        """Press keys in an element that has the focus then, as without a mouse."""
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.script("arguments[0].focus()", element)
        element.send_keys(*keys)

    def focused(self) -> str:
        """What a screen reader calls the element that has the focus."""
        return self.script(
            "const e = document.activeElement; return e.getAttribute('aria-label') || e.textContent.trim()"
        )

    def picture(self, name: str) -> Path:
        """Take a picture of the whole page for people to look at."""
        self._screenshots.mkdir(parents=True, exist_ok=True)
        file = self._screenshots / f"{name}.png"
        size = self.script("return [innerWidth, innerHeight, document.documentElement.scrollHeight]")
        self.size(size[0], max(size[1], min(size[2], 6000)))
        file.write_bytes(self.driver.get_screenshot_as_png())
        self.size(size[0], size[1])
        return file

    def asked(self) -> list[str]:
        """The addresses that the page has loaded anything from, without the page's own origin."""
        names = self.script("return performance.getEntriesByType('resource').map(e => e.name)")
        origin = self.script("return location.origin")
        return sorted({str(name).removeprefix(origin) for name in names})

    def problems(self, axe: str) -> list[str]:
        """What axe-core finds wrong, with the elements."""
        self.script(axe)
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(JSON.stringify(r.violations)))"
        )
        return [f"{v['id']}: {v['help']}: {[n['html'][:120] for n in v['nodes']]}" for v in json.loads(found)]

    def leave(self) -> None:
        """A blank page; fails if the browser has reported an error that the test did not expect."""
        errors = [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
            and not any(word in entry["message"] for word in self.expected_errors)
        ]
        self.driver.get("about:blank")
        assert not errors, errors
