"""Cross-layer equalisation: weights that write a channel and weights that read it are as large.

Nagel et al., Data-free quantization through weight equalization and bias correction (2019),
equation 11, for convolutions with a ReLU or nothing between. A ReLU6 does not allow it.
"""

from __future__ import annotations

import torch

from supernet.quantisation.preparations.pairs import Pair
from supernet.quantisation.preparations.ways import preparation


@preparation("equalise")
def equalise(pair: Pair) -> None:
    """Divides channels by √(largest weight that writes / largest weight that reads)."""
    if pair.of_norm:
        return
    writes = pair.writer.weight.detach().flatten(1).abs().amax(1)
    reads = pair.largest_weights()
    used = (writes > 0) & (reads > 0)
    pair.divide(torch.where(used, (writes / reads).sqrt(), 1.0))
