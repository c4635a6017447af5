"""The estimate of `autospec estimate` against what was measured: lab models, a database of tunes, and public reports.

Run: ``python -m studies.bench.estimate [--model PATH]… [--database PATH]… [--no-reports]``

`--model` launches a model of this disk without drafting, on one core, and takes the processor time of its tokens and batches: other
programs disturb that little. `--database` takes what tunes have
measured: the cost curves of the recommendations whose model and draft are still on the disk. Both are compared with an estimate
for this machine's processor. Public reports come from ``studies/bench/estimate_reports.toml``, for the GPU that each names.

Every line has predicted ÷ measured. The last lines say how often the sign of a gain agrees and how large the errors are.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

from autospec.backends.protocol import LaunchSettings, Request, Server
from autospec.backends.registry import backend_for
from autospec.catalog.model import Model
from autospec.catalog.scan import scan
from autospec.drafting import OFF
from autospec.errors import AutospecError
from autospec.hardware import identify
from autospec.hardware.bandwidth import Speeds, known, measure
from autospec.predict.costs import break_even_of
from autospec.predict.estimate import Reads, Steps, cycle_ms, pass_s, read_weights, reads_of
from autospec.settings import Settings, load_settings
from autospec.store.reader import read_recommendations

REPORTS = Path(__file__).with_name("estimate_reports.toml")
PROMPT = "Write a function that sorts a list of numbers, and explain each of its steps in a sentence."
BATCHES = (2, 4, 8, 12)
REPEATS = 4
DEPTH = 128


@dataclass(frozen=True, slots=True)
class Errors:
    """Predicted ÷ measured of one kind of figure."""

    name: str
    ratios: tuple[float, ...]

    def __str__(self) -> str:
        if not self.ratios:
            return f"{self.name}: nothing to compare."
        logs = sorted(abs(math.log(r)) for r in self.ratios)
        typical, worst = math.exp(statistics.median(logs)), math.exp(logs[-1])
        middle = math.exp(statistics.fmean(math.log(r) for r in self.ratios))
        return (
            f"{self.name}: {len(self.ratios)} figures, predicted ÷ measured {middle:.2f} on average;"
            f" off by a factor of {typical:.2f} at the median and {worst:.2f} at worst."
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--database", action="append", default=[])
    parser.add_argument("--no-reports", action="store_true")
    args = parser.parse_args()
    settings = load_settings()
    errors = []
    if args.model:
        one_core = measure(replace(identify(), cores=1))
        print(one_core.words)
        errors += _models(args.model, settings, one_core)
    if args.database:
        speeds = measure(identify())
        print(speeds.words)
        errors += _databases(args.database, settings, speeds)
    errors += [] if args.no_reports else _reports()
    print()
    for line in errors:
        print(line)


def _models(paths: Sequence[str], settings: Settings, speeds: Speeds) -> list[Errors]:
    print(
        "\n## Models on one core: predicted and measured ms for one token, and predicted ÷ measured of batches\n"
    )
    print("| model | one token | ÷ | " + " | ".join(f"{k} tokens ÷" for k in BATCHES) + " |")
    print("|---|---|---|" + "---|" * len(BATCHES))
    ones, rises = [], []
    for path in paths:
        model = scan(settings, beside=[path]).find(path)
        try:
            one_ms, batches = _timed(path, settings)
        except AutospecError as error:
            print(f"| {model.name} | {error.message} |")
            continue
        reads = reads_of(model, read_weights(model), DEPTH)
        # A timed batch multiplies only its last token with the output matrix.
        inner = replace(reads, flops_per_token=reads.flops_per_token - _output_flops(model))
        predicted = {k: 1000.0 * (pass_s(inner, speeds, k) or math.nan) for k in (1, *BATCHES)}
        # A request costs something besides: the rise over one token is compared.
        measured = {k: ms - batches[1] + one_ms for k, ms in batches.items()}
        one = 1000.0 * (pass_s(reads, speeds, 1) or math.nan)
        ratios = {k: (predicted[k] - predicted[1] + one) / measured[k] for k in BATCHES}
        ones.append(one / one_ms)
        rises += ratios.values()
        cells = " | ".join(f"{ratios[k]:.2f}" for k in BATCHES)
        print(f"| {model.name} | {one:.1f} / {one_ms:.1f} | {one / one_ms:.2f} | {cells} |")
    return [
        Errors("Lab models, one token", tuple(ones)),
        Errors("Lab models, batches of several tokens", tuple(rises)),
    ]


def _output_flops(model: Model) -> float:
    """Operations of the output matrix for one token, by its share of the bytes that are read."""
    weights = read_weights(model)
    return 2.0 * weights.multiplied * weights.output_bytes / max(model.bytes_per_token, 1)


def _timed(path: str, settings: Settings) -> tuple[float, dict[int, float]]:
    """Milliseconds of processor time for one token and for batches, on one core."""
    backend = backend_for(None, settings)
    server = backend.launch(path, OFF, LaunchSettings(args=("-c", "1024", "-t", "1", "-tb", "1")))
    try:
        assert server.tokens is not None, "this backend cannot be asked in tokens"
        asked = Request(messages=({"role": "user", "content": PROMPT},), max_tokens=1, ignore_eos=True)
        ids = server.tokens.encode(asked)
        text = server.tokens.generate(ids, replace(asked, max_tokens=64)).ids
        tokens = server.tokens
        # What 33 tokens cost more than one is the time of 32.
        first = _least(server, lambda: tokens.generate(ids, asked))
        more = _least(server, lambda: tokens.generate(ids, replace(asked, max_tokens=33)))
        # Starts differ, or the cache would answer the second time.
        starts = cycle(range(8))
        batches = {
            k: _least(server, lambda k=k: tokens.batch_ms(ids, text[next(starts) :][:k]))
            for k in (1, *BATCHES)
        }
        return (more - first) / 32, batches
    finally:
        server.stop()


def _least(server: Server, ask: Callable[[], object]) -> float:
    """The least of several: milliseconds of processor time that the server took for a request."""
    found = []
    for _ in range(REPEATS):
        before = _busy_ms(server)
        ask()
        found.append(_busy_ms(server) - before)
    return min(found)


def _busy_ms(server: Server) -> float:
    """Processor time of the server's processes so far."""
    return 1000.0 * sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in server.pids)


def _databases(paths: Sequence[str], settings: Settings, speeds: Speeds) -> list[Errors]:
    print("\n## What tunes measured: ms for a token, a cycle's cost in tokens, break-even\n")
    print("| model | draft | token ms | ÷ | n | cost of a cycle | ÷ | break-even |")
    print("|---|---|---|---|---|---|---|---|")
    ones, costs, evens = [], [], []
    printed: set[str] = set()
    for path in paths:
        for stored in read_recommendations(f"sqlite:///{path}"):
            row = _cell(stored.recommendation, settings, speeds)
            # Prompt types of one tune have one cost curve.
            if row is None or row[3] in printed:
                continue
            one, cost, even, text = row
            printed.add(text)
            print(text)
            ones.append(one)
            costs.append(cost)
            evens.append(even)
    apart = f"Tunes, break-even: {statistics.median(evens):.0%} apart at the median." if evens else ""
    print(f"\n{apart}" if apart else "\nNo cell has a measured cost curve and its files on this disk.")
    return [Errors("Tunes, one token", tuple(ones)), Errors("Tunes, cost of a cycle", tuple(costs))]


def _cell(r: Any, settings: Settings, speeds: Speeds) -> tuple[float, float, float, str] | None:
    """One cell's comparison; ``None`` if it has no cost curve, or its files are gone."""
    found = r.evidence.get("prediction") or {}
    verify, token_ms = found.get("verify_ms"), found.get("token_ms")
    if not verify or not token_ms or not Path(r.model_path).exists():
        return None
    main_model = scan(settings, beside=[r.model_path]).find(r.model_path)
    reads = reads_of(main_model, read_weights(main_model), DEPTH)
    steps, name = None, "n-gram"
    if r.tried.draft:
        if not Path(r.tried.draft).exists():
            return None
        draft = scan(settings, beside=[r.tried.draft]).find(r.tried.draft)
        steps, name = Steps(reads_of(draft, read_weights(draft), DEPTH)), draft.name
    n = len(verify) - 1
    one = 1000.0 * (pass_s(reads, speeds, 1) or math.nan)
    curve = cycle_ms(steps, reads, speeds, n)
    predicted = float(curve.verify_ms[n] + n * curve.step_ms) / curve.plain_ms
    measured = (verify[n] + n * (found.get("step_ms") or 0.0)) / token_ms
    even, was = curve.break_even(n), break_even_of(measured, n)
    text = (
        f"| {main_model.name} | {name} | {one:.1f} / {token_ms:.1f} | {one / token_ms:.2f} | {n} |"
        f" {predicted:.2f} / {measured:.2f} | {predicted / measured:.2f} | {even:.0%} / {was:.0%} |"
    )
    return one / token_ms, predicted / measured, abs(even - was), text


def _reports() -> list[Errors]:
    document = tomllib.loads(REPORTS.read_text("utf-8"))
    print("\n## Public reports: speed without drafting, gain, and what would break even\n")
    print("| source | pair | n | tok/s ÷ | gain measured | predicted | break-even |")
    print("|---|---|---|---|---|---|---|")
    speeds_off, gains, agree = [], [], []
    order: list[tuple[float, float]] = []
    for report in document["report"]:
        speeds = known(report["gpu"])
        assert speeds is not None, report["gpu"]
        reads = _reads(document["models"][report["main"]], report["main_bits"])
        draft = _reads(document["models"][report["draft"]], report["draft_bits"])
        n = report["n"]
        curve = cycle_ms(Steps(draft, again=report.get("again", False)), reads, speeds, n)
        off = 1000.0 / curve.plain_ms / report["without"]
        measured = report["with"] / report["without"]
        even = curve.break_even(n)
        speeds_off.append(off)
        order.append((even, measured))
        predicted = _gain(report, float(curve.verify_ms[n] + n * curve.step_ms) / curve.plain_ms, n)
        if predicted is not None:
            gains.append(predicted / measured)
            agree.append((predicted > 1.0) == (measured > 1.0))
        shown = "" if predicted is None else f"{predicted:.2f}"
        print(
            f"| {report['source']} | {report['main']} / {report['draft']} | {n} | {off:.2f} | {measured:.2f} | {shown} |"
            f" {even:.0%} |"
        )
    print(
        f"\nPublic reports that state how much was accepted: the sign of the gain agrees in {sum(agree)} of {len(agree)}."
        f"\nOrder: a report with a lower break-even gained more in {_concordant(order):.0%} of the pairs of reports with"
        " different ones."
    )
    return [
        Errors("Public reports, speed without drafting", tuple(speeds_off)),
        Errors("Public reports, gain where acceptance is known", tuple(gains)),
    ]


def _gain(report: dict[str, Any], cost: float, n: int) -> float | None:
    """The predicted gain for the acceptance that the report states; ``None`` if it states none."""
    if "text_share" in report:
        return min(1.0 / (1.0 - report["text_share"]), n + 1) / cost
    if "accepted" in report:
        return (1.0 + report["accepted"] * n) / cost
    return None


def _concordant(pairs: Sequence[tuple[float, float]]) -> float:
    """Share of pairs of reports whose order agrees: less acceptance needed, more gained."""
    compared = [
        (a[0] < b[0]) == (a[1] > b[1])
        for i, a in enumerate(pairs)
        for b in pairs[i + 1 :]
        if a[0] != b[0] and a[1] != b[1]
    ]
    return sum(compared) / len(compared) if compared else math.nan


def _reads(model: dict[str, Any], bits: float) -> Reads:
    experts, active = model.get("experts", 0), model.get("active", 0)
    routed = model.get("expert_billions", 0.0)
    share = active / experts if experts else 0.0
    return Reads(
        shared_bytes=model["billions"] * 1e9 * bits / 8,
        expert_bytes=routed * 1e9 * bits / 8,
        experts=experts,
        active_experts=active,
        flops_per_token=2e9 * (model["billions"] + routed * share),
        layers=model["layers"],
    )


if __name__ == "__main__":
    main()
