"""A trained network's first steps on other images: a classifier for their classes.

A fresh classifier above trained layers sends them random gradients at first (Kumar et al.,
"Fine-tuning can distort pretrained features", ICLR 2022). It is therefore fitted alone before
anything else is trained: a logistic regression of what the layers below make of training images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from supernet.data.evaluation_batches import moved
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches, at_trained_resolution, evaluation_mode

PENALTY = 0.1
"""Of the squared weights: the best of 0.001 to 1 for 1,280 features of 4,096 images."""
STEPS = 100
FLOOR = 0.1
"""Of the root mean square of all features' deviations, which none is taken to be below: a feature
that hardly changes would get weights of hundreds, which the first step of a training blows up."""


def fit_classifier(network: Backbone, batches: Batches, num_classes: int) -> float:
    """Gives a network a classifier of other classes, fitted to images, in place.

    Features are brought to mean 0 and deviation 1, at most, and the squared weights of the
    regression are punished by ``PENALTY``; it has one minimum, which L-BFGS finds. Averages of
    batch norms stay those of the images that the network was trained on, whose features generalise
    better than those of averages of few new images.

    Args:
        network: Trained, with a classifier of any number of outputs.
        batches: Training images without augmentation, (images (n, 3, side, side), labels (n,)).
        num_classes: Outputs of the new classifier.

    Returns:
        The share of the images that it then classifies right.
    """
    device = next(network.parameters()).device
    features, labels = _features(network, batches, device)
    mean, deviation = features.mean(0), features.std(0, correction=0)
    deviation = deviation.clamp_min(max(1e-6, FLOOR * float(deviation.square().mean().sqrt())))
    features = (features - mean) / deviation
    weight = torch.zeros(num_classes, features.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, labels)
        value = value + PENALTY * weight.square().sum()
        value.backward()
        return value.detach()

    solver.step(loss)
    with torch.no_grad():
        right = (features @ weight.T + bias).argmax(1) == labels
        network.reset_classifier(num_classes)
        network.to(device)
        classifier = network.get_classifier()
        assert isinstance(classifier, torch.nn.Linear)
        classifier.weight.copy_(weight / deviation)
        classifier.bias.copy_(bias - (weight / deviation) @ mean)
    return float(right.float().mean())


@torch.no_grad()
def _features(network: Backbone, batches: Batches, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the classifier is shown of each image, (n, width), and the labels (n,)."""
    features, labels = [], []
    with evaluation_mode(network):
        for images, targets in moved(batches, device):
            maps = network.forward_features(at_trained_resolution(network, images))
            features.append(network.forward_head(maps, pre_logits=True).float())
            labels.append(targets)
    return torch.cat(features), torch.cat(labels)
