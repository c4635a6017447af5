"""Reading Optuna's storage."""

from __future__ import annotations

import optuna
import pytest

from autospec.drafting import Drafting, Mode
from autospec.errors import NothingKnownError, UsageError
from autospec.report.studies import StudySummary, choose_study, read_studies, trial_from_json
from tests.report.samples import DRAFTING


def test_studies_come_with_their_trials(tmp_path):
    """State, ratio, drafting and reason of every trial; off is never the best."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="M | coding", storage=url, direction="maximize")
    study.set_user_attr("cell", {"key": "k1", "model": "M"})
    for drafting, value in ((Drafting(), 1.5), (DRAFTING, 1.2), (Drafting(Mode.MTP, n_max=2), None)):
        trial = study.ask()
        trial.set_user_attr("drafting", drafting.to_json())
        if value is None:
            trial.set_user_attr("reason", "no MTP layers")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, value)
    [summary] = read_studies(url)
    assert summary.cell_key == "k1"
    assert summary.states == {"complete": 2, "fail": 1}
    assert summary.best.drafting == DRAFTING
    assert summary.trials[2].reason == "no MTP layers"
    assert [trial_from_json(t.to_json()).drafting for t in summary.trials] == [
        t.drafting for t in summary.trials
    ]


def test_no_database_is_no_study(tmp_path):
    """Reading makes no file."""
    path = tmp_path / "none.db"
    assert read_studies(f"sqlite:///{path}") == []
    assert not path.exists()


def test_a_study_is_chosen_by_words_that_only_it_has():
    """All words must occur; a key alone is enough; none and several are told apart."""
    studies = [StudySummary(f"Qwen | {t} | x | {t}key", {"key": f"{t}key"}, ()) for t in ("coding", "math")]
    assert choose_study(studies, "qwen MATH").cell_key == "mathkey"
    assert choose_study(studies, "codingkey").cell_key == "codingkey"
    with pytest.raises(UsageError, match="2 studies"):
        choose_study(studies, "qwen")
    with pytest.raises(NothingKnownError):
        choose_study(studies, "llama")
