"""RepQ: channels after a norm get one range, and linear layers take back what that changes.

Li et al., RepQ-ViT (2023), equations 6 to 9: rounding with one scale and one zero point is then
what rounding with those of each channel would be. Where a norm or a linear layer has no bias, only
scales are moved.
"""

from __future__ import annotations

import torch

from supernet.quantisation.preparations.pairs import Pair
from supernet.quantisation.preparations.ways import preparation

LEVELS = 255
LEAST = 0.01  # of the mean scale, which none is taken to be below: it would blow up the norm


@preparation("reparameterise")
def reparameterise(pair: Pair) -> None:
    """Gives all channels the mean of their scales and, where biases allow it, zero points."""
    if not pair.of_norm:
        return
    scale = (pair.high - pair.low) / LEVELS
    if not bool(scale.mean() > 0):
        return
    scale = torch.maximum(scale, LEAST * scale.mean())
    if pair.shifts:
        zero = -pair.low / scale
        pair.add(scale * (zero - zero.mean()))
    pair.divide(scale / scale.mean())
