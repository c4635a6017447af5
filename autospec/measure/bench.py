"""The founding benchmark: one prompt, with drafting and without, some runs of each.

Every run has a launch of its own. A prompt that is repeated on one launch is another experiment for drafting: n-gram
pools and replayed draft caches remember it. Launches are one at a time, so that models that fill the
memory can be measured too, and the order is turned round from round to round (off, A, B, B, A, off …), so that a
machine that slowly warms up favours none of them. A backend that can run models without its server (`InProcess`: MLX) is
measured so, as the founding record's speeds were its library's own.

Compare runs that were not paired: recorded benchmarks, where only a few speeds of each drafting are left.

Runs of one drafting and runs of another, minutes or days apart, know nothing of what changed in between. What can
be said honestly is less than from pairs, and it is said with Student's t on log speeds:

* Both repeated: Welch's interval, which does not assume that both scatter alike (B. L. Welch, *Biometrika* 34,
  1947, 28-35). In the founding record one group scatters twenty times more than another.
* One of them a single run: its scatter cannot be known from it. The scatter pooled over all repeated groups of the
  same record stands in, but never less than `SINGLE_RUN_SD`, with the pooled degrees of freedom.
* No group repeated at all: nothing is known about the noise, and there is no interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autospec.backends.optional import InProcess
from autospec.backends.protocol import Backend, Completion, LaunchSettings, Request, Server
from autospec.drafting import Drafting
from autospec.errors import RequestError
from autospec.hardware.state import StateWatch, disturbed

__all__ = [
    "FOUNDING_MAX_TOKENS",
    "FOUNDING_PROMPT",
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


FOUNDING_PROMPT = "Escreva um Palindromo em Kotlin"
FOUNDING_MAX_TOKENS = 512
# First requests pay for pages that are not in memory yet. Another text than any benchmark's, so that nothing of the
# answer can be learnt from it.
_WARM_UP = Request(messages=({"role": "user", "content": "Name three colours."},), max_tokens=8)


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs of one drafting, measured or written down by somebody.

    Attributes:
        backend: Backend name.
        build: The build's own name, empty where it was not noted.
        model: Main model.
        drafting: What was run.
        runs_tps: Tokens per second of generation, one value a run.
        command: The server's command line, empty where it was not noted.
        about: A few words on the model.
        model_file: Its file name, empty where it was not noted.
        request_tps: Tokens per second of the whole requests, or empty.
        remarks: What else is known of each run, or empty.
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
        """Geometric mean of the runs, as ratios of speeds are compared."""
        return statistics.geometric_mean(self.runs_tps)


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one launch.

    Attributes:
        drafting: What the launch was given.
        round: From 0.
        launch_id: Which launch.
        command: Its command line.
        completion: The answer with its times.
        disturbance: What on the machine disturbed it, a sentence; empty if nothing did.
    """

    drafting: Drafting
    round: int
    launch_id: str
    command: tuple[str, ...]
    completion: Completion
    disturbance: str = ""

    @property
    def remark(self) -> str:
        """What a person wants to see beside the speed."""
        c = self.completion
        parts = [f"{c.predicted_tokens} tokens", f"prompt {c.prompt_ms:.0f} ms"]
        if c.drafted and c.accepted is not None:
            parts.append(f"{c.accepted} of {c.drafted} drafted tokens accepted, {c.accepted / c.drafted:.0%}")
        if self.disturbance:
            parts.append(f"disturbed: {self.disturbance[0].lower()}{self.disturbance[1:].rstrip('.')}")
        return ", ".join(parts)


def run_order(draftings: Sequence[Drafting], runs: int) -> list[tuple[int, Drafting]]:
    """Which drafting to run when: (round, drafting), every second round backwards."""
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
    """Launch, ask and stop, `runs` times for each drafting.

    Args:
        backend: The kind of server.
        model_path: The main model.
        draftings: What to compare, off among them.
        request: What to ask.
        settings: The user's own launch settings.
        runs: How many runs of each.
        on_start: Told the round and the drafting before each launch.

    Raises:
        BackendError: A build lacks a mode (found before anything starts), a launch or a request failed, or an
            answer was empty. No server is left behind, whatever ends this.
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
                f"The answer with {drafting.label} has {completion.predicted_tokens} tokens: no speed can be told.",
                "Give another --prompt.",
            )
        measured.append(Run(drafting, number, server.launch_id, server.command, completion, disturbance))
    return measured


def _ask(server: Server, request: Request) -> tuple[Completion, str]:
    """One warm-up, then the request, with what disturbed the machine meanwhile."""
    server.complete(_WARM_UP)
    watch = StateWatch(lambda: server.pids)
    watch.start()
    completion = server.complete(request)
    return completion, disturbed(watch.finish())


def group_runs(
    runs: Iterable[Run], *, backend: str, build: str, model: str, model_file: str
) -> list[RunGroup]:
    """The runs of each drafting together, in the order in which draftings first ran."""
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


# What to reckon with for a single run, as SD of the log speed. Runs repeated on one launch scatter by tenths of a
# percent; launches of a working machine by 1 to 5 %, and a single run has all of that in it. 3 % is the middle.
SINGLE_RUN_SD = 0.03
# Speeds are written down with one digit after the point: equal runs do not prove that nothing scatters.
_ROUNDING_SD = 0.001


@dataclass(frozen=True, slots=True)
class Noise:
    """Run-to-run scatter.

    Attributes:
        sd: Standard deviation of the log speed; 0.01 is 1 %.
        df: Degrees of freedom it was estimated with.
    """

    sd: float
    df: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Drafting ÷ off from unpaired runs, in logs.

    Attributes:
        off_runs: How many runs with drafting off.
        drafted_runs: How many with it.
        center: ln of the ratio of geometric means.
        low: Lower end of the interval; minus infinity where the noise is unknown.
        high: Upper end; plus infinity likewise.
        noise: The scatter that it reckons with, ``None`` where unknown.
        level: One-sided error rate of each end.
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
        """Both ends as speed ratios; ``None`` where the noise is unknown."""
        return None if math.isinf(self.high) else (math.exp(self.low), math.exp(self.high))

    @property
    def single(self) -> bool:
        """True if one of the two sides is a single run."""
        return min(self.off_runs, self.drafted_runs) == 1


def pooled_noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """The scatter within repeated groups, pooled.

    Args:
        groups: Runs of each group, in tokens per second.

    Returns:
        The pooled SD of the log speed, or ``None`` if no group has two runs.
    """
    squares, df = 0.0, 0
    for runs in groups:
        if len(runs) > 1:
            squares += statistics.variance([math.log(r) for r in runs]) * (len(runs) - 1)
            df += len(runs) - 1
    return Noise(math.sqrt(squares / df), df) if df else None


def compare_runs(
    off: Sequence[float], drafted: Sequence[float], *, pooled: Noise | None, level: float
) -> Comparison:
    """Compare the runs of a drafting with the runs without.

    Args:
        off: Tokens per second with drafting off, at least one run, all positive.
        drafted: The same with the drafting.
        pooled: Scatter over all repeated groups of the record, for sides that are single runs.
        level: One-sided error rate of each end of the interval.
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
    # Imported here: SciPy takes a second to load, and most of what imports this module never compares.
    from scipy.stats import t  # noqa: PLC0415

    half = float(t.ppf(1.0 - level, df)) * error
    return Comparison(len(off), len(drafted), center, center - half, center + half, noise, level)
