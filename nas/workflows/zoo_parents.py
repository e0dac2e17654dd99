"""Published networks that are worth a try as the parent of a search within limits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from nas.workflows.parent_space import space_of
from nas.workflows.zoo import COUNTS, Progress, find_zoo
from predictors.counts import count_architecture
from predictors.devices import Target
from predictors.zoo.published import PublishedModel, published_models
from results.pareto import pareto_ranks
from search_space.errors import InfeasibleError, NasError, UsageError
from search_space.metrics import LATENCY
from supernet.inherit.parents import find_parent

HOPELESS = 3.0
"""Times the limits: what a network may cost, and still keep most of what it knows within them."""


def zoo_parents(
    target: Target,
    limits: Mapping[str, float],
    count: int,
    side: int,
    num_classes: int,
    *,
    without: Collection[str] = (),
    seconds: float = 120.0,
    progress: Progress | None = None,
) -> list[PublishedModel]:
    """Finds the best published networks that a search within limits may start from.

    They are points of our spaces that exceed a limit of latency, parameters or multiply-adds, none
    by more than ``HOPELESS`` times, on images of ``side``. Those that no other dominates in excess
    and published accuracy come first, the most accurate before the others.

    Args:
        target: The device of a limit of latency.
        limits: Upper limits by metric.
        count: How many, at most.
        side: Of the images, in pixels.
        num_classes: Of the head.
        without: Digests of architectures at that side that are known already.
        seconds: As for ``find_zoo``.
        progress: Likewise.

    Raises:
        UsageError: No limit is of latency, parameters or multiply-adds.
        InfeasibleError: There is no such network.
    """
    limits = {name: limits[name] for name in (LATENCY, *COUNTS) if name in limits}
    if not limits:
        raise UsageError(
            f"--parents {count} takes networks of the zoo that are somewhat above a limit of "
            "latency, params or macs, and there is none; name them, as in --parents resnet18."
        )
    models = list(_at(side, num_classes, without))
    costs = {m: {name: float(getattr(m, name)) for name in COUNTS} for m in models}
    if LATENCY in limits:
        widened = {name: HOPELESS * limit for name, limit in limits.items()}
        try:
            found = find_zoo(
                target,
                widened,
                seconds=seconds,
                num_classes=num_classes,
                models=models,
                progress=progress,
            )
        except InfeasibleError as error:
            raise InfeasibleError(_none(count, str(error).partition(". ")[0])) from None
        timed = {model.name: model.latency_ms for model in found.models}
        costs = {m: c | {LATENCY: timed[m.name]} for m, c in costs.items() if m.name in timed}
    excess = {m: max(c[name] / limit for name, limit in limits.items()) for m, c in costs.items()}
    worth = {model: times for model, times in excess.items() if 1 < times <= HOPELESS}
    if not worth:
        why = f"none costs more than the limits and at most {HOPELESS:g} times as much"
        raise InfeasibleError(_none(count, why))
    points = [(times, model.top1) for model, times in worth.items()]
    ranks = dict(zip(worth, pareto_ranks(points, maximise=(False, True)).tolist(), strict=True))
    result: list[PublishedModel] = []
    for model in sorted(worth, key=lambda m: (ranks[m], -m.top1)):
        try:
            space_of(find_parent(model.full_name), side)
        except NasError:  # it has no space at that side
            continue
        result.append(model)
        if len(result) == count:
            break
    return result


def _at(side: int, num_classes: int, without: Collection[str]) -> Iterator[PublishedModel]:
    """Points of our spaces at a side, of each the best weights, with what they cost there."""
    seen: set[str | None] = {None}
    for model in published_models():  # the most accurate first
        if model.design in seen:
            continue
        seen.add(model.design)
        here = replace(model, image_size=side)
        try:
            architecture = here.architecture
        except NasError:  # its windows or strides do not fit
            continue
        assert architecture is not None
        if architecture.digest not in without:
            counts = count_architecture(architecture, num_classes)
            yield replace(here, num_params=counts["num_params"], macs=counts["macs"])


def _none(count: int, why: str) -> str:
    return (
        f"no network of the zoo can be tried as the parent: {why}. Leave --parents {count} out, or "
        "name some, as in --parents resnet18."
    )
