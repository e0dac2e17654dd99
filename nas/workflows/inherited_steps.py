"""How accurate networks are on the way from a published parent to the chosen network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nas.workflows.adapting import ADAPTING, CLASSIFYING, LOADING
from nas.workflows.finishing import qualities
from nas.workflows.inherited import BANK, PARENT, START, bank_identity, fitting_images
from nas.workflows.tried_parents import FINDING, MEASURING, TRYING
from results.report.data import ReportData
from results.report.inheritance import Step
from search_space import Architecture
from search_space.components import components
from search_space.metrics import ACCURACY
from supernet import build
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.stored_bank import load_entries
from supernet.network.tensor_files import read_tensors
from supernet.training.evaluation import Quality

if TYPE_CHECKING:
    from nas.workflows.pretrained_search import PretrainedSearch

JUDGING = "judging what was cut"
TRAINED = ("fine-tuning the finalists",)
# phases that lead from no network to another
OTHERS = ("opening images", "exporting", "report", JUDGING)
_PUBLISHED = (FINDING, MEASURING, TRYING, LOADING, CLASSIFYING)
_ADAPTED = (ADAPTING,)
_CUT = ("cutting blocks of the parent", "teaching other blocks what the parent's do")


def steps(run: PretrainedSearch, data: ReportData, adapted: dict[str, Quality]) -> Iterator[Step]:
    """Yields the steps from the published parent to the chosen network.

    Args:
        run: The search, at its end.
        data: Of its report, so far.
        adapted: The adapted parent's quality by split.
    """
    start = run.path / PARENT / START
    if start.exists():
        network = build(run.architecture, run.num_classes)
        network.load_state_dict(read_tensors(start))
        known = qualities(network.to(run.compute).eval(), run.data, run.config.adapt.amp)
        name = "the parent as published, with a classifier fitted to these images"
        yield _step(name, known, _PUBLISHED, of_parent=True)
    yield _step("the parent, trained on these images", adapted, _ADAPTED, of_parent=True)
    chosen = data.chosen
    if chosen is None or chosen.test_accuracy_before is None:
        return
    cuts = list(_cuts(run, Architecture.from_dict(chosen.architecture)))
    yield from cuts
    taken = {*_PUBLISHED, *_ADAPTED, *TRAINED, *OTHERS}
    taken |= {phase for step in cuts for phase in step.phases}
    yield Step(
        name=f"the chosen network, {'cut and folded' if len(cuts) == 1 else 'put together'}",
        validation_accuracy=chosen.predicted.get(ACCURACY),
        test_accuracy=chosen.test_accuracy_before,
        phases=tuple(
            phase.name
            for phase in data.phases
            if phase.name not in taken and not phase.name.startswith("latency table")
        ),
    )
    yield Step(
        name="the chosen network, trained with the parent as teacher",
        validation_accuracy=chosen.quality.get("validation", {}).get(ACCURACY),
        test_accuracy=chosen.test_accuracy,
        phases=TRAINED,
    )


def _cuts(run: PretrainedSearch, chosen: Architecture) -> Iterator[Step]:
    """The chosen network cut alone, and folded where it was trained further before the search.

    Blocks that had to learn are as they have learnt in both. Nothing where no block was cut.
    """
    config, inherit = run.config, run.config.inherit
    wanted = {(item.path, item.spec.in_float) for item in components(chosen, run.num_classes)}
    bank = WeightBank(run.space, run.network).eval()
    identity = bank_identity(bank, config, run.data)
    with run.phase(JUDGING):
        made = cut_alternatives(
            bank,
            fitting_images(config, run.data),
            entries=wanted,
            importance=inherit.importance,
            fold=False,
            seed=config.seed,
        )
        if not made:
            return
        load_entries(run.path / BANK, bank, wanted - set(made), identity=identity)
        yield _step("the chosen network, cut alone", _judged(run, bank, chosen))
        if inherit.refine_steps or inherit.joint_epochs:
            load_entries(run.path / BANK, bank, made, identity=identity)
            yield _step("the chosen network, cut and folded", _judged(run, bank, chosen), _CUT)


def _judged(run: PretrainedSearch, bank: WeightBank, chosen: Architecture) -> dict[str, Quality]:
    network = run.extracted(bank, chosen)
    return qualities(network, run.data.at(chosen.resolution), run.config.adapt.amp)


def _step(
    name: str,
    quality: dict[str, Quality],
    phases: tuple[str, ...] = (),
    *,
    of_parent: bool = False,
) -> Step:
    return Step(
        name=name,
        validation_accuracy=quality["validation"].accuracy,
        test_accuracy=quality["test"].accuracy,
        phases=phases,
        of_parent=of_parent,
    )
