"""The pictures of the documents: screenshots of a report, made again from the results of one home.

Run: ``AUTOSPEC_HOME=HOME python -m studies.bench.pictures [--out docs/pictures] [--all]``

It writes the report of that home (of this user without AUTOSPEC_HOME), opens it in Chromium without a window, and keeps the upper part of it, in
light and in dark, with few colours so that the files stay small. ``--all`` instead keeps the whole page at three widths, to look at.
It needs ``pip install playwright 'autospec-llm[report]'`` and a Chromium: Debian's (``apt install chromium``), or Playwright's own
(``playwright install chromium``).
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

SCHEMES = ("light", "dark")
WIDTHS = (360, 800, 1280)
# Chromium draws no larger pictures.
MOST_HEIGHT = 16_000
# Of a picture in a document.
WIDTH, HEIGHT, COLOURS = 1000, 1000, 48


def main() -> None:
    """Write the pictures, and print each with its size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--all", action="store_true", help="whole pages at three widths, to look at")
    parser.add_argument("--page", type=Path, help="a report that exists, instead of a new one")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = args.page or Path(folder) / "report.html"
        if args.page is None:
            subprocess.run([sys.executable, "-m", "autospec", "report", "-q", "-o", str(page)], check=True)
        for name, picture in _taken(page.resolve(), everything=args.all):
            file = args.out / f"{name}.png"
            file.write_bytes(picture)
            print(f"{file}: {len(picture) / 1000:.0f} kB")


def _taken(page: Path, *, everything: bool) -> list[tuple[str, bytes]]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - what --help need not have

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in SCHEMES:
            for width in WIDTHS if everything else (WIDTH,):
                context = browser.new_context(
                    viewport={"width": width, "height": HEIGHT},
                    color_scheme=scheme,
                    offline=True,
                    reduced_motion="reduce",
                )
                tab = context.new_page()
                tab.goto(page.as_uri())
                height = min(MOST_HEIGHT, tab.evaluate("document.documentElement.scrollHeight"))
                clip = {"x": 0, "y": 0, "width": width, "height": height if everything else HEIGHT}
                taken = tab.screenshot(full_page=everything, clip=clip)
                name = f"report-{scheme}-{width}" if everything else f"report-{scheme}"
                found.append((name, taken if everything else _small(taken)))
                context.close()
        browser.close()
    return found


def _small(picture: bytes) -> bytes:
    """The same picture with few colours."""
    written = io.BytesIO()
    image: Any = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    main()
