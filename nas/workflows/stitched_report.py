"""What the report of a search through several trained networks says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from nas.workflows.adapting import ADAPTING, CLASSIFYING, LOADING
from nas.workflows.finishing import qualities
from nas.workflows.inherited_report import zoo_front
from nas.workflows.inherited_steps import OTHERS, TRAINED
from results.report.data import ReportData
from results.report.inheritance import Inheritance, Step
from search_space.metrics import ACCURACY
from supernet.training.evaluation import Quality

if TYPE_CHECKING:
    from nas.workflows.stitched_search import StitchedSearch


def with_parents(run: StitchedSearch, data: ReportData) -> ReportData:
    """Adds the parents' judgement to the data of a run's report; the largest is its parent."""
    amp = run.config.adapt.amp
    known = {
        f"parent {name}": qualities(network, run.data, amp)
        for name, network in zip(run.names, run.networks, strict=True)
    }
    baselines = tuple(
        replace(b, test_accuracy=known[b.name]["test"].accuracy) if b.name in known else b
        for b in data.baselines
    )
    inherited = Inheritance(
        parent=f"parent {run.names[-1]}",
        steps=tuple(_steps(data, known)),
        zoo=zoo_front(run),
    )
    return replace(data, baselines=baselines, inherited=inherited)


def _steps(data: ReportData, known: dict[str, dict[str, Quality]]) -> Iterator[Step]:
    """The parents, and the chosen route before and after its training."""
    of_parents = (LOADING, CLASSIFYING, ADAPTING)
    for name, quality in known.items():
        last = name == list(known)[-1]
        yield Step(
            name=f"the {name}, trained on these images",
            validation_accuracy=quality["validation"].accuracy,
            test_accuracy=quality["test"].accuracy,
            phases=of_parents if last else (),  # of all of them together
            of_parent=True,
        )
    chosen = data.chosen
    if chosen is None:
        return
    taken = {*of_parents, *TRAINED, *OTHERS}
    yield Step(
        name="the chosen route, stitched",
        validation_accuracy=chosen.predicted.get(ACCURACY),
        test_accuracy=chosen.test_accuracy_before,
        phases=tuple(phase.name for phase in data.phases if phase.name not in taken),
    )
    yield Step(
        name="the chosen route, trained with the largest parent as teacher",
        validation_accuracy=chosen.quality.get("validation", {}).get(ACCURACY),
        test_accuracy=chosen.test_accuracy,
        phases=TRAINED,
    )
