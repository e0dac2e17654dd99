"""Importance by magnitude (Li et al., "Pruning filters for efficient ConvNets", 2017).

    I_j = √(Σ_s w_s²)

over the weights s that write or read unit j. Batch norms are folded into the layers beside them
first, since they undo the scale of the weights before them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from supernet.inherit.importance.criteria import Scores, Units, criterion
from supernet.network.backbone import Backbone
from supernet.network.layers import fold_batch_norms
from supernet.training.evaluation import Batches


@criterion("magnitude")
def magnitude(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Measures the L2 norm of each unit's weights; looks at no image."""
    result = {}
    for axis in units:
        module = fold_batch_norms(copy.deepcopy(axis.module(network)))
        weights = {
            name: value.square() for name, value in module.named_parameters() if value.ndim > 1
        }
        result[axis] = axis.sums(module, weights).sqrt()
    return result
