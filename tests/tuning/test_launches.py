"""What reads a draft's answers beside the servers of a study."""

from __future__ import annotations

import pytest

from autospec.backends.optional import Scores
from autospec.backends.protocol import LaunchSettings
from autospec.errors import BackendMissingError, LaunchError
from autospec.tuning.launches import Launches
from tests.tuning.simulated import SimulatedBackend


class Reading(SimulatedBackend):
    """A backend whose drafts something can read, or cannot."""

    def __init__(self, failure=None):
        super().__init__(lambda _d, _t: 1.2)
        self.failure = failure
        self.loaded = 0

    def scorer(self, model_path, n_ctx):
        """See `Scores`."""
        if self.failure is not None:
            raise self.failure
        assert (model_path, n_ctx) == ("/folder/draft.gguf", 64)
        return self

    def __enter__(self):
        self.loaded += 1
        return self

    def __exit__(self, *_):
        self.loaded -= 1


def scoring(backend, told):
    """The context under test."""
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=2)
    return launches.scoring("/folder/draft.gguf", 64, told.append)


def test_it_reads_as_long_as_it_is_needed():
    """Its memory is free again before the next launch."""
    backend, told = Reading(), []
    assert isinstance(backend, Scores)
    with scoring(backend, told) as scorer:
        assert scorer is backend
        assert backend.loaded == 1
    assert (backend.loaded, told) == (0, [])


@pytest.mark.parametrize(
    "backend", [SimulatedBackend(lambda _d, _t: 1.2), Reading(BackendMissingError("No."))]
)
def test_nothing_is_said_where_nothing_is_installed(backend):
    """It makes a pass faster and is no part of it."""
    told = []
    with scoring(backend, told) as scorer:
        assert scorer is None
    assert told == []


def test_one_that_dies_is_told():
    """The tune goes on, slower, and says why."""
    told = []
    with scoring(Reading(LaunchError("The server died of its first matrix.")), told) as scorer:
        assert scorer is None
    assert told == [
        "draft.gguf is asked token by token, llama-cpp-python cannot read it: The server died of its first matrix."
    ]
