"""A program for `test_several_machines`: one of several equal machines that tune on one database.

``python -m tests.store.one_machine URL NAME ROUNDS [STUDIES]``: tunes every cell of the quick study in turn on a simulated
backend, as a daemon does, and prints what it did as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from autospec.cells import PromptType
from autospec.errors import BusyError
from autospec.measure.measurements import Measurement
from autospec.prompts.suite import Half, Prompt, Suite
from autospec.store.database import Store
from autospec.tuning.definition import load_definition
from autospec.tuning.request import TuneRequest
from autospec.tuning.run import Tuning
from tests.catalog.making import make_model
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_run import MACHINE, Silent

TYPES = (PromptType.CODING, PromptType.WRITING, PromptType.QA)
# Long enough that the machines meet, short enough for a test.
ANSWER_S = 0.003


def main(url: str, name: str, rounds: int, studies: str = "") -> None:
    """Tune, and say which cells were measured and which were somebody else's."""
    main_model = make_model(name="main", path=Path("/m/main.gguf"))
    draft = make_model(name="draft", path=Path("/m/draft.gguf"), fingerprint="draft",
                       bytes_per_token=main_model.bytes_per_token // 8, size_bytes=main_model.size_bytes // 8)  # fmt: skip
    prompts = [
        Prompt(f"{t}-{half}-{n}", t, ({"role": "user", "content": f"{t} {half} {n}"},), 64, half)
        for t in TYPES
        for half, count in ((Half.TUNE, 2), (Half.PROVE, 8))
        for n in range(count)
    ]
    request = TuneRequest(
        model=main_model,
        models=(main_model, draft),
        definition=replace(load_definition("quick"), predict=False, trials=6),
        suite=Suite("test", tuple(prompts), "0" * 12),
        storage=url,
        study_storage=studies,
    )
    backend = SimulatedBackend(
        lambda d, _: 1.5 if d.n_max else 0.9, before_answer=lambda _server, _text: time.sleep(ANSWER_S)
    )
    kept: list[object] = []
    add = Store.add_measurement

    def count(store: Store, measurement: Measurement) -> None:
        add(store, measurement)
        kept.append(measurement)

    Store.add_measurement = count  # type: ignore[method-assign]
    mine: list[str] = []
    others: list[str] = []
    for _ in range(rounds):
        for prompt_type in TYPES:
            tuning = Tuning(replace(request, prompt_types=(prompt_type,)), backend, MACHINE, Silent())
            asked = len(backend.asked)
            try:
                tuning.run()
            except BusyError:
                others.append(str(prompt_type))
                continue
            if len(backend.asked) > asked:
                mine.append(str(prompt_type))
    sys.stdout.write(json.dumps({"name": name, "mine": mine, "others": others, "measured": len(kept)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
