"""`autospec explain`: a recommendation in words and numbers."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.shell import Shell, command_options, model_option, result_options

if TYPE_CHECKING:
    from autospec.catalog.model import Model
    from autospec.recommendations import StoredRecommendation
    from autospec.report.explanation import Explanation
    from autospec.store.database import Store

__all__ = ["command", "with_traffic"]


@click.command()
@model_option()
@result_options
@command_options
def command(shell: Shell, /, **question: Any) -> None:
    """Explain a recommendation: speeds, acceptance, the cost of proposals, and the break-even point.

    \b
      autospec explain --model qwen3-coder-30b --prompt-type coding

    Exits with 3 if nothing is known yet.
    """  # noqa: D301 - click needs the backspace itself
    from autospec.hardware import identify
    from autospec.report.selection import Question, select
    from autospec.store.reader import read_overall, read_recommendations

    settings = shell.settings
    known = read_recommendations(settings.storage, shell.warn)
    question["model"] = shell.settings.named_by(question["model"])
    question["aim"] = shell.aim_for(question["aim"])
    overall = read_overall(settings.storage, shell.warn)
    selection = select(known, identify(), Question(**question), overall)
    from autospec.report.explanation import explain_overall
    from autospec.report.studies import read_studies
    from autospec.store.database import open_store

    trials = {s.cell_key: s.trials for s in read_studies(settings.studies_url)}
    main = _model(shell, selection.stored[0].recommendation.model_path)
    with closing(open_store(settings.storage, shell.warn)) as store:
        explained = [_explain(store, s, trials, main) for s in selection.stored]
    together = [explain_overall(r) for r in selection.overall or ()]
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "hardware": selection.hardware.to_json(),
                "explanations": [
                    {"recommendation": r.to_json(), "figures": e.figures, "sentences": list(e.sentences)}
                    for r, e in zip(selection.recommendations, explained, strict=True)
                ],
                "overall": [
                    {
                        "recommendation": e.recommendation.to_json(),
                        "figures": e.figures,
                        "sentences": list(e.sentences),
                    }
                    for e in together
                ],
            }
        )
        return
    shell.out("\n\n".join(_text(e) for e in (*explained, *together)))
    if selection.foreign_note:
        shell.warn(selection.foreign_note)


def _explain(
    store: Store,
    stored: StoredRecommendation,
    trials: dict[str, tuple[Any, ...]],
    main: Model | None,
) -> Explanation:
    from autospec.report.evidence import evidence_of
    from autospec.report.explanation import explain

    found = evidence_of(store, stored, trials.get(stored.cell_key, ()))
    explained = explain(stored.recommendation, found.pairs, found.trials, model=main)
    return with_traffic(store, stored, explained)


def with_traffic(store: Store, stored: StoredRecommendation, explained: Explanation) -> Explanation:
    """The explanation, with how far live traffic falls short of the proof."""
    from dataclasses import replace

    from autospec.daemon.staleness import gap_of, samples_of

    r = stored.recommendation
    live = store.samples(
        since=0.0, model=r.model, backend=r.backend, prompt_type=r.prompt_type, drafting=r.drafting
    )
    gap = gap_of(r, samples_of(r, live), store.former_recommendations(stored.cell_key))
    if gap is None:
        return explained
    figures = explained.figures | {"traffic": gap.to_json()}
    return replace(explained, figures=figures, sentences=(*explained.sentences, gap.sentence))


def _model(shell: Shell, model_path: str) -> Model | None:
    """The main model as the catalogue knows it; ``None`` if it is not on this machine."""
    from autospec.catalog.scan import scan
    from autospec.errors import AutospecError

    if not model_path:
        return None
    try:
        return scan(shell.settings).find(model_path)
    except AutospecError:
        return None


def _text(e: Explanation) -> str:
    import textwrap

    first, *rest = e.sentences
    return "\n".join(
        [
            textwrap.fill(first, 100),
            *(textwrap.fill(s, 100, initial_indent="  - ", subsequent_indent="    ") for s in rest),
        ]
    )
