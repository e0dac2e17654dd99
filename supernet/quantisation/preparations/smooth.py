"""SmoothQuant: linear layers take over a part of what makes ranges of channels differ.

Xiao et al., SmoothQuant (2023), equation 4, for what linear layers read of a norm.
"""

from __future__ import annotations

import torch

from supernet.quantisation.preparations.pairs import Pair
from supernet.quantisation.preparations.ways import preparation

STRENGTH = 0.5  # 0 leaves activations as they are, 1 makes them alike


@preparation("smooth")
def smooth(pair: Pair) -> None:
    """Divides channels by max|x|^a / max|w|^(1 − a), with a of ``STRENGTH``."""
    if not pair.of_norm:
        return
    values, weights = torch.maximum(-pair.low, pair.high), pair.largest_weights()
    used = (values > 0) & (weights > 0)
    pair.divide(torch.where(used, values**STRENGTH / weights ** (1 - STRENGTH), 1.0))
