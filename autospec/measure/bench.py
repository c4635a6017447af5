"""The benchmark: one prompt, with and without drafting, a few runs each; and the comparison of such runs.

Every run has its own launch, because n-gram pools and replayed draft caches remember a repeated prompt. One server runs at a
time, so that models that fill the memory can be measured. The order reverses each round (off, A, B, B, A, off …), so that
slow warming favours no side. MLX runs in a child process without its server (`InProcess`), like its library's own benchmark.

Runs are not paired: conditions may have changed between them. The comparison is therefore Student's t on log speeds:

* Both sides repeated: Welch's interval, which allows different scatter on each side (B. L. Welch, *Biometrika* 34,
  1947, 28-35). In the founding record one group scatters twenty times more than another.
* One side is a single run: the scatter pooled over all repeated groups of the record, but at least `SINGLE_RUN_SD`.
* No group repeated: the noise is unknown, and there is no interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autospec.backends.protocol import Backend, Completion, LaunchSettings, Request, Server
from autospec.backends.registry import InProcess
from autospec.drafting import Drafting
from autospec.errors import RequestError
from autospec.hardware.state import StateWatch, disturbed

__all__ = [
    "REFERENCE_PROMPT",
    "SINGLE_RUN_SD",
    "Comparison",
    "Noise",
    "Run",
    "RunGroup",
    "compare_runs",
    "group_runs",
    "measure_runs",
    "pooled_noise",
    "run_order",
]


REFERENCE_PROMPT = "Escreva um Palindromo em Kotlin"
# The first request loads pages into memory. Its text differs from every benchmark's, so that drafting learns nothing
# of the answer from it.
_WARM_UP = Request(messages=({"role": "user", "content": "Name three colours."},), max_tokens=8)


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs of one drafting, measured here or taken from a record; what a record lacks is empty.

    `runs_tps` are the speeds of generation, one per run, `request_tps` those of whole requests. `about` describes the model.
    """

    backend: str
    build: str
    model: str
    drafting: Drafting
    runs_tps: tuple[float, ...]
    command: tuple[str, ...] = ()
    about: str = ""
    model_file: str = ""
    request_tps: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def mean_tps(self) -> float:
        """Geometric mean of the runs; ratios of speeds are compared."""
        return statistics.geometric_mean(self.runs_tps)


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one launch. `disturbance` is what disturbed the machine, as a sentence; empty if nothing did."""

    drafting: Drafting
    round: int
    launch_id: str
    command: tuple[str, ...]
    completion: Completion
    disturbance: str = ""

    @property
    def remark(self) -> str:
        """What a table shows beside the speed."""
        c = self.completion
        parts = [f"{c.predicted_tokens} tokens", f"prompt {c.prompt_ms:.0f} ms"]
        if c.drafted and c.accepted is not None:
            parts.append(f"{c.accepted} of {c.drafted} drafted tokens accepted, {c.accepted / c.drafted:.0%}")
        if self.disturbance:
            parts.append(f"disturbed: {self.disturbance[0].lower()}{self.disturbance[1:].rstrip('.')}")
        return ", ".join(parts)


def run_order(draftings: Sequence[Drafting], runs: int) -> list[tuple[int, Drafting]]:
    """Return (round, drafting) in running order; every second round runs backwards."""
    return [
        (number, drafting)
        for number in range(runs)
        for drafting in (draftings if number % 2 == 0 else list(reversed(draftings)))
    ]


def measure_runs(
    backend: Backend,
    model_path: str,
    draftings: Sequence[Drafting],
    request: Request,
    settings: LaunchSettings,
    *,
    runs: int,
    on_start: Callable[[int, Drafting], None] = lambda _round, _drafting: None,
) -> list[Run]:
    """Launch, ask and stop a server, `runs` times for each drafting; `on_start` gets round and drafting before each launch.

    Raises:
        BackendError: A build lacks a mode (found before anything starts), a launch or a request failed, or an
            answer was too short. No server is left running.
    """
    for drafting in draftings:
        backend.command(model_path, drafting, settings)
    launch = backend.in_process if isinstance(backend, InProcess) else backend.launch
    measured: list[Run] = []
    for number, drafting in run_order(draftings, runs):
        on_start(number, drafting)
        server = launch(model_path, drafting, settings)
        try:
            completion, disturbance = _ask(server, request)
        finally:
            server.stop()
        if not math.isfinite(completion.decode_tps) or completion.predicted_tokens < 2:
            raise RequestError(
                f"The answer with {drafting.label} has {completion.predicted_tokens} tokens, too few to measure a speed.",
                "Use another --prompt.",
            )
        measured.append(Run(drafting, number, server.launch_id, server.command, completion, disturbance))
    return measured


def _ask(server: Server, request: Request) -> tuple[Completion, str]:
    """Send one warm-up and then the request; also return what disturbed the machine."""
    server.complete(_WARM_UP)
    watch = StateWatch(lambda: server.pids)
    watch.start()
    completion = server.complete(request)
    return completion, disturbed(watch.finish())


def group_runs(
    runs: Iterable[Run], *, backend: str, build: str, model: str, model_file: str
) -> list[RunGroup]:
    """Group runs by drafting, in the order of each drafting's first run."""
    by_drafting: dict[Drafting, list[Run]] = {}
    for run in runs:
        by_drafting.setdefault(run.drafting, []).append(run)
    return [
        RunGroup(
            backend=backend,
            build=build,
            model=model,
            drafting=drafting,
            runs_tps=tuple(r.completion.decode_tps for r in group),
            command=group[0].command,
            model_file=model_file,
            request_tps=tuple(r.completion.request_tps for r in group),
            remarks=tuple(r.remark for r in group),
        )
        for drafting, group in by_drafting.items()
    ]


# Assumed SD of the log speed of a single run. Runs repeated on one launch scatter by tenths of a percent, launches on a
# working machine by 1 to 5 %, and a single run includes that. 3 % is the middle.
SINGLE_RUN_SD = 0.03
# Records give speeds with one decimal: equal runs do not prove that there is no scatter.
_ROUNDING_SD = 0.001


@dataclass(frozen=True, slots=True)
class Noise:
    """Scatter between runs: standard deviation of the log speed (0.01 is 1 %), and its degrees of freedom."""

    sd: float
    df: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """ln(drafting ÷ off) from unpaired runs: `center` of the geometric means, `low` and `high` with the one-sided error rate `level`.

    The ends are infinite and `noise` is ``None`` if the noise is unknown.
    """

    off_runs: int
    drafted_runs: int
    center: float
    low: float
    high: float
    noise: Noise | None
    level: float

    @property
    def ratio(self) -> float:
        """The centre as a speed ratio."""
        return math.exp(self.center)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends as speed ratios; ``None`` if the noise is unknown."""
        return None if math.isinf(self.high) else (math.exp(self.low), math.exp(self.high))

    @property
    def single(self) -> bool:
        """True if either side is a single run."""
        return min(self.off_runs, self.drafted_runs) == 1


def pooled_noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """Pool the scatter within groups of runs (tokens per second); ``None`` if no group has two runs."""
    squares, df = 0.0, 0
    for runs in groups:
        if len(runs) > 1:
            squares += statistics.variance([math.log(r) for r in runs]) * (len(runs) - 1)
            df += len(runs) - 1
    return Noise(math.sqrt(squares / df), df) if df else None


def compare_runs(
    off: Sequence[float], drafted: Sequence[float], *, pooled: Noise | None, level: float
) -> Comparison:
    """Compare runs with drafting against runs without, in tokens per second.

    `pooled` is the scatter over all repeated groups of the record, for a side that is a single run; `level` is the one-sided error
    rate of each end of the interval.
    """
    sides = [[math.log(r) for r in runs] for runs in (off, drafted)]
    center = statistics.fmean(sides[1]) - statistics.fmean(sides[0])
    if min(map(len, sides)) > 1:
        parts = [max(statistics.variance(s), _ROUNDING_SD**2) / len(s) for s in sides]
        error = math.sqrt(sum(parts))
        # Welch-Satterthwaite
        df = sum(parts) ** 2 / sum(p**2 / (len(s) - 1) for p, s in zip(parts, sides, strict=True))
        noise = pooled_noise((off, drafted))
    elif pooled is not None:
        noise = Noise(max(pooled.sd, SINGLE_RUN_SD), pooled.df)
        error = noise.sd * math.sqrt(sum(1 / len(s) for s in sides))
        df = float(pooled.df)
    else:
        return Comparison(len(off), len(drafted), center, -math.inf, math.inf, None, level)
    from scipy.stats import t  # noqa: PLC0415  (SciPy takes a second to load)

    half = float(t.ppf(1.0 - level, df)) * error
    return Comparison(len(off), len(drafted), center, center - half, center + half, noise, level)
