"""The front of stitched networks: all of them are judged, since there are few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from results.pareto import non_dominated
from search_space import Architecture
from search_space.stitches import Route
from supernet.inherit.stitching.network import StitchedNet
from supernet.training.evaluation import Batches, Quality
from supernet.training.recalibration import evaluate_subnet


@dataclass(frozen=True, eq=False)
class StitchedPoint:
    """A stitched network as it was judged.

    Attributes:
        route: Through the parents.
        architecture: The network that it is.
        cost: In the unit of whoever asked.
        quality: On the images.
        on_front: Whether none of the others is as cheap and better, or as good and cheaper.
    """

    route: Route
    architecture: Architecture
    cost: float
    quality: Quality
    on_front: bool


def judge_routes(
    net: StitchedNet,
    batches: Batches,
    cost: Callable[[Architecture], float],
    calibration: Batches | None = None,
    *,
    score: Callable[[Quality], float] = lambda quality: quality.accuracy,
    amp: str = "auto",
) -> list[StitchedPoint]:
    """Judges all networks of a stitched set, and says which of them are on the front.

    Example:
        By multiply-adds, on held-out images::

            points = judge_routes(
                net,
                eval_batches(data.validation),
                lambda architecture: count_architecture(architecture, net.num_classes)["macs"],
            )
            front = [point for point in points if point.on_front]

    Args:
        net: Fitted, perhaps trained.
        batches: As for ``evaluate``; none of the images that stitches were fitted to.
        cost: Of an architecture, the smaller the better: counts, or a latency.
        calibration: Training images for the averages of batch norms; needed where there are any.
        score: Of a quality, the larger the better.
        amp: As the parents were trained with.

    Returns:
        One for each route, in the order of the set, parents among them.
    """
    qualities = [
        evaluate_subnet(net, architecture, batches, calibration, amp=amp)
        for architecture in net.architectures
    ]
    costs = [float(cost(architecture)) for architecture in net.architectures]
    pairs = [(own, score(quality)) for own, quality in zip(costs, qualities, strict=True)]
    best = non_dominated(pairs, maximise=(False, True))
    return [
        StitchedPoint(route, architecture, own, quality, bool(on_front))
        for (architecture, route), own, quality, on_front in zip(
            net.networks.items(), costs, qualities, best, strict=True
        )
    ]
