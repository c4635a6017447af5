"""``python packaging/homebrew/resources.py``: writes the resources of the formula, the source of each package that it builds.

uv resolves what autospec needs on a Mac, and names file and checksum of each sdist as the index has them. It must be on PATH
(`pip install uv`).
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FORMULA = Path(__file__).with_name("autospec.rb")
ROOT = FORMULA.parents[2]
BEGIN, END = "  # resources begin\n", "  # resources end\n"
# From Homebrew's own formulae; llama.cpp's server in place of the one in the wheel; NVIDIA's library for Linux only.
NOT_BUILT = frozenset({"certifi", "numpy", "nvidia-ml-py", "scipy", "xllamacpp"})
INDEX_FILES = "https://files.pythonhosted.org"
COMPILE = (
    *("uv", "pip", "compile", "pyproject.toml", "--format", "pylock.toml", "--quiet", "--no-header"),
    *("--python-version", "3.13", "--python-platform", "aarch64-apple-darwin"),
)


def resources(lock: dict[str, Any]) -> str:
    """The resources of a ``pylock.toml`` (PEP 751), by name.

    Raises:
        ValueError: A package has no sdist, so that the formula cannot build it.
    """
    blocks = []
    for package in sorted(lock["packages"], key=lambda p: p["name"]):
        if package["name"] in NOT_BUILT:
            continue
        if "sdist" not in package:
            raise ValueError(f"{package['name']} {package['version']} has no sdist")
        sdist = package["sdist"]
        # The path is the same on every mirror of the index.
        url = INDEX_FILES + urlsplit(sdist["url"]).path[urlsplit(sdist["url"]).path.index("/packages/") :]
        blocks.append(
            f'  resource "{package["name"]}" do\n    url "{url}"\n    sha256 "{sdist["hashes"]["sha256"]}"\n  end\n'
        )
    return "\n".join(blocks)


def main() -> int:
    """Write the formula again."""
    done = subprocess.run(COMPILE, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        return 1
    before, _, rest = FORMULA.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    FORMULA.write_text(
        f"{before}{BEGIN}{resources(tomllib.loads(done.stdout))}{END}{after}", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
