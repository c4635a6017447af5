"""Accuracy and speed of the classifier: its rules against trained models.

Run: ``python studies/bench/classifier.py [--confusion] [--repeats 20]``

The labelled set ``prompt_types.jsonl`` was written for this bench, before the rules: requests of five APIs in eight and more
languages, in two halves of the same mixture. The rules were tuned on ``train`` alone, and the trained models learn from it;
``heldout`` is used only for its figures. The shipped suite is a second test, with texts by another author; its tune half was
seen while the rules were written, its prove half was not.

The trained models need scikit-learn, only here: importing it in autospec would cost a second. They get what the rules get: both
ends of the user's last text and of the system prompt, and one token for each structural sign.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autospec.cells import PromptType
from autospec.prompts.classifier import classify
from autospec.prompts.request_text import read_request
from autospec.prompts.suite import Half, load_suite

LABELLED = Path(__file__).with_name("prompt_types.jsonl")
# A conversation with a pasted book, as a long-context client sends it.
LONG_CHARS = 2_000_000
Classify = Callable[[dict[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Labelled:
    """One request with its human label."""

    id: str
    prompt_type: str
    half: str
    body: dict[str, Any]


def labelled() -> list[Labelled]:
    """The bench's own set."""
    rows = map(json.loads, LABELLED.read_text(encoding="utf-8").splitlines())
    return [Labelled(row["id"], row["prompt_type"], row["half"], row["body"]) for row in rows]


def suite() -> list[Labelled]:
    """The shipped suite as chat requests."""
    return [
        Labelled(
            p.id, str(p.prompt_type), str(p.half), {"messages": list(p.messages), "max_tokens": p.max_tokens}
        )
        for p in load_suite().prompts
    ]


def sight(body: dict[str, Any]) -> str:
    """The input of a trained model: the texts that the rules examine, and structural signs as words."""
    seen = read_request(body)
    signs = [
        f"sign{name}"
        for name, there in (
            ("tools", seen.tools),
            ("schema", seen.schema),
            ("fim", seen.fim),
            ("raw", seen.raw),
            ("turns", seen.turns > 2),
            ("long", seen.ask.chars > 1000),
            ("fence", "```" in seen.ask.head),
        )
        if there
    ]
    before = seen.before[0].head[:200] if seen.before else ""
    texts = [*signs, seen.system.head[:400], before, seen.ask.head, seen.ask.tail]
    return "\n".join(texts).lower()


def trained(rows: Sequence[Labelled]) -> dict[str, Classify]:
    """Linear models on hashed character n-grams and on words; empty without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer  # noqa: PLC0415
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
        from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    except ImportError:
        print("scikit-learn is not installed: only the rules are measured. `pip install scikit-learn`.\n")
        return {}
    recipes = {
        "hashed characters (1-5), 2^16": HashingVectorizer(
            analyzer="char_wb", ngram_range=(1, 5), n_features=2**16, alternate_sign=False
        ),
        "tf-idf characters (2-5)": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
        "tf-idf words (1-2)": TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    }
    models: dict[str, Classify] = {}
    for name, vectorizer in recipes.items():
        model = make_pipeline(vectorizer, LogisticRegression(C=30.0, max_iter=2000))
        model.fit([sight(row.body) for row in rows], [row.prompt_type for row in rows])
        models[name] = lambda body, model=model: str(model.predict([sight(body)])[0])
    return models


def microseconds(way: Classify, bodies: Sequence[dict[str, Any]], repeats: int) -> list[float]:
    """Time of every request, the fastest of its repeats, to exclude other load."""
    times = []
    for body in bodies:
        best = float("inf")
        for _ in range(repeats):
            started = time.perf_counter()
            way(body)
            best = min(best, time.perf_counter() - started)
        times.append(best * 1e6)
    return times


def share_right(way: Classify, rows: Sequence[Labelled]) -> str:
    """Share of right answers in percent."""
    right = sum(way(row.body) == row.prompt_type for row in rows)
    return f"{100.0 * right / len(rows):.1f} % of {len(rows)}"


def print_types(rows: Sequence[Labelled], *, confusion: bool) -> None:
    """Print recall and precision per type, and optionally the confusions."""
    pairs = Counter((row.prompt_type, str(classify(row.body).prompt_type)) for row in rows)
    print("| type | right | named rightly | taken for |" if confusion else "| type | right | named rightly |")
    print("|---|---|---|---|" if confusion else "|---|---|---|")
    for kind in map(str, PromptType):
        asked = sum(n for (true, _), n in pairs.items() if true == kind)
        named = sum(n for (_, said), n in pairs.items() if said == kind)
        right = pairs[kind, kind]
        wrong = ", ".join(f"{said} {n}" for (true, said), n in sorted(pairs.items()) if true == kind != said)
        print(f"| {kind} | {right} of {asked} | {right} of {named} |{f' {wrong} |' if confusion else ''}")
    print()


def print_long_body() -> None:
    """Print the time for a long body beside the time to parse it."""
    text = "The rain had not stopped for a week. " * (LONG_CHARS // 37)
    raw = json.dumps({"messages": [{"role": "user", "content": f"Summarise this:\n\n{text}"}]})
    parsing = min(_seconds(lambda: json.loads(raw)) for _ in range(5))
    body = json.loads(raw)
    classifying = min(_seconds(lambda: classify(body)) for _ in range(5))
    print(
        f"A body of {len(raw) / 1e6:.1f} MB: parsing {1e6 * parsing:.0f} µs, classifying {1e6 * classifying:.0f} µs.\n"
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--confusion", action="store_true", help="also what wrong ones were taken for")
    parser.add_argument("--repeats", type=int, default=20, help="timings of each request")
    args = parser.parse_args()
    rows, shipped = labelled(), suite()
    train = [row for row in rows if row.half == "train"]
    heldout = [row for row in rows if row.half == "heldout"]
    tune = [row for row in shipped if row.half == Half.TUNE]
    prove = [row for row in shipped if row.half == Half.PROVE]
    ways: dict[str, Classify] = {
        "rules (shipped)": lambda body: str(classify(body).prompt_type),
        **trained(train),
    }
    print("| way | train | held out | suite, tune | suite, prove | µs, median | µs, 99 % | µs, most |")
    print("|---|---|---|---|---|---|---|---|")
    for name, way in ways.items():
        accuracy = " | ".join(share_right(way, some) for some in (train, heldout, tune, prove))
        times = sorted(microseconds(way, [row.body for row in heldout], args.repeats))
        print(
            f"| {name} | {accuracy} | {statistics.median(times):.0f} | {times[int(0.99 * len(times))]:.0f} "
            f"| {times[-1]:.0f} |",
            flush=True,
        )
    print()
    print_long_body()
    print(f"Rules on the held-out half, {sys.implementation.name} {sys.version.split()[0]}:\n")
    print_types(heldout, confusion=args.confusion)


if __name__ == "__main__":
    main()
