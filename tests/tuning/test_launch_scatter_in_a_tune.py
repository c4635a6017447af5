"""A tune compares the baseline launches that it renews, and its verdict uses the result."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from autospec.cells import Build, PromptType
from autospec.store.database import open_store
from autospec.tuning import launch_scatter
from autospec.tuning.launch_scatter import known_scatter
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_run import MACHINE, nobody_else_is_at_work, request_, tune

pytestmark = pytest.mark.usefixtures("no_waits")

__all__ = ["nobody_else_is_at_work", "request_"]  # fixtures


@pytest.mark.parametrize(("scatter", "least", "most"), [(0.0, 0.0003, 0.006), (0.02, 0.01, 0.04)])
def test_tunes_measure_how_much_launches_differ(request_, monkeypatch, scatter, least, most):
    """After four tunes it is known, and the verdict no longer counts with an assumed 3 %."""
    monkeypatch.setattr(launch_scatter, "busy", lambda _state: False)
    assumed = []
    for number in range(4):
        backend = SimulatedBackend(lambda _d, _t: 1.03, launch_scatter=scatter)
        backend._numbers = itertools.count(1000 * number)  # launch ids never come twice
        backend.random = np.random.default_rng(number)  # nor do the launches' own factors
        result = tune(replace(request_, again=bool(number)), backend)
        assumed.append(result[PromptType.CODING].evidence["launch_scatter"]["assumed"])
    assert (assumed[0], assumed[-1]) == (True, False)
    store = open_store(request_.storage)
    known = known_scatter(store, MACHINE.id, Build("simulated", "b1", "f" * 8))
    store.close()
    assert least <= known.sd <= most
    assert result[PromptType.CODING].evidence["launch_scatter"]["freedom"] >= 6
