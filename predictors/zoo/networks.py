"""Networks of timm in the form in which they run after training.

Parallel branches are merged (RepVGG, MobileOne, FastViT: by timm's own functions) and batch norms
are folded into the convolutions before them, as engines of deployment do and as our networks are
measured. Weights are random: nothing is fetched, and speed does not depend on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # others may make their weights anew in each pass
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def deployed(name: str, image_size: int, num_classes: int = 1000) -> nn.Module:
    """Builds timm's network ``name`` for square images, without pretrained weights, to be run.

    It is on torch's default device, the meta device included.

    Args:
        name: As ``timm.create_model`` takes it.
        image_size: Side of the images.
        num_classes: Classes of the head.
    """
    options: dict[str, Any] = {"num_classes": num_classes}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and config.input_size[-1] != image_size:
        options["img_size"] = image_size
    network = reparameterize_model(timm.create_model(name, **options).eval())
    return fold_plain_batch_norms(network, torch.zeros(1, 3, image_size, image_size))


@torch.no_grad()
def fold_plain_batch_norms(network: nn.Module, images: Tensor) -> nn.Module:
    """Folds batch norms of any network into the convolutions before them, in place.

    Which those are shows one pass of ``images``: a norm whose input is what a convolution returned,
    where nothing else reads it and neither is used twice.
    """
    for convolution, path in _pairs(network, images):
        norm: Any = network.get_submodule(path)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        left = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else None
        network.set_submodule(path, left or nn.Identity())
    return network


def _pairs(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Finds convolutions, each with the path of the norm that can be folded into it."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # tensors are kept, so that no id is used again
    runs: Counter[int] = Counter()
    found: list[tuple[nn.Conv2d, str, int, int]] = []

    def after(module: nn.Conv2d, inputs: Any, output: Tensor) -> None:
        runs[id(module)] += 1
        made[id(output)] = module, output

    def before(path: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            runs[id(module)] += 1
            if id(inputs[0]) in made:
                found.append((made[id(inputs[0])][0], path, id(module), id(inputs[0])))

        return hook

    hooks = []
    for path, module in network.named_modules():
        if type(module) in _CONVOLUTIONS:
            hooks.append(module.register_forward_hook(after))
        elif type(module) in _NORMS:
            hooks.append(module.register_forward_pre_hook(before(path)))
    uses = _Uses(made)
    with uses:
        network(images)
    for handle in hooks:
        handle.remove()
    return [
        (convolution, path)
        for convolution, path, norm, tensor in found
        if runs[id(convolution)] == runs[norm] == uses.count[tensor] == 1
    ]


class _Uses(TorchFunctionMode):
    """Counts how often functions read tensors; a look at a shape is no use."""

    def __init__(self, of: dict[int, Any]) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self._of = of

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") not in ("__get__", "dim", "size"):
            values = (*args, *(kwargs or {}).values())
            lists = [x for value in values if isinstance(value, list | tuple) for x in value]
            self.count.update(id(x) for x in (*values, *lists) if id(x) in self._of)
        return func(*args, **(kwargs or {}))
