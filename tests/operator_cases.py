"""Comparing operators with timm's, weight for weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01


def with_weights_of(mixer: nn.Module, theirs: nn.Module, names: dict[str, str]) -> nn.Module:
    """``mixer`` with timm's weights, whose names differ by these beginnings."""
    state = {}
    for key, value in theirs.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        start = next(name for name in names if key.startswith(name))
        ours = names[start] + key.removeprefix(start)
        state[ours] = value.reshape(mixer.state_dict()[ours].shape)
    mixer.load_state_dict(state)
    return mixer.eval()
