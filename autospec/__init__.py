"""autospec: find out on this machine whether speculative decoding pays."""

from __future__ import annotations

__version__ = "0.1.0"
