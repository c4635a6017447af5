"""Settings of one model on a native llama-server: images with drafting, adapters, and the preset that is exported."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from autospec.backends.llama_cpp.server import LlamaServer
from autospec.catalog.scan import scan
from autospec.cells import Cell, PromptType
from autospec.cli import cli
from autospec.drafting import Drafting, Mode
from autospec.hardware import identify
from autospec.proxy.serve import open_supervisor
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.serving.dispatch import RouteRequest
from autospec.settings import Settings, load_settings
from autospec.store.database import open_store
from autospec.tuning.request import prepare
from autospec.tuning.resume import with_basis
from tests.catalog.making import write_adapter, write_projector
from tests.serving.scene import prompt_of

WANTED = RouteRequest("fast", prompt_of(PromptType.CODING), images=True)


def png(side: int = 56) -> bytes:
    """A picture with a gradient."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(v for x in range(side) for v in (4 * x, 4 * y, 128)) for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def ask(base_url: str, model: str = "") -> dict[str, Any]:
    """The answer to a question with a picture."""
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    parts = [{"type": "text", "text": "Describe it."}, {"type": "image_url", "image_url": {"url": url}}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 24,
        "temperature": 0,
    }
    answer = httpx.post(
        f"{base_url}/v1/chat/completions", json={**body, "ignore_eos": True}, timeout=90, trust_env=False
    )
    return answer.raise_for_status().json()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab_models, llama_server_binary) -> Settings:
    """A home with one model, a projector beside it, and a section for it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path))
    models = tmp_path / "models"
    models.mkdir()
    (models / "main.gguf").symlink_to(lab_models.smollm2)
    width = scan(load_settings(overrides={"model_dirs": [models]})).find("main").embedding_length
    write_projector(models / "mmproj-main-F32.gguf", width)
    write_adapter(tmp_path / "a.gguf", width)
    (tmp_path / "config.toml").write_text(
        f"""
        model_dirs = ["models"]
        llama_server = "{llama_server_binary}"
        backend = "llama-server"
        study = "quick"
        [models."main"]
        server_args = ["-t", "1"]
        context_tokens = 1024
        lora = [{{path = "a.gguf", scale = 0.5}}]
        aliases = ["fast"]
        """,
        "utf-8",
    )
    return load_settings()


def remember(settings: Settings, drafting: Drafting, **more: Any) -> None:
    """Store a recommendation as a tune of this model would, with more evidence."""
    request, hardware = prepare(settings, "main"), identify()
    backend = LlamaServer(Path(settings.llama_server), settings.state_dir)
    build = backend.capabilities().build
    measured = request.settings()
    cell = Cell(request.model.ref, PromptType.CODING, build, hardware, measured.args)
    path = str(request.model.path)
    evidence = {
        "args": list(backend.drafting_args(path, drafting, measured)),
        "command": list(backend.command(path, drafting, measured)),
        "settings": list(measured.args),
        **more,
    }
    found = Recommendation(
        "main", path, "llama-server", build.version, PromptType.CODING, Verdict.ENABLE, drafting, drafting,
        20.0, 60.0, 3.0, (2.0, 4.0), 8, 0.9, "Because.", Status.PROVEN, "2026-11-20T10:00:00+00:00", evidence,
    )  # fmt: skip
    based = with_basis(found, cell, None, user_settings=request.args, model_settings=request.model_args)
    store = open_store(settings.storage)
    store.save_recommendation(based, hardware, cell)
    store.close()


@pytest.mark.parametrize("mode", [Mode.DRAFT_MODEL, Mode.NGRAM_MOD])
def test_an_image_is_answered_with_drafting(settings: Settings, lab_models, mode: Mode):
    """The projector that lies beside the model is loaded, with the section's adapter and context, and what was proven drafts."""
    drafted = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.bad_draft), n_max=4, n_min=0, p_min=0.0)
    drafting = drafted if mode is Mode.DRAFT_MODEL else Drafting(mode, ngram_n=4, n_max=8, n_min=0)
    remember(settings, drafting)

    async def scenario() -> None:
        async with await open_supervisor(settings) as supervisor, await supervisor.lease(WANTED) as lease:
            assert lease.drafting == drafting
            command = list(lease.launch.server.command)
            for word in ("--mmproj", "--lora-scaled", "-c"):
                assert word in command
            assert not {"--parallel", "--cache-ram", "--slots", "--slot-save-path"} & set(command)
            timings = (await asyncio.to_thread(ask, lease.base_url))["timings"]
            assert timings["predicted_n"] == 24
            if mode is Mode.DRAFT_MODEL:
                assert timings["draft_n"] > 0
            (adapter,) = await asyncio.to_thread(_get, f"{lease.base_url}/lora-adapters")
            assert (Path(adapter["path"]).name, adapter["scale"]) == ("a.gguf", 0.5)

    asyncio.run(scenario())


def test_the_exported_preset_is_read_by_llama_server(settings: Settings, lab_models, router_by_hand):
    """Its router loads the section by its alias, with the projector, the adapters, the context and the drafting."""
    config = settings.config_file
    text = config.read_text("utf-8").replace(
        "aliases", 'mmproj = "models/mmproj-main-F32.gguf"\n        aliases'
    )
    config.write_text(text.replace("lora = [{", 'lora = ["b.gguf", "c.gguf", {'), "utf-8")
    for name in ("b", "c"):
        shutil.copy(config.parent / "a.gguf", config.parent / f"{name}.gguf")
    settings = load_settings()
    remember(
        settings, Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.bad_draft), n_max=4, n_min=0, p_min=0.0)
    )
    exported = CliRunner().invoke(cli, ["recommend", "-m", "fast", "--json", "--format", "preset"])
    document = json.loads(exported.stdout)
    assert (document["format"], document["left_out"]) == ("preset", [])
    base_url = router_by_hand(document["text"])
    timings = ask(base_url, "fast")["timings"]
    assert timings["draft_n"] > 0
    adapters = _get(f"{base_url}/lora-adapters?model=main-coding")
    assert {Path(a["path"]).name: a["scale"] for a in adapters} == {
        "a.gguf": 0.5,
        "b.gguf": 1.0,
        "c.gguf": 1.0,
    }
    assert (
        "\nc = 1024\n" in document["text"]
    )  # the router was started with another context, which beats the file's
    args = CliRunner().invoke(cli, ["recommend", "-m", "fast", "--format", "args"]).stdout.split()
    assert args[:4] == ["-t", "1", "-c", "1024"]
    assert "--lora" in args


def _get(url: str) -> Any:
    return httpx.get(url, timeout=30, trust_env=False).raise_for_status().json()
