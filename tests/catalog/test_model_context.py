"""The context length in a launch's arguments, as the catalogue, the proxy and a tune read it."""

from __future__ import annotations

import pytest

from autospec.catalog.model import context_of, names_context, without_context
from autospec.drafting import OFF
from autospec.serving.launch_options import Backoff, LaunchOptions, footprint
from autospec.serving.model_registry import Engine, ModelRegistry
from autospec.serving.server_pool import ServerPool
from autospec.settings import load_settings
from autospec.tuning.definition import load_definition
from autospec.tuning.request import TuneRequest
from tests.catalog.making import make_model
from tests.serving.scene import HERE, FakeBackend
from tests.tuning.test_run import suite

OWN = 32768
UNSET = 4096

GIVEN = [
    (("-c", "8192"), 8192),
    (("-c", "4096", "-c", "32768"), 32768),
    (("-c", "8192", "--ctx-size", "2048"), 2048),
    (("--ctx-size", "2048", "-ngl", "99", "-c", "8192"), 8192),
    (("--ctx_size", "2048"), 2048),
    (("--ctx-size=2048",), 2048),
    (("-c", "0"), OWN),
    (("-c", "8192", "-c", "0"), OWN),
]
MODEL = make_model("main", context_length=OWN, kv_bytes_per_token=1024, quantization="F16")
NOT_GIVEN = [
    (),
    ("-c",),
    ("-ngl", "99", "-c", "many"),
]


@pytest.mark.parametrize(("args", "expected"), GIVEN)
def test_the_last_flag_counts_and_0_is_the_models_own(args, expected):
    """As llama-server reads them."""
    assert context_of(args, OWN, UNSET) == expected
    assert names_context(args)


@pytest.mark.parametrize("args", NOT_GIVEN)
def test_without_a_readable_flag_the_caller_decides(args):
    """The tuner sets a context of its own there, and a server takes the model's."""
    assert context_of(args, OWN, UNSET) == UNSET
    assert not names_context(args)


def test_0_of_a_model_that_does_not_tell_its_own():
    """What the caller takes it for."""
    assert context_of(("-c", "0"), 0, UNSET) == UNSET


def test_the_other_arguments_are_left():
    """In their order, whatever the spelling of the context was."""
    args = ("-ngl", "99", "-c", "4096", "--ctx_size", "1", "-t", "4", "--ctx-size", "2")
    assert without_context(args) == ["-ngl", "99", "-t", "4"]


def tuners(args: tuple[str, ...]) -> int:
    """What a tune counts memory with."""
    request = TuneRequest(
        model=MODEL,
        models=(MODEL,),
        definition=load_definition("quick"),
        suite=suite(),
        storage="sqlite://",
        args=args,
        context_tokens=UNSET,
    )
    return request.context()


def proxys(args: tuple[str, ...]) -> int:
    """What the proxy's planner counts memory with."""
    backend = FakeBackend()
    offers = ModelRegistry((MODEL,), {MODEL.format: Engine(backend, backend.capabilities())})
    overrides = {"memory_limit": 1024.0, "server_args": list(args), "context_tokens": UNSET}
    settings, pool = load_settings(overrides=overrides), ServerPool(lambda: None, lambda: 0.0)
    options = LaunchOptions(settings, HERE, offers, pool, Backoff())
    own_bytes = options.estimate("main", OFF).footprint.own_bytes
    none = footprint(MODEL, None, 0, maps_weights=True, limit_bytes=2**40).own_bytes
    return (own_bytes - none) // MODEL.kv_bytes_per_token


@pytest.mark.parametrize(("args", "expected"), GIVEN)
def test_tuner_and_proxy_count_with_the_same_context(args, expected):
    """What the user's server would have."""
    assert (tuners(args), proxys(args)) == (expected, expected)


@pytest.mark.parametrize("args", NOT_GIVEN)
def test_where_the_user_names_none_the_tuner_measures_with_less_than_the_proxy_serves(args):
    """Measured launches get the setting's context, served ones the model's own."""
    assert (tuners(args), proxys(args)) == (UNSET, OWN)
