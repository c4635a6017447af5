"""What prediction knew, for `explain`: acceptance by position, cost curve, break-even, expected against measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from autospec.catalog.model import Model
from autospec.drafting import Drafting
from autospec.recommendations import Recommendation
from autospec.report.words import percent
from autospec.tuning.ruled_out import ruled_out_because

__all__ = ["forecast_sentences", "machine_sentences"]

# Places of a draft and sizes of a batch that are worth a number in a sentence.
_PLACES = (1, 2, 4, 8, 16, 24)
# A share of its bytes by which twice the tokens cost more: above it, verifying is no longer bound by reading weights.
_NEARLY_FREE = 0.10


def forecast_sentences(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """What was predicted of the drafting that was tried, and of those that were never launched.

    Args:
        r: The recommendation; its evidence holds what `autospec.tuning.forecast` wrote.
        figures: Gets the entry ``prediction``, as it stands in the evidence.
    """
    prediction = r.evidence.get("prediction")
    if not isinstance(prediction, Mapping):
        return []
    figures["prediction"] = dict(prediction)
    lines = []
    if "expected" in prediction:
        lines += [_expected(r, prediction), *_by_position(prediction), *_curve(prediction)]
    lines += [*map(_checked, prediction.get("checks", ()))]
    lines += [*map(_ruled_out, prediction.get("ruled_out", ()))]
    return lines


def machine_sentences(
    r: Recommendation, figures: dict[str, Any], model: Model | None, fast_tps: float
) -> list[str]:
    """The founding record's reasons in this machine's numbers: bandwidth, experts, how fast it was already.

    Args:
        r: The recommendation.
        figures: What is known already; gets ``bandwidth_bytes_per_s``.
        model: The main model's metadata; ``None`` where it is not here.
        fast_tps: Tokens per second above which a main model leaves little to gain.
    """
    lines = []
    prediction = figures.get("prediction", {})
    token_ms = figures.get("ms_per_token_off") or prediction.get("token_ms")
    if model is not None and token_ms:
        speed = model.bytes_per_token / (token_ms / 1000.0)
        figures["bandwidth_bytes_per_s"] = round(speed)
        kind = (
            f"a mixture of experts that reads {model.active_experts} of {model.experts} experts for a token"
            if model.is_moe
            else "a dense model that reads all its weights for every token"
        )
        lines.append(
            f"It is {kind}: {model.bytes_per_token / 1e9:.2f} GB in {token_ms:.1f} ms, which is {speed / 1e9:.1f} GB/s."
            + (
                " Tokens verified together read more experts, which makes proposals dearer than in a dense model."
                if model.is_moe
                else ""
            )
        )
    elif r.evidence.get("about"):
        lines.append(f"The model: {r.evidence['about']}.")
    if r.baseline_tps and r.baseline_tps > fast_tps and r.verdict != "enable":
        lines.append(
            f"At {r.baseline_tps:.0f} tok/s a token takes {1000 / r.baseline_tps:.0f} ms without drafting: proposing and"
            " verifying must be paid out of that. Drafting tends to help models that are slower."
        )
    return lines


def _expected(r: Recommendation, prediction: Mapping[str, Any]) -> str:
    low, high = prediction["interval"]
    text = f"Predicted on the tune prompts: {percent(prediction['expected'])} ({percent(low)} to {percent(high)})"
    if r.speedup is not None:
        text += f"; measured on the others: {percent(r.speedup)}"
    return f"{text}."


def _by_position(prediction: Mapping[str, Any]) -> list[str]:
    places: Sequence[float] = prediction.get("acceptance_by_position") or ()
    if not places:
        return []
    shown = ", ".join(f"{k}: {places[k - 1]:.0%}" for k in _PLACES if k <= len(places))
    return [f"Cycles in which the proposal at each place was accepted: {shown}."]


def _curve(prediction: Mapping[str, Any]) -> list[str]:
    verify: Sequence[float] = prediction.get("verify_ms") or ()
    token_ms = prediction.get("token_ms")
    if len(verify) < 2 or not token_ms:
        return []
    shown = ", ".join(f"{k}: {verify[k]:.1f} ms" for k in (0, *_PLACES) if k < len(verify))
    both = " in both models" if prediction.get("step_ms") else ""
    text = f"A token alone takes {token_ms:.1f} ms; verifying so many proposals{both}: {shown}"
    if step := prediction.get("step_ms"):
        text += f"; the draft takes {step:.1f} ms for each"
    rise = verify[1] / verify[0] - 1.0 if verify[0] else 0.0
    bound = (
        "One more token in a batch is nearly free here, as in a model that waits for its weights."
        if rise < _NEARLY_FREE
        else f"The first proposal alone adds {rise:.0%} to a pass: computing counts here, not only reading weights."
    )
    even = prediction.get("break_even")
    lines = [f"{text}.", bound]
    if refused := prediction.get("not_corrected"):
        lines.append(str(refused))
    if even is not None and even <= 1:
        lines.append(f"With {len(verify) - 1} proposals a pass, it breaks even at {even:.0%} accepted.")
    elif even is not None:
        lines.append(f"With {len(verify) - 1} proposals a pass, it could not pay if all were accepted.")
    return lines


def _checked(check: Mapping[str, Any]) -> str:
    drafting = Drafting.understood(dict(check["drafting"]))
    label = "an unknown mode" if drafting is None else drafting.label
    text = f"Launched {label}: predicted {check['predicted']:.2f}×, measured {check['measured']:.2f}×"
    return f"{text}." if check["agrees"] else f"{text}; prediction was not trusted for it after that."


def _ruled_out(found: Mapping[str, Any]) -> str:
    name = PurePath(str(found["arm"])).name
    best_case = f"best case {percent(found['best_case'])} ({found['prompt_type']})"
    return f"Never launched: {name}; {best_case}, {ruled_out_because(found)}."
