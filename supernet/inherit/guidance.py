"""Training of a network that a trained one guides: by labels, its logits and its maps.

The parent's maps at the end of each stage are learnt besides its logits (Romero et al.,
"FitNets", 2015), by the angle between the channels of each position (Zagoruyko & Komodakis, 2017,
compare normalised maps likewise), so that no stage counts more because its values are larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.data.batches import Batch
from supernet.data.dataset import ImageData
from supernet.network.backbone import Backbone
from supernet.network.norms import has_batch_norms
from supernet.network.tensor_files import digest_of
from supernet.training.config import EpochMetrics, TrainConfig, check_batch_norms
from supernet.training.evaluation import at_trained_resolution
from supernet.training.loop import How, TrainingLoop
from supernet.training.objectives import Loss, NetworkObjective, distillation_loss, label_loss
from supernet.training.precision import autocast
from supernet.training.train import class_weights_of


@dataclass(frozen=True)
class Guidance:
    """How much a parent counts beside the labels.

    Attributes:
        logits: Share of the parent's predictions in the loss; the rest are labels.
        maps: Weight of the mean distance of the stages' maps.
        temperature: Of the predictions.
    """

    logits: float = 0.5
    maps: float = 1.0
    temperature: float = 2.0


class GuidedObjective(NetworkObjective):
    """Trains a network on labels and on a parent's logits and maps; the parent stays as it is."""

    def __init__(
        self,
        network: Backbone,
        parent: Backbone,
        config: TrainConfig,
        guidance: Guidance,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(network, config, class_weights=class_weights)
        self.student = network
        self.parent, self.guidance = parent.eval().requires_grad_(False), guidance

    def losses(self, step: int, batch: Batch) -> Iterator[Loss]:
        config, guidance, device = self.config, self.guidance, batch.images.device
        with torch.no_grad(), autocast(device, config.amp):
            wanted, guides = _logits_and_maps(self.parent, batch.images)
        with autocast(device, config.amp):
            logits, maps = _logits_and_maps(self.student, batch.images)
        hard = label_loss(logits, batch.targets, config.label_smoothing, self.class_weights)
        soft = distillation_loss(logits, wanted, guidance.temperature)
        loss = torch.lerp(hard, soft, guidance.logits)
        loss = loss + guidance.maps * map_distance(maps, guides)
        yield Loss("", 1.0, loss, label_loss(logits.detach(), batch.targets))


def _logits_and_maps(network: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    images = at_trained_resolution(network, images)
    features, maps = network.forward_intermediates(images)
    return network.forward_head(features), maps


def map_distance(maps: Sequence[Tensor], guides: Sequence[Tensor]) -> Tensor:
    """Computes the mean of 1 − cos between the channels of each position, over stages.

    Args:
        maps: By stage (n, dim, height, width).
        guides: Of the same channels; larger ones are averaged to the maps' sides. Stages with
            other channels are left out, and all where there are more or less of them.
    """
    distances = []
    pairs = zip(maps, guides, strict=True) if len(maps) == len(guides) else ()
    for ours, theirs in pairs:
        if ours.shape[1] != theirs.shape[1]:
            continue
        theirs = F.adaptive_avg_pool2d(theirs.float(), (ours.shape[2], ours.shape[3]))
        distances.append(1 - F.cosine_similarity(ours.float(), theirs, dim=1).mean())
    if not distances:
        return maps[0].new_zeros(())
    return torch.stack(distances).mean()


def finetune_guided(
    network: Backbone,
    parent: Backbone,
    data: ImageData,
    config: TrainConfig,
    directory: str | Path | None = None,
    *,
    guidance: Guidance | None = None,
    **how: Unpack[How],
) -> list[EpochMetrics]:
    """Trains a network in place by labels and a parent, as ``supernet.training.train.finetune``.

    Args:
        network: What is trained.
        parent: Of the same classes; it sees the same images, at its own resolution.
        data: At the resolution of the larger of both.
        config: How; the seed decides what is drawn.
        directory: Where checkpoints go, from which it continues; None to write nothing.
        guidance: How much the parent counts.
        how: See ``How``.

    Raises:
        RunError: The checkpoint there is of another start, parent or configuration.
        TrainingDivergedError: The loss stayed non-finite.
    """
    guidance = guidance or Guidance()
    if has_batch_norms(network):
        check_batch_norms(config, len(data.train))
    device = how.get("device", "cpu")
    identity = {
        "start": digest_of(network.state_dict()),
        "parent": digest_of(parent.state_dict()),
        "guidance": [guidance.logits, guidance.maps, guidance.temperature],
    }
    module: nn.Module = network.to(device)
    weights = class_weights_of(config, data, device)
    objective = GuidedObjective(network, parent.to(device), config, guidance, weights)
    return TrainingLoop(module, objective, data, config, directory, identity, **how).run()
