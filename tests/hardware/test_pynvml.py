"""The stand-in for `pynvml` against the module itself: names, constants, and what it does without a driver."""

from __future__ import annotations

from types import ModuleType

import pytest

from autospec.hardware import nvidia
from tests.hardware.fake_gpus import GPU_IS_LOST, NO_PERMISSION, NOT_FOUND, NOT_SUPPORTED, FakeNvml


@pytest.fixture
def nvml() -> ModuleType:
    """The module, where it is installed: it is a dependency on Linux."""
    return pytest.importorskip("pynvml", reason="pynvml is not installed")


def test_every_function_that_is_asked_exists(nvml):
    """A name that the module does not have would make a figure unknown for ever."""
    names = {name for name in vars(FakeNvml) if name.startswith("nvml")}
    # Old drivers' name of a function; a binding may drop it.
    names.discard("nvmlDeviceGetCurrentClocksThrottleReasons")
    assert sorted(name for name in names if not callable(getattr(nvml, name, None))) == []


def test_the_constants_are_the_modules(nvml):
    """They stand in the code as numbers, since old bindings lack some names."""
    thermal = nvml.nvmlClocksEventReasonSwThermalSlowdown | nvml.nvmlClocksEventReasonHwThermalSlowdown
    assert thermal == nvidia._THERMAL
    assert nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown == nvidia._POWER_BRAKE
    assert nvml.nvmlClocksEventReasonHwSlowdown == nvidia._HARDWARE
    assert (nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM) == (nvidia._TEMPERATURE_GPU, nvidia._CLOCK_SM)
    assert (nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND) == nvidia._NO_SAMPLES
    held = nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_GPU_IS_LOST
    assert held == (NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST)
    assert nvml.NVML_ERROR_NOT_FOUND == NOT_FOUND


def test_errors_carry_their_value(nvml):
    """As those of the stand-in."""
    error = nvml.NVMLError(NOT_SUPPORTED)
    assert isinstance(error, nvml.NVMLError_NotSupported)
    assert error.value == NOT_SUPPORTED


def test_before_a_driver_was_found_every_question_fails(nvml):
    """With the module's own error, so that everything is unknown."""
    if nvidia.library() is None:
        with pytest.raises(nvml.NVMLError):
            nvml.nvmlDeviceGetCount()
        assert nvidia.Nvidia(nvml).readings() == ()
    else:
        assert nvidia.Nvidia(nvml).readings()
