"""The cost of new launches in every round for MLX, where the request selects the drafting: one proof in three ways, one table.

Run: ``python studies/bench/mlx_proof.py --model FOLDER --draft FOLDER [--n-max 4] [--rounds 4] [--prompts 2] [--max-tokens 16]``

Main model, draft, prompts and rounds are the same, and every pair is interleaved like in `autospec tune`:

* *new launches*: both processes are new in every round, like in a proof;
* *new launches by turns*: the same, if only one fits into memory;
* *kept*: both processes serve all rounds, like in the search; differences between launches do not average out.

One more row shows why a launch with the draft is not `off`: the draft loaded and not used, against off. Model files are read once
before, so that no way pays for a cold disk.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autospec.backends.mlx.backend import Mlx
from autospec.backends.protocol import Backend, LaunchSettings
from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking
from autospec.measure.log_ratios import signed_rank_estimate
from autospec.measure.measurements import Pair, Phase
from autospec.prompts.suite import Half, Prompt, load_suite
from autospec.store.database import open_store
from autospec.tuning.budget import Budget
from autospec.tuning.calibration import idle_draft_figures
from autospec.tuning.launches import Launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.tasks import Task

_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Way:
    """One proof: launches, seconds until they were ready, total seconds, pairs."""

    launches: int
    launch_s: float
    seconds: float
    pairs: tuple[Pair, ...]

    def row(self, name: str) -> str:
        """One line of the table."""
        e = signed_rank_estimate([p.log_ratio for p in self.pairs], _LEVEL)
        width = f"{100 * (e.interval[1] - e.interval[0]):.1f} %" if math.isfinite(e.low) else "unbounded"
        return f"| {name} | {self.launches} | {self.launch_s:.1f} | {self.seconds:.1f} | {e.n} | {e.ratio:.3f} | {width} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--draft", required=True, type=Path)
    parser.add_argument("--n-max", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=16)
    args = parser.parse_args()
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(args.draft), n_max=args.n_max)
    everything = load_suite().of(PromptType.QA, Half.PROVE)
    # The shortest prompts: a CPU takes a second for thirty prompt tokens.
    prompts = tuple(sorted(everything, key=lambda p: len(str(p.messages))))[: args.prompts]
    for path in (args.model, args.draft):
        for file in path.glob("*.safetensors"):
            file.read_bytes()
    print("| proof | launches | launching, s | in all, s | pairs | ratio | width of its 90 % interval |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        backend = Mlx(state)
        backend.capabilities()  # probing a build costs seconds once, whatever the way
        for name, phase, resident in (
            ("new launches", Phase.PROVE, 2),
            ("new launches by turns", Phase.PROVE, 1),
            ("kept", Phase.SEARCH, 2),
        ):
            with proof(backend, str(args.model), resident, args.max_tokens, state / f"{name}.db") as parts:
                way = run(*parts, prompts, drafting, rounds=args.rounds, phase=phase)
                print(way.row(name), flush=True)
        with proof(Mlx(state), str(args.model), 2, args.max_tokens, state / "idle.db") as (launches, pairing):
            idle = idle_draft_figures(
                launches, asking(launches, args.max_tokens), drafting, prompts, Budget(3600.0)
            )
        assert idle is not None
        assert pairing is not None
        low, high = idle["interval"]
        print(
            f"| draft loaded, not used | 2 | – | – | {idle['pairs']} | {idle['ratio']:.3f} | {100 * (high - low):.1f} % |"
        )
        print(
            f"\nOf it, prompt {idle['prompt_ratio']:.3f} and generation {idle['decode_ratio']:.3f} of off's speed."
        )


def asking(launches: Launches, max_tokens: int) -> Asking:
    """The settings of all requests."""
    return Asking("bench", max_tokens, 0.0, StateWatch(lambda: launches.pids))


@contextmanager
def proof(
    backend: Backend, model: str, resident: int, max_tokens: int, database: Path
) -> Iterator[tuple[Launches, PairedRunner]]:
    """Launches and pairing of one way, like in `autospec tune`."""
    store = open_store(f"sqlite:///{database}")
    try:
        with Launches(backend, model, LaunchSettings(), resident=resident) as launches:
            # Waiting for other load would count as time of this way.
            yield (
                launches,
                PairedRunner(launches, asking(launches, max_tokens), store, since={}, sleep=lambda _: None),
            )
    finally:
        store.close()


def run(
    launches: Launches,
    pairing: PairedRunner,
    prompts: tuple[Prompt, ...],
    drafting: Drafting,
    *,
    rounds: int,
    phase: Phase,
) -> Way:
    """All rounds of one proof; disturbed pairs count, since repeating them would change the comparison."""
    begun = time.monotonic()
    tasks = [Task.of("cell", prompt) for prompt in prompts]
    pairs = [
        measured.pair
        for round_ in range(1, rounds + 1)
        for measured in pairing.block(tasks, drafting, phase, round_)
        if measured.pair is not None
    ]
    return Way(launches.count, launches.seconds, time.monotonic() - begun, tuple(pairs))


if __name__ == "__main__":
    main()
