"""Recommendations and measurements to report on, as a tune would store them."""

from __future__ import annotations

from typing import Any

from autospec.cells import Hardware, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import Measurement, Phase
from autospec.recommendations import Recommendation, Status, StoredRecommendation, Verdict

HERE = Hardware("test-chip-16g-abc123", "Test Chip", 16 * 2**30)
ELSEWHERE = Hardware("other-chip-64g-def456", "Other Chip", 64 * 2**30)
DRAFTING = Drafting(Mode.DRAFT_MODEL, draft="/models/draft.gguf", n_max=8, n_min=0, p_min=0.6)
ARGS = ["--spec-type", "draft-simple", "--spec-draft-model", "/models/draft.gguf", "--spec-draft-n-max", "8"]


def recommendation(verdict: Verdict = Verdict.ENABLE, **changes: Any) -> Recommendation:
    """One for coding on a model `Main-7B-Q4_K_M`; keywords replace fields."""
    enabled = verdict is Verdict.ENABLE
    fields: dict[str, Any] = {
        "model": "Main-7B-Q4_K_M",
        "model_path": "/models/Main-7B-Q4_K_M.gguf",
        "backend": "llama-server",
        "backend_build": "b11434",
        "prompt_type": PromptType.CODING,
        "verdict": verdict,
        "drafting": DRAFTING if enabled else OFF,
        "tried": DRAFTING,
        "baseline_tps": 14.7,
        "drafting_tps": 19.2 if enabled else 12.0,
        "speedup": 1.306 if enabled else 0.816,
        "speedup_ci": (1.25, 1.36) if enabled else (0.79, 0.84),
        "pairs": 12,
        "acceptance": 0.61,
        "reason": "drafting is +30.6 % (+25.0 % to +36.0 %) over off"
        if enabled
        else "the best found is slower",
        "status": Status.PROVEN,
        "created_at": "2026-11-20T10:00:00+00:00",
        "evidence": {
            "args": ARGS,
            "command": ["/opt/llama-server", "-m", "x"],
            "settings": ["-ngl", "99", "-c", "4096"],
            "user_settings": ["-ngl", "99"],
        },
    }
    return Recommendation(**{**fields, **changes})


def stored(r: Recommendation, hardware: Hardware = HERE, key: str = "") -> StoredRecommendation:
    """The recommendation as the store gives it back."""
    return StoredRecommendation(key or f"{r.model}{r.prompt_type}{r.backend}{hardware.id}"[:60], hardware, r)


def measurement(*, with_drafting: bool, prompt: str = "p1", **changes: Any) -> Measurement:
    """Half of a pair: 100 tokens in 10 s without drafting, in 6 s with 60 of 80 proposals accepted."""
    fields: dict[str, Any] = {
        "cell_key": "aaaabbbbcccc",
        "protocol": "proto",
        "phase": Phase.PROVE,
        "round": 0,
        "drafting": DRAFTING if with_drafting else OFF,
        "compared": DRAFTING,
        "prompt_id": prompt,
        "launch_id": "launch-drafted" if with_drafting else "launch-off",
        "position": int(with_drafting),
        "started_at": 1000.0 + with_drafting,
        "prompt_tokens": 50,
        "predicted_tokens": 100,
        "prompt_ms": 300.0 if with_drafting else 200.0,
        "predicted_ms": 6000.0 if with_drafting else 10000.0,
        "wall_ms": 6300.0 if with_drafting else 10200.0,
        "drafted": 80 if with_drafting else 0,
        "accepted": 60 if with_drafting else 0,
        "text_digest": "same",
    }
    return Measurement(**{**fields, **changes})
