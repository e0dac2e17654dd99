"""Importance by the squared gradient of a gate (Yang et al., NViT, CVPR 2023).

    I_j = E[(Σ_s g_s w_s)²]

over the parameters s that belong to unit j: the diagonal of the Hessian of gates of 1 in front of
units, with the gradients of batches. Removing a unit also saves time, so units of different axes
compare by I_j − η · (seconds that removing one saves), which among units of one axis is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from supernet.inherit.importance.criteria import Scores, Units, criterion
from supernet.inherit.importance.taylor import first_order
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches

ETA = 5e-4  # per second, as published for latencies of a batch of 256


@criterion("gate")
def gate(
    network: Backbone,
    units: Sequence[Units],
    batches: Batches,
    saved_s: Callable[[Units], float] | None = None,
    eta: float = ETA,
) -> Scores:
    """Measures the mean over batches of each unit's squared gate gradient.

    Args:
        network: In evaluation mode.
        units: To be measured.
        batches: Of images and labels.
        saved_s: Given an axis, the seconds that a network with one of its units less takes less.
        eta: Loss that a second is worth.
    """
    return {
        axis: sums.square().mean(0) - (eta * saved_s(axis) if saved_s is not None else 0.0)
        for axis, sums in first_order(network, units, batches).items()
    }
