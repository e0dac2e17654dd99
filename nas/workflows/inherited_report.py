"""What the report of a search from a trained network says of it: put together at the run's end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nas.workflows.finishing import qualities
from nas.workflows.inherited import TABLE
from nas.workflows.inherited_steps import steps
from nas.workflows.tried_parents import choose, read_tried
from nas.workflows.zoo import COUNTS, find_zoo
from predictors.tables.quality import Key, QualityTable
from predictors.zoo.published import source
from results.report.data import ReportData
from results.report.inheritance import (
    BlockFate,
    Change,
    Inheritance,
    LossPair,
    ZooFront,
    ZooNetwork,
)
from search_space import Architecture
from search_space.around import inner_widths
from search_space.errors import InfeasibleError
from search_space.metrics import LATENCY, LOSS, metric_named, typed

if TYPE_CHECKING:
    from nas.workflows.pretrained_search import PretrainedSearch
    from nas.workflows.trained_search import TrainedSearch


def with_parent(run: PretrainedSearch, data: ReportData) -> ReportData:
    """Adds the parent's judgement and what became of it to the data of a run's report."""
    adapted = qualities(run.network, run.data, run.config.adapt.amp)
    test = adapted["test"].accuracy
    baselines = tuple(
        replace(b, test_accuracy=test) if b.name == run.parent_name else b for b in data.baselines
    )
    tried = read_tried(run.path)
    inherited = Inheritance(
        parent=run.parent_name,
        steps=tuple(steps(run, data, adapted)),
        tried=tried,
        reason=choose(tried)[1] if tried else "",
    )
    table = run.path / TABLE
    chosen = data.chosen
    if chosen is not None and chosen.digest != run.point.digest and table.exists():
        quality = QualityTable.load(table)
        architecture = Architecture.from_dict(chosen.architecture)
        resolution, blocks = _fates(run, quality, architecture)
        inherited = replace(
            inherited,
            resolution=resolution,
            blocks=blocks,
            losses=tuple(_losses(run, quality, data)),
        )
    return replace(data, baselines=baselines, inherited=replace(inherited, zoo=zoo_front(run)))


def _fates(
    run: PretrainedSearch, quality: QualityTable, chosen: Architecture
) -> tuple[Change | None, tuple[BlockFate, ...]]:
    """What the resolution alone does, and each block's fate."""
    parent = run.point
    latency = run.latency_table().compile(run.space, run.num_classes)

    def change(changed: Architecture, key: Key) -> Change:
        own, other = latency.predict(run.space.encode([parent, changed]))
        known = quality.changes.get(key)
        return Change(
            loss=None if known is None else known.loss,
            loss_error=None if known is None else known.loss_error,
            saved_ms=float(own - other),
        )

    widths = inner_widths(parent), inner_widths(chosen)
    fates = []
    for i, (stage, other) in enumerate(zip(parent.stages, chosen.stages, strict=True)):
        for j, (before, after) in enumerate(zip(stage.blocks, other.blocks, strict=True)):
            path = f"stages.{i}.blocks.{j}"
            if before.skipped:
                continue
            blocks = (*stage.blocks[:j], after, *stage.blocks[j + 1 :])
            stages = (*parent.stages[:i], replace(stage, blocks=blocks), *parent.stages[i + 1 :])
            alone = replace(parent, stages=stages)
            fates.append(
                BlockFate(
                    stage=i,
                    position=j,
                    before=before.to_dict(),
                    after=after.to_dict(),
                    widths_before=widths[0][path],
                    widths_after=widths[1].get(path, {}),
                    change=None
                    if before == after
                    else change(alone, (path, after, parent.resolution)),
                )
            )
    if chosen.resolution == parent.resolution:
        return None, tuple(fates)
    lower = replace(parent, resolution=chosen.resolution)
    return change(lower, ("", None, chosen.resolution)), tuple(fates)


def _losses(run: PretrainedSearch, quality: QualityTable, data: ReportData) -> list[LossPair]:
    """What the table adds up for each evaluated network, and what was found."""
    known = [
        (n, Architecture.from_dict(n.architecture), real)
        for n in data.evaluated
        if n.architecture is not None and (real := n.predicted.get(LOSS)) is not None
    ]
    if not known:
        return []
    genes = run.space.encode([architecture for _, architecture, _ in known])
    predicted = quality.compile(run.space).predict(genes)
    return [
        LossPair(digest=network.digest, predicted=float(loss), real=real)
        for (network, _, real), loss in zip(known, predicted, strict=True)
        if np.isfinite(real)
    ]


def zoo_front(run: TrainedSearch) -> ZooFront:
    """Published networks within the run's limits, as far as latencies are known or soon found."""
    limits = {name: run.limits[name] for name in (LATENCY, *COUNTS) if name in run.limits}
    with run.phase("the zoo within the limits") as progress:
        try:
            seconds = run.config.inherit.zoo_seconds
            zoo = find_zoo(run.target, limits, seconds=seconds, progress=progress)
        except InfeasibleError as error:
            why = str(error).partition(". ")[0]  # what follows is a way out for another command
            return ZooFront(note=f"{why[:1].upper()}{why[1:].rstrip('.')}. {_more(run, limits)}")
    note = ""
    if zoo.not_tried:
        note = (
            f"Latencies of {len(zoo.not_tried)} more networks that may be within the limits are "
            f"not known. {_more(run, limits)}"
        )
    return ZooFront(
        networks=tuple(
            ZooNetwork(
                name=model.full_name,
                image_size=model.image_size,
                top1=model.top1 / 100,
                latency_ms=model.latency_ms,
                origin=model.origin,
                num_params=model.num_params,
                macs=model.macs,
            )
            for model in zoo.front
        ),
        source=source(),
        note=note,
    )


def _more(run: TrainedSearch, limits: Mapping[str, float]) -> str:
    """How to know more of the zoo, in a sentence."""
    words = ["nas zoo --device", run.target.name]
    for key, value in run.config.latency.conditions().items():
        words += [f"--{key.replace('_', '-')}", str(value)] if value is not None else []
    for name, limit in limits.items():
        text = typed(name, limit)
        option = f"--max {metric_named(name).option}={text}"
        words.append(f"--target-latency {text}" if name == LATENCY else option)
    return (
        f"`{' '.join(words)}` looks for more, once for all runs; --zoo-seconds lets a search do so."
    )
