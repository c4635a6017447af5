"""`autospec explain`: a recommendation in words and numbers."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.shell import Shell, command_options, model_option, result_options

if TYPE_CHECKING:
    from autospec.catalog.model import Model
    from autospec.measure.disturbances import Cause
    from autospec.measure.measurements import Pair
    from autospec.recommendations import StoredRecommendation
    from autospec.report.explanation import Explanation
    from autospec.store.database import Store

__all__ = ["command"]


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
    import math
    from dataclasses import replace

    from autospec.measure.disturbances import lasting
    from autospec.measure.measurements import Phase, Shapes, pair_up
    from autospec.report.explanation import explain
    from autospec.report.studies import trial_from_json
    from autospec.store.queries import DraftFile, DraftFiles

    r = stored.recommendation
    identity = r.evidence.get("draft_id")
    # If the draft file was replaced or moved since, use the measurements of the file that was recommended.
    store.drafts = DraftFiles({r.tried.draft: DraftFile(identity)} if r.tried.draft and identity else {})
    # The proof's measurements, or those of the search if there is no proof.
    halves = [m for m in store.measurements(stored.cell_key) if m.compared == r.tried]
    proof = [m for m in halves if m.phase is Phase.PROVE]
    chosen = proof or [m for m in halves if m.phase is Phase.SEARCH]
    # Other suites, lengths or temperatures are other experiments; the verdict comes from the newest.
    protocol = r.evidence.get("protocol") or (chosen[-1].protocol if chosen else None)
    # The verdict ignores disturbed pairs, so this does too.
    requests = r.evidence.get("requests")
    shapes = {} if requests is None else {stored.cell_key: Shapes.from_json(requests)}
    chosen = [m for m in chosen if m.protocol == protocol]
    lasts = lasting(m for m in chosen if m.machine)
    pairs = [p for p in pair_up(chosen, shapes) if _counts(p, lasts)]
    own = trials.get(stored.cell_key) or [trial_from_json(t) for t in r.evidence.get("trial_list", ())]
    own = [
        replace(t, drafting=drafting)
        for t in own
        if protocol is None or t.attributes.get("protocol") in (None, protocol)
        if t.drafting is not None
        if (drafting := store.drafts.today(t.drafting, str(t.attributes.get("draft_id") or ""), math.inf))
    ]
    return _with_traffic(store, stored, explain(r, pairs, own, model=main))


def _with_traffic(store: Store, stored: StoredRecommendation, explained: Explanation) -> Explanation:
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


def _counts(pair: Pair, lasts: frozenset[Cause]) -> bool:
    from autospec.measure.asking import disturbance

    # Imported measurements may not record the state of the machine.
    return not (pair.off.machine and pair.drafted.machine and disturbance(pair, lasts))


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
