"""The tools that the phases of one tune share."""

from __future__ import annotations

from dataclasses import dataclass

from autospec.measure.asking import Asking
from autospec.store.database import Store
from autospec.tuning.budget import Budget
from autospec.tuning.cell import Progress
from autospec.tuning.definition import StudyDefinition
from autospec.tuning.launches import Launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.space import Space

__all__ = ["TuneContext"]


@dataclass(frozen=True, slots=True)
class TuneContext:
    """The tools of one tune."""

    definition: StudyDefinition
    space: Space
    launches: Launches
    pairing: PairedRunner
    budget: Budget
    progress: Progress
    asking: Asking
    store: Store
