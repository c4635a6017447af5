"""Which model a request means that names none."""

from __future__ import annotations

from autospec.drafting import OFF
from autospec.proxy.api import meant_model, running_model
from autospec.serving.dispatch import Offered


def offered(name: str, *, running: bool = False, last_used: bool = False) -> Offered:
    """A model."""
    return Offered(name, (), "embedded", (OFF,) if running else (), last_used=last_used)


def test_of_two_running_models_the_one_used_last_is_meant():
    """Proxy review 12: it was the first in the catalogue's order, so a page opened on one model was answered by another."""
    both = [offered("alpha", running=True), offered("beta", running=True, last_used=True)]
    assert meant_model(both, "") == running_model(both, "") == "beta"
    assert meant_model(both, "alpha") == running_model(both, "alpha") == "alpha"


def test_a_model_that_was_unloaded_is_still_meant():
    """Proxy review 12: llama.cpp's own page works for 15 minutes and then did not."""
    resting = [offered("alpha"), offered("beta", last_used=True)]
    assert meant_model(resting, "") == "beta"
    assert running_model(resting, "") is None
    # Looks go to what runs; requests that generate go where the last one went.
    mixed = [offered("alpha", running=True), offered("beta", last_used=True)]
    assert (running_model(mixed, ""), meant_model(mixed, "")) == ("alpha", "beta")
