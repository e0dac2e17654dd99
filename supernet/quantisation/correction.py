"""Correction of biases: what rounding adds to the mean of a channel is taken away again.

Rounded weights change the mean of each output channel, most where few weights make a channel, as in
depthwise convolutions (Nagel et al., Data-free quantization through weight equalization and bias
correction, 2019, section 4.2). The means are those of calibration images here.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from supernet.network.quantised import QuantisedConv2d, QuantisedLinear


@torch.no_grad()
def correct_biases(quantised: nn.Module, twin: nn.Module, images: Tensor) -> None:
    """Corrects the biases of quantised layers in place, each after those before it.

    Layers without a bias stay as they are.

    Args:
        quantised: In evaluation mode, with ranges.
        twin: The float network that it was made of, with folded batch norms, and prepared alike.
        images: (n, 3, side, side), normalised; some hundreds.
    """
    wanted: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def hook(part: nn.Module, given: object, output: Tensor) -> None:
            wanted[name] = _means(part, output)

        return hook

    def correct(name: str) -> Any:
        def hook(part: Any, given: object, output: Tensor) -> Tensor:
            change = wanted[name] - _means(part, output)
            part.bias.data = part.bias + change
            return output + (change if isinstance(part, nn.Linear) else change[:, None, None])

        return hook

    names = [
        name
        for name, part in quantised.named_modules()
        if isinstance(part, (QuantisedConv2d, QuantisedLinear)) and part.bias is not None
    ]
    for network, make in ((twin, remember), (quantised, correct)):
        with ExitStack() as stack:
            for name in names:
                layer = network.get_submodule(name)
                stack.callback(layer.register_forward_hook(make(name)).remove)
            network(images)


def _means(layer: nn.Module, output: Tensor) -> Tensor:
    channels = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
    return channels.flatten(0, -2).mean(0)
