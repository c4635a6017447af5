"""The supervisor with a real `mlx_lm.server`: drafting goes with the request, whatever its client wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from autospec.backends.mlx.backend import Mlx
from autospec.backends.protocol import Completion, Request
from autospec.backends.streamed import StreamedClient
from autospec.catalog.scan import scan
from autospec.cells import Cell, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.hardware import identify
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.serving.dispatch import Lease, RouteRequest
from autospec.settings import Settings, load_settings
from autospec.store.database import open_store
from tests.backends.installed import installed
from tests.serving.scene import prompt_of
from tests.serving.test_real_servers import opened

DEADLINE_S = 240.0
# What a client may write: a model by another name, a draft of its own, and what it knows of drafting.
CLIENTS = {"model": "main", "draft_model": "someone/elses", "num_draft_tokens": 9}
QUESTION = Request(
    messages=({"role": "user", "content": "Say something."},), max_tokens=8, timeout_s=DEADLINE_S
)


@pytest.fixture
def settings(tmp_path: Path, lab_models, monkeypatch) -> Settings:
    """A home with one MLX main model and a draft that is always right."""
    installed(Mlx(load_settings().state_dir))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    models = tmp_path / "models"
    models.mkdir()
    (models / "main").symlink_to(lab_models.mlx_slow_tiny)
    (models / "draft").symlink_to(lab_models.mlx_tiny)
    return load_settings(overrides={"model_dirs": [models]})


def enable(settings: Settings, prompt_type: PromptType, n_max: int) -> Drafting:
    """Store a recommendation, as a tune would; returns its drafting."""
    catalog, hardware = scan(settings), identify()
    model, draft = catalog.find("main"), catalog.find("draft")
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft.path), n_max=n_max)
    build = Mlx(settings.state_dir).capabilities().build
    cell = Cell(model.ref, prompt_type, build, hardware, ())
    found = Recommendation(
        model.name, str(model.path), "mlx", build.version, prompt_type, Verdict.ENABLE, drafting, drafting,
        20.0, 60.0, 3.0, (2.0, 4.0), 8, 0.9, "Because.", Status.PROVEN, "2026-11-20T10:00:00+00:00",
        {"settings": []},
    )  # fmt: skip
    store = open_store(settings.storage)
    store.save_recommendation(found, hardware, cell)
    store.close()
    return drafting


async def ask(lease: Lease) -> Completion:
    """One answer of a leased server, asked as the proxy asks it; mlx_lm.server tells counts where it streams."""
    client = StreamedClient(lease.base_url, "mlx_lm.server", lambda _: None, lambda _: ())
    try:
        return await asyncio.to_thread(client.complete, QUESTION, {**CLIENTS, **lease.fields})
    finally:
        client.close()


def drafts(answer: Completion) -> tuple[int | None, int | None]:
    """Drafted and accepted tokens."""
    return answer.drafted, answer.accepted


@pytest.mark.slow
def test_one_launch_serves_every_prompt_type_with_its_own_drafting(settings):
    """Four tokens for coding, two for mathematics, none for what was never tuned: one process, the same text."""
    coding = enable(settings, PromptType.CODING, 4)
    maths = enable(settings, PromptType.MATH, 2)

    async def scenario():
        async with opened(settings) as supervisor:
            texts, told, places = set(), {}, set()
            for kind in (PromptType.CODING, PromptType.MATH, PromptType.CHAT, PromptType.CODING):
                async with (
                    asyncio.timeout(DEADLINE_S),
                    await supervisor.lease(RouteRequest("main", prompt_of(kind))) as lease,
                ):
                    answer = await ask(lease)
                told[kind] = (lease.drafting, drafts(answer))
                texts.add(answer.text)
                places.add(lease.base_url)
            # Eight tokens, all of them proposed rightly: 4 + 3, 2 + 2 + 2, none.
            assert told[PromptType.CODING] == (coding, (7, 7))
            assert told[PromptType.MATH] == (maths, (6, 6))
            assert told[PromptType.CHAT] == (OFF, (0, 0))
            assert len(texts) == len(places) == 1

    asyncio.run(scenario())


def test_without_drafting_a_client_brings_no_draft(settings):
    """Nothing was tuned: the launch has its prompt cache, and no draft is loaded whatever the request names."""

    async def scenario():
        async with opened(settings) as supervisor:
            async with (
                asyncio.timeout(DEADLINE_S),
                await supervisor.lease(RouteRequest("main", prompt_of(PromptType.CODING))) as lease,
            ):
                first, second = await ask(lease), await ask(lease)
            assert lease.drafting == OFF
            assert drafts(first) == drafts(second) == (0, 0)
            assert first.text == second.text != ""

    asyncio.run(scenario())
