"""NVIDIA's management library through `nvidia-ml-py`, where it is installed and a driver answers; else nothing."""

from __future__ import annotations

import functools
import importlib
from typing import Any

__all__ = ["handles", "library"]


@functools.cache
def library() -> Any:
    """The module `pynvml`, initialised; ``None`` where it is not installed or finds no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def handles(nvml: Any) -> list[Any]:
    """One handle for each GPU that the driver shows; none where it answers with an error."""
    try:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
