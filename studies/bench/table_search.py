"""Searches simulated on a table of measurements: the launches that each would have made, and the quality of its choice.

autospec's own forecast against TPE, random search, and TPE on unpaired speeds of one prompt (like llama-optimus 0.1.9). The others
count until their best-so-far is within 2 % of the table's best, in the median of 50 seeds, though they do not know it. For
autospec the table has both: when its choice was first that good, and when its search ended by its own rule.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import optuna

from autospec.drafting import OFF, Drafting
from autospec.measure.measurements import Pair
from autospec.predict.predictor import Predictor
from autospec.tuning.forecast import Forecast
from autospec.tuning.space import Arm
from autospec.tuning.winners import choose_winners

Table = Mapping[Drafting, tuple[Sequence[Pair], float]]
_GOOD = 0.98
_SEEDS = 50
_THRESHOLD = 0.02


def print_searches(fresh: Callable[[], Predictor], table: Table, survey_s: float) -> None:
    """Print launches and seconds for each prompt type; the table has each drafting's pairs and their seconds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    print("\n| type | way | launches with drafting | seconds | choice | reached |\n|---|---|---|---|---|---|")
    types = list(dict.fromkeys(p.off.cell_key for pairs, _ in table.values() for p in pairs))
    for prompt_type in types:
        own = {d: [p for p in pairs if p.off.cell_key == prompt_type] for d, (pairs, _) in table.items()}
        ratios = {d: math.exp(statistics.fmean(p.log_ratio for p in pairs)) for d, pairs in own.items()}
        seconds = {d: spent / len(types) for d, (_, spent) in table.items()}
        best = max(1.0, *ratios.values())
        choices, launched = _forecast(fresh(), prompt_type, own)
        chosen = choices[-1]
        reached = ratios.get(chosen, 1.0) / best
        good = next((n for n, c in enumerate(choices) if ratios.get(c, 1.0) >= _GOOD * best), None)
        first = "never" if good is None else str(good)
        spent = survey_s / len(types) + sum(seconds[d] for d in launched)
        print(
            f"| {prompt_type} | autospec | {first}, over after {len(launched)} | {spent:.0f} | {chosen.label} "
            f"| {reached:.3f} |"
        )
        speeds = {d: pairs[0].drafted.decode_tps for d, pairs in own.items()}
        ways: dict[str, tuple[Callable[[int], Any], Mapping[Drafting, float], float]] = {
            "TPE": (_tpe, ratios, 1.0),
            "random": (lambda seed: optuna.samplers.RandomSampler(seed=seed), ratios, 1.0),
            "as llama-optimus": (_tpe, speeds, next(iter(own.values()))[0].off.decode_tps),
        }
        for name, (sampler, values, off) in ways.items():
            runs = [_sampled(sampler(seed), values, off, ratios, best) for seed in range(_SEEDS)]
            counts = [len(r) for r in runs]
            times = [sum(seconds[d] for d in r) for r in runs]
            print(
                f"| {prompt_type} | {name} | {statistics.median(counts):.0f} (to {max(counts)}) "
                f"| {statistics.median(times):.0f} | | {_GOOD} |"
            )


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


def _forecast(
    predictor: Predictor, prompt_type: str, own: Mapping[Drafting, Sequence[Pair]]
) -> tuple[list[Drafting], list[Drafting]]:
    """Autospec's choice before any launch and after each, and its launches."""
    arms = {d: Arm(d.mode, d.draft) for d in own}
    space = SimpleNamespace(
        grid=lambda: list(own), arm_of=arms.get, arms=tuple(dict.fromkeys(arms.values())), combines=False
    )
    forecast = Forecast(predictor, space, _THRESHOLD, lambda _: None)
    cell = SimpleNamespace(
        cell=SimpleNamespace(key=prompt_type), prompt_type=prompt_type, trial_values={}, winner=OFF
    )
    launched: list[Drafting] = []
    choices = [_choice(cell, space, forecast)]
    while (drafting := forecast.next([cell], set(launched))) is not None:
        launched.append(drafting)
        cell.trial_values[drafting] = math.exp(statistics.fmean(p.log_ratio for p in own[drafting]))
        forecast.observe(drafting, {prompt_type: own[drafting]})
        choices.append(_choice(cell, space, forecast))
    return choices, launched


def _choice(cell: Any, space: Any, forecast: Forecast) -> Drafting:
    choose_winners([cell], space, _THRESHOLD, forecast)
    expected = forecast.expected(cell, cell.winner) if not cell.winner.is_off else None
    return cell.winner if expected is not None and expected > 1.0 else OFF


def _sampled(
    sampler: optuna.samplers.BaseSampler,
    values: Mapping[Drafting, float],
    off: float,
    ratios: Mapping[Drafting, float],
    best: float,
) -> list[Drafting]:
    """The draftings that a sampler launches until its best-so-far is good, or the whole table."""
    launched: list[Drafting] = []
    chosen, value = OFF, off
    for drafting, tell in _proposals(sampler, list(values)):
        if ratios.get(chosen, 1.0) >= _GOOD * best or len(launched) == len(values):
            break
        if drafting not in launched:
            launched.append(drafting)
        tell(values[drafting])
        if values[drafting] > value:
            chosen, value = drafting, values[drafting]
    return launched


def _proposals(
    sampler: optuna.samplers.BaseSampler, draftings: Sequence[Drafting]
) -> Iterator[tuple[Drafting, Callable[[float], None]]]:
    """Endless proposals: an arm, then its numbers as positions on the table's ladders."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    arms: dict[str, list[Drafting]] = {}
    for d in draftings:
        arms.setdefault(Arm(d.mode, d.draft).label, []).append(d)
    for _ in range(20 * len(draftings)):
        trial = study.ask()
        left = arms[trial.suggest_categorical("arm", sorted(arms))]
        for name in ("n_max", "p_min", "ngram_n", "ngram_m"):
            ladder = sorted({v for d in left if (v := getattr(d, name)) is not None})
            if len(ladder) > 1:
                place = trial.suggest_int(f"{left[0].mode}.{name}.{len(ladder)}", 0, len(ladder) - 1)
                left = [d for d in left if getattr(d, name) == ladder[place]]
        yield left[0], lambda value, trial=trial: study.tell(trial, value)
