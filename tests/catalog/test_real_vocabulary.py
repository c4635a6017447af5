"""A real llama-server speculates with exactly the drafts that the vocabulary rule allows."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autospec.catalog.gguf import read_gguf
from autospec.catalog.vocabulary import vocabulary_mismatch
from tests.lab.rewrite import Parts, Planned, read_parts, write_gguf

READY_S = 60.0


def variant(parts: Parts, out: Path, *, token: int | None = None, more: int = 0, **keys: Any) -> Path:
    """A copy with another vocabulary: one text changed, tokens added, or other keys of the tokenizer."""
    tokens = list(parts.metadata["tokenizer.ggml.tokens"][0])
    kinds = list(parts.metadata["tokenizer.ggml.token_type"][0])
    if token is not None:
        tokens[token] = "<changed>"
    tokens += [f"<extra{i}>" for i in range(more)]
    changes = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds + [1] * more,
        "llama.vocab_size": len(tokens),
        **{f"tokenizer.ggml.{k}": v for k, v in keys.items()},
    }
    write_gguf(out, parts, [_with_rows(t, more) for t in parts.tensors.values()], changes)
    return out


def _with_rows(tensor: Planned, more: int) -> Planned:
    if not more or tensor.name not in ("token_embd.weight", "output.weight"):
        return tensor
    shape = (tensor.shape[0] + more, *tensor.shape[1:])
    return dataclasses.replace(
        tensor, shape=shape, data=lambda: np.concatenate([tensor.data(), tensor.data()[:more]])
    )


def speculates(binary: Path, main: Path, draft: Path) -> bool:
    """Start a server with the pair and ask its slot; a server that refuses to start does not speculate."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "-m", main, "-md", draft, "--spec-type", "draft-simple", "-c", "512", "-t", "1"]
    command += ["--port", str(port), "--slots", "--no-warmup"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                server.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
            else:
                return False
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    pass
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/slots", timeout=5) as answer:
                    return bool(json.load(answer)[0]["speculative"])
            except (urllib.error.URLError, OSError):
                continue
        pytest.fail(f"the server was not ready after {READY_S} s")
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def tiny(lab_models) -> Parts:
    """The smallest draft of the lab, taken apart once."""
    return read_parts(lab_models.tiny)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ({"add_bos_token": None, "pre": "llama-bpe"}, False),
        ({"eos_token_id": 0, "token": 4, "more": 128}, True),
        ({"token": 5}, False),
        ({"more": 129}, False),
    ],
)
def test_the_server_agrees(
    lab_models, tiny: Parts, llama_server_binary: Path, tmp_path: Path, case: tuple[dict[str, Any], bool]
) -> None:
    """What fits by the catalogue speculates, and what does not fit does not."""
    changes, fits = case
    usage = subprocess.run(
        [llama_server_binary, "--help"], capture_output=True, text=True, check=False
    ).stdout
    if "draft-simple" not in usage:
        pytest.skip("this llama-server is of another era")
    draft = variant(tiny, tmp_path / "draft.gguf", **changes)
    assert (vocabulary_mismatch(read_gguf(lab_models.smollm2), read_gguf(draft)) == "") is fits
    assert speculates(llama_server_binary, lab_models.smollm2, draft) is fits
