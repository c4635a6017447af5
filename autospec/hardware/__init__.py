"""This machine: what it is (`identify`), and its current state (`autospec.hardware.state`)."""

from __future__ import annotations

from autospec.hardware.identity import identify

__all__ = ["identify"]
