"""What machine this is (`identify`), and how it is now (`autospec.hardware.state`)."""

from __future__ import annotations

from autospec.hardware.identity import identify

__all__ = ["identify"]
