"""A Matplotlib figure as SVG for the inside of an HTML page: themed by CSS variables, with a text alternative, without outside names.

Matplotlib writes colours as fixed values. Figures are therefore drawn in the stand-in colours of `INK`, one for each role, which
become `var(--role)` here. Texts stay texts, so that a page can be searched and zoomed. Ids get a prefix, because a page has
several figures.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["INK", "SERIES", "inline_svg", "plain_text", "styled"]

# Names of the CSS variables of the page's style.
_ROLES = ("ink", "muted", "grid", "paper", "enable", "disable", "undecided")
# Launches are told apart by colour and by shape.
SERIES: Final = tuple(f"series{i}" for i in range(6))
INK: Final[Mapping[str, str]] = MappingProxyType(
    {role: f"#0102{place:02x}" for place, role in enumerate((*_ROLES, *SERIES), start=1)}
)
_STYLE: Final[Mapping[str, object]] = MappingProxyType(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "autospec",
        "text.parse_math": False,  # a model's name may contain $
        "axes.unicode_minus": True,
        "font.size": 10.0,
        "text.color": INK["ink"],
        "axes.edgecolor": INK["muted"],
        "axes.labelcolor": INK["ink"],
        "xtick.color": INK["muted"],
        "ytick.color": INK["muted"],
        "xtick.labelcolor": INK["ink"],
        "ytick.labelcolor": INK["ink"],
        "grid.color": INK["grid"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
    }
)
_XLINK = "{http://www.w3.org/1999/xlink}href"
_BY_COLOUR = {colour: f"var(--{role})" for role, colour in INK.items()}
_COLOUR = re.compile("|".join(_BY_COLOUR))
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
_FRAGMENT = re.compile(r"url\(#")
# What XML cannot hold, and what no file name should do to a page.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the page's style, whatever the user's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def plain_text(text: str) -> str:
    """The text with a question mark in place of control characters and lone surrogates, which names of files may have."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def inline_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as one `<svg>` element.

    Args:
        figure: Drawn within `styled`, in colours of `INK`.
        name: Prefix of its ids; unique on the page.
        title: Its text alternative, one line.
        description: What it shows, for people who do not see it.
    """
    written = io.StringIO()
    # Matplotlib's own title and date would be metadata with addresses in it.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with styled(), warnings.catch_warnings():
        # The browser has glyphs that Matplotlib's font lacks, for a name in Japanese for instance.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(written, format="svg", metadata=nothing)
    root = ET.fromstring(written.getvalue())  # noqa: S314 - Matplotlib wrote it a moment ago
    _tidy(root, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-text",
        "focusable": "false",
    }
    for tag, part, text in (("desc", "text", description), ("title", "title", title)):
        element = ET.Element(tag, {"id": f"{name}-{part}"})
        element.text = plain_text(text)
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode")


def _tidy(root: ET.Element, name: str) -> None:
    """Drop namespaces, metadata, styles for the whole document, clips, and ids that nothing refers to."""
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.rpartition("}")[2] in ("metadata", "style", "clipPath")]:
            parent.remove(child)
    elements = list(root.iter())
    for element in elements:
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        element.attrib.pop("clip-path", None)
        if (target := element.attrib.pop(_XLINK, None)) is not None:
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        for key, value in element.attrib.items():
            if key in ("d", "transform", "x", "y", "points", "style"):
                value = _LONG_NUMBER.sub(r"\1", value)  # noqa: PLW2901
            element.set(key, _FRAGMENT.sub(f"url(#{name}-", _COLOUR.sub(_variable, value)))
    used = {element.get("href", "").removeprefix(f"#{name}-") for element in elements}
    for element in elements:
        if (own := element.attrib.pop("id", None)) in used and own:
            element.set("id", f"{name}-{own}")


def _variable(match: re.Match[str]) -> str:
    return _BY_COLOUR[match[0]]
