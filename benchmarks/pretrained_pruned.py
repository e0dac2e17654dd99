"""The other way for ``pretrained.py``: torch-pruning on the same parent, as a network of timm's.

Groups of channels are ranked together (isomorphic groups with each other) by Taylor importance,
whose gradients are computed anew before each of many small steps, and cut to multiples of 8. Of
the networks after each step the first is taken whose measured latency meets a budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import timm
import torch
from folded import folded
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from predictors.measuring.bench import Limits, Subject
from predictors.measuring.remeasure import measure_subjects
from predictors.tables.conditions import Conditions
from supernet.network.backbone import Backbone
from supernet.network.timm_models import timm_model, to_timm

MOST = 0.95  # of the channels, cut in the last step if it ever comes
GRADIENTS = 128  # images of each step


class Staged(EfficientNet):
    """timm's network with the maps that ours gives: of the end of each stage."""

    def forward_intermediates(self, x: Tensor, *_: Any, **__: Any) -> Any:
        """Returns features and a list of maps, as ``Backbone.forward_intermediates``."""
        x, maps = self.bn1(self.conv_stem(x)), []
        for stage in self.blocks:
            x = stage(x)
            maps.append(x)
        return self.bn2(self.conv_head(x)), maps


def as_timm(parent: Backbone) -> nn.Module:
    """The parent as a network of timm's own."""
    model = timm_model(parent.architecture)
    assert model is not None
    network = model.build(parent.num_classes)
    network.load_state_dict(to_timm(parent))
    network.__class__ = Staged
    return network.eval()


def resized(name: str, num_classes: int, state: Mapping[str, Tensor]) -> nn.Module:
    """A network of timm's with the widths that a state dict has, and its weights."""
    network: Any = timm.create_model(name, num_classes=num_classes)
    for path, module in network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            continue
        for key in [*dict(module.named_parameters(recurse=False)), *module._buffers]:
            value = state[f"{path}.{key}"]
            old = getattr(module, key)
            setattr(module, key, nn.Parameter(value) if isinstance(old, nn.Parameter) else value)
        width = len(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.num_features = width
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
            network.num_features = network.head_hidden_size = module.in_features
        else:
            module.groups = width if module.groups > 1 else 1
            module.out_channels = width
            module.in_channels = module.weight.shape[1] * module.groups
    network.load_state_dict(dict(state))
    network.__class__ = Staged
    return network.eval()


def macs(network: nn.Module, side: int) -> int:
    """Multiply-adds of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() // 2


def subject(network: nn.Module, side: int) -> Subject:
    """What is timed: the network as it is deployed, with its batch norms folded."""
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    copied = deepcopy(network).cpu().eval()
    return Subject(copied if isinstance(network, Backbone) else folded(copied, image), image)


def latencies(
    networks: Sequence[tuple[nn.Module, int]], conditions: Conditions, seconds: float
) -> list[float]:
    """Milliseconds of networks at their sides, in interleaved rounds."""
    limits = Limits(min_rounds=40, max_rounds=400, min_seconds=seconds)
    subjects = [subject(network, side) for network, side in networks]
    return [m.latency_ms for m in measure_subjects(subjects, conditions, limits=limits)]


def snapshots(
    parent: Backbone, drawn: Iterator[tuple[Tensor, Tensor]], steps: int, least: float
) -> list[nn.Module]:
    """The parent after each step of pruning that changed it, itself the first.

    Args:
        parent: Adapted.
        drawn: An endless draw of batches of training images without augmentation.
        steps: In which ``MOST`` of the channels would be cut.
        least: Part of the parent's multiply-adds at which pruning ends.
    """
    import torch_pruning as tp  # type: ignore[import-untyped]

    side, network = parent.architecture.resolution, as_timm(parent)
    classifier: Any = network.get_submodule("classifier")
    found, whole = [deepcopy(network)], macs(network, side)
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(1, 3, side, side),
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=MOST,
        iterative_steps=steps,
        round_to=8,
        ignored_layers=[classifier],
    )
    for _ in range(steps):
        seen = 0
        while seen < GRADIENTS:
            images, labels = next(drawn)
            F.cross_entropy(network(images), labels).backward()
            seen += len(images)
        pruner.step()
        network.zero_grad()
        now = macs(network, side)
        if now < macs(found[-1], side):
            found.append(deepcopy(network))
        if now <= least * whole:
            break
    return found


def pruned(
    steps: Sequence[nn.Module],
    side: int,
    budgets: Sequence[float],
    conditions: Conditions,
    seconds: float,
) -> dict[int, nn.Module]:
    """The first of the steps that meets each budget, a part of the first one's latency.

    Every fourth is measured, then those between the two that a budget lies between. The two before
    each are returned too, since what just misses a budget here may meet it in another measurement.

    Returns:
        By step, in ascending order.
    """
    known: dict[int, float] = {}

    def measure(which: Sequence[int]) -> None:
        at = [0, *(i for i in dict.fromkeys(which) if 0 < i < len(steps) and i not in known)]
        own, *times = latencies([(steps[i], side) for i in at], conditions, seconds)
        known.update(zip(at[1:], [time / own for time in times], strict=True))

    def first(budget: float) -> int | None:
        return next((i for i in sorted(known) if known[i] <= budget), None)

    measure([*range(0, len(steps), 4), len(steps) - 1])
    found = [first(budget) for budget in budgets]
    measure([i - back for i in found if i is not None for back in (1, 2, 3)])
    print("latency after steps:", {i: round(known[i], 2) for i in sorted(known)}, flush=True)
    last = [i for i in map(first, budgets) if i is not None]
    near = sorted({i - back for i in last for back in (0, 1, 2) if i - back > 0})
    return {i: steps[i] for i in near}


@torch.no_grad()
def with_new_averages(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Makes the averages of timm's batch norms those of training images, as ours are made."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
    network.train()
    for images, _ in batches:
        network(images.to(norms[0].weight.device))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
