"""Requests with images: which server answers them, and how the proxy loads projectors."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.catalog.resolve import OwnSettings
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import LaunchError, UnsupportedError
from autospec.proxy.request import has_images
from autospec.serving.dispatch import WhyOff
from autospec.serving.model_registry import Engine, ModelRegistry
from autospec.settings import Adapter, ModelSettings
from tests.serving.scene import (
    ALPHA,
    ARGS,
    BETA,
    DEADLINE_S,
    LOOKUP,
    FakeBackend,
    FakeServer,
    Scene,
    recommend,
    states,
    until,
    wanted,
)

DRAFTED = LOOKUP
EYES = Path("/models/mmproj-F16.gguf")
IMAGES = replace(wanted(), images=True)
REFUSAL = LaunchError(
    "The server ended.",
    log_tail=("srv load: speculative decoding is not supported with multimodal",),
    permanent=True,
)


def played(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that plays a scenario to its end."""

    @functools.wraps(scenario)
    def test(**given: Any) -> None:
        asyncio.run(scenario(**given))

    return test


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "image_url"}]}]}, False),
        (
            {
                "messages": [
                    {"content": [{"type": "text"}, {"type": "image_url", "image_url": {"url": "data:"}}]}
                ]
            },
            True,
        ),
        ({"messages": [{"content": "a"}, {"content": [{"type": "input_audio"}]}]}, True),
        ({"messages": [{"content": [{"type": "image", "source": {}}]}]}, True),
        ({"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]}, True),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, True),
        ({"input": "Hi"}, False),
        ({"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["aGk="]}}, True),
        ({"prompt": ["a", {"prompt_string": "b", "multimodal_data": []}]}, False),
        ({"messages": [None, 3, {"content": [None, "x"]}]}, False),
        ({"messages": {"content": [{"type": "image"}]}}, False),
        ({}, False),
    ],
)
def test_what_has_an_image(document: dict[str, Any], expected: bool):
    """In every API that the proxy serves; malformed parts are the server's affair."""
    assert has_images(document) is expected


@dataclass
class BlindWhenDrafting(FakeBackend):
    """A build that does not draft with a projector: it drafts without, as `LlamaServer.launch` does."""

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> FakeServer:
        """Without the projector if it drafts."""
        args = settings.args
        if not drafting.is_off and "--mmproj" in args:
            args = args[: args.index("--mmproj")]
        return super().launch(model_path, drafting, dataclasses.replace(settings, args=args))


@dataclass
class RefusesProjector(FakeBackend):
    """A build or a projector that do not fit."""

    error: Exception = REFUSAL

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> FakeServer:
        """Not with a projector."""
        if "--mmproj" in settings.args:
            self.asked.append((model_path, drafting, settings))
            raise self.error
        return super().launch(model_path, drafting, settings)


@dataclass
class SceneWithEyes(Scene):
    """The first model has a projector beside it, or what `own` says."""

    own: OwnSettings = field(default_factory=lambda: OwnSettings(projectors={ALPHA.path: (EYES,)}))

    def _scan_models(self) -> ModelRegistry:
        engine = Engine(self.backend, self.backend.capabilities())
        return ModelRegistry(self.models, {m.format: engine for m in self.models}, own=self.own)


@played
async def test_a_projector_beside_the_model_is_loaded():
    """With drafting too, where the build allows it: an image is answered by the server that drafts."""
    scene = SceneWithEyes(stored=[recommend(DRAFTED)])
    async with scene.opened() as supervisor, await supervisor.lease(IMAGES) as lease:
        assert lease.drafting == DRAFTED
        (server,) = scene.backend.servers
        assert server.command[-2:] == ("--mmproj", str(EYES))
        assert not supervisor.plan()["models"][0]["notes"]  # the recommendation is for this cell
    async with scene.opened() as supervisor, await supervisor.lease(wanted("beta")):
        assert "--mmproj" not in scene.backend.servers[-1].command


@played
async def test_an_image_goes_to_the_server_without_drafting_where_the_build_does_not_draft_with_a_projector():
    """Text still goes to the one that drafts."""
    scene = SceneWithEyes(backend=BlindWhenDrafting(), stored=[recommend(DRAFTED)])
    async with scene.opened() as supervisor:
        async with await supervisor.lease(wanted()) as text:
            assert text.drafting == DRAFTED
            async with await supervisor.lease(IMAGES) as seen:
                assert seen.drafting == OFF
                assert (seen.why_off.get(PromptType.CODING), seen.why_else) == (None, WhyOff.IMAGE)
            async with await supervisor.lease(wanted()) as again:
                assert again.drafting == DRAFTED
        assert len(scene.backend.servers) == 2
        assert "--mmproj" in scene.backend.of(OFF)[0].command


@played
async def test_an_image_does_not_blame_the_projector_of_a_server_that_still_starts():
    """The server with drafting will see it, too: it was said to lack the projector."""
    scene = SceneWithEyes(stored=[recommend(DRAFTED)])
    async with scene.opened() as supervisor:
        async with await supervisor.lease(IMAGES) as lease:
            lease.answered(10_000)
        await supervisor.switch_drafting("alpha", off=True)
        await until(lambda: states(supervisor) == {"alpha-1b off": "ready"})
        scene.backend.hold.clear()
        await supervisor.switch_drafting("alpha", off=False)
        await until(lambda: "starting" in states(supervisor).values())
        async with await supervisor.lease(IMAGES) as seen:
            assert seen.drafting == OFF
            assert (seen.why_off.get(PromptType.CODING), seen.why_else) == (None, WhyOff.NOT_READY)
        scene.backend.hold.set()


@played
async def test_an_image_that_comes_first():
    """It waits for the server that drafts, sees that it is blind, and gets the other one."""
    scene = SceneWithEyes(backend=BlindWhenDrafting(), stored=[recommend(DRAFTED)])
    async with scene.opened() as supervisor, await supervisor.lease(IMAGES) as lease:
        assert lease.drafting == OFF


@pytest.mark.parametrize("drafts_already", [True, False])
@played
async def test_an_image_whose_only_server_does_not_start_is_told_at_once(drafts_already: bool):
    """It waited five minutes beside the server that drafts, while off was launched again and again."""
    scene = SceneWithEyes(backend=BlindWhenDrafting(), stored=[recommend(DRAFTED)])
    scene.backend.refuses[OFF] = LaunchError("Out of memory.")
    async with scene.opened() as supervisor, asyncio.timeout(DEADLINE_S):
        if drafts_already:
            (await supervisor.lease(wanted())).give_back()
        for _ in range(2):
            with pytest.raises(LaunchError, match="Out of memory"):
                await supervisor.lease(IMAGES)
        launches = len(scene.backend.asked)
        for _ in range(50):
            scene.clock.now_s += 1.0
            supervisor._reconciler.reconcile()
        assert len(scene.backend.asked) == launches == 2  # a request that is refused starts no server
        async with await supervisor.lease(wanted()) as text:
            assert text.drafting == DRAFTED
        with pytest.raises(
            LaunchError, match="Out of memory"
        ):  # it is tried again when it is asked for again
            await supervisor.lease(IMAGES)
        assert len(scene.backend.asked) == launches + 1


@played
async def test_an_image_is_answered_where_only_the_server_that_drafts_starts():
    """If that one sees, or is still starting and may see."""
    scene = SceneWithEyes(stored=[recommend(DRAFTED)])
    scene.backend.refuses[OFF] = LaunchError("Out of memory.")
    async with scene.opened() as supervisor:
        scene.backend.hold.clear()
        waiting = asyncio.ensure_future(supervisor.lease(IMAGES))
        asked = asyncio.ensure_future(supervisor.lease(wanted(off=True)))
        await until(lambda: len(scene.backend.asked) == 2)
        scene.backend.hold.set()
        with pytest.raises(LaunchError, match="Out of memory"):
            await asked
        for lease in (await waiting, await supervisor.lease(IMAGES)):
            assert lease.drafting == DRAFTED
            lease.give_back()


@played
async def test_a_backend_that_is_missing_for_a_moment_takes_no_setting_of_a_model_away():
    """An upgrade: the scan finds no MLX, and the server of the other format keeps its projector and its recommendation."""
    folder = dataclasses.replace(BETA, format="mlx")
    scene = SceneWithEyes(models=(ALPHA, folder), stored=[recommend(DRAFTED)])
    async with scene.opened() as supervisor:
        async with await supervisor.lease(IMAGES):
            pass
        whole = supervisor._reconciler.options.registry
        gguf = {kind: engine for kind, engine in whole.engines.items() if kind == "gguf"}
        supervisor._reconciler.offer(ModelRegistry(scene.models, gguf, own=scene.own))
        assert supervisor._reconciler.is_missed("mlx")
        assert supervisor._reconciler.options.registry.own == scene.own
        async with await supervisor.lease(IMAGES) as lease:
            assert (lease.drafting, lease.launch.outdated) == (DRAFTED, False)


@played
async def test_without_a_projector_an_image_goes_where_text_goes():
    """The server says that it cannot see."""
    scene = SceneWithEyes(own=OwnSettings(), stored=[recommend(DRAFTED)])
    async with scene.opened() as supervisor, await supervisor.lease(IMAGES) as lease:
        assert lease.drafting == DRAFTED


@pytest.mark.parametrize("error", [REFUSAL, UnsupportedError("The embedded backend cannot set --mmproj.")])
@played
async def test_a_projector_that_nobody_named_does_not_keep_a_model_from_answering(error: Exception):
    """The server starts without it."""
    scene = SceneWithEyes(backend=RefusesProjector(error=error))
    async with scene.opened() as supervisor, await supervisor.lease(wanted()):
        (server,) = scene.backend.servers
        assert server.command == ("fake-server", *ARGS)
        assert len(scene.backend.asked) == 2


@played
async def test_where_no_server_can_see_an_image_does_not_wait():
    """The server answers that it has no projector."""
    scene = SceneWithEyes(backend=RefusesProjector(), stored=[recommend(DRAFTED)])
    async with scene.opened() as supervisor, await supervisor.lease(IMAGES) as lease:
        assert "--mmproj" not in lease.launch.server.command
        assert {server.drafting for server in scene.backend.servers} == {OFF, DRAFTED}


@played
async def test_another_failure_is_not_blamed_on_the_projector():
    """A model that does not load is not loaded twice."""
    scene = SceneWithEyes(backend=RefusesProjector(error=LaunchError("Out of memory.", permanent=True)))
    async with scene.opened() as supervisor:
        with pytest.raises(LaunchError, match="Out of memory"):
            await supervisor.lease(wanted())
    assert len(scene.backend.asked) == 1


@played
async def test_a_section_is_in_force_and_part_of_the_cell():
    """What was measured without it is stale for it, and what was measured with it is not."""
    section = ModelSettings("alpha", ("--jinja",), 2048, lora=(Adapter(Path("/a.gguf")),), aliases=("fast",))
    named = dataclasses.replace(ALPHA, aliases=("fast",))
    scene = SceneWithEyes(
        own=OwnSettings({ALPHA.fingerprint: section}), models=(named, BETA), stored=[recommend(DRAFTED)]
    )
    async with (
        scene.opened() as supervisor,
        await supervisor.lease(replace(wanted(), model="fast")),
    ):
        (server,) = scene.backend.servers
        assert server.command == ("fake-server", *ARGS, "--jinja", "-c", "2048", "--lora", "/a.gguf")
        (part,) = supervisor.plan()["models"]
        assert "proven with the server arguments" in part["notes"][0]
        assert json.dumps([o.aliases for o in supervisor.offered()]) == '[["fast"], []]'
