"""Which components suffer from int8, from gradients: two numbers for each, beside what is measured.

``rounding_scores`` weighs the error that rounding makes in a component's output by squared
gradients, the diagonal of the Fisher matrix that stands for the Hessian (Li et al., BRECQ, 2021;
so chooses Q-HyViT). ``relevances`` are shares of what the predicted class's logit is made of, by
gradient times activation, which layer-wise relevance propagation comes down to in networks of ReLUs
(Ancona et al., 2018; so chooses LRP-QViT); they know nothing of rounding. Both need one forward and
one backward pass, where a quality table needs one forward pass for each component and more images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from search_space.components import components
from supernet.network.backbone import Backbone


@dataclass(frozen=True)
class _Passed:
    """What passed a component: what it was given, what it gave, and the gradient of that."""

    given: Tensor
    output: Tensor
    gradient: Tensor


def rounding_scores(
    network: Backbone, quantised: Backbone, images: Tensor, seed: int = 0
) -> dict[str, float]:
    """Estimates for each component what int8 costs: half the mean over images of Σ g² Δ².

    g is the gradient of the cross entropy to labels that are drawn from the network's own
    predictions, Δ what int8 changes in the output of the component alone.

    Args:
        network: In float; as it is in evaluation mode.
        quantised: Of ``quantised_network``, with the components in int8 that are of interest.
        images: (n, 3, side, side), normalised.
        seed: Of the drawn labels.

    Returns:
        By path of each component in int8, nats.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(logits: Tensor) -> Tensor:
        shares = logits.detach().softmax(1).cpu()
        labels = torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)
        return F.cross_entropy(logits, labels, reduction="sum")

    passed, scores = _passed(network, images, loss), {}
    quantised = quantised.eval()
    for item in components(quantised.architecture, quantised.num_classes):
        if item.spec.quantised:
            at = passed[item.path]
            with torch.no_grad():
                change = quantised.get_submodule(item.path)(at.given) - at.output
            squares = (at.gradient * change).square().sum()
            scores[item.path] = 0.5 * float(squares) / len(images)
    return scores


def relevances(network: Backbone, images: Tensor) -> dict[str, float]:
    """Computes for each component its share in the logit of the predicted class, sum 1.

    That is Σ |g ⊙ y| with the gradient g of the logit and the output y, of which what a component
    with a residual connection was given is subtracted.

    Args:
        network: In float; as it is in evaluation mode.
        images: (n, 3, side, side), normalised.

    Returns:
        By path of each component.
    """
    passed = _passed(network, images, lambda logits: logits.amax(1).sum())
    sums = {}
    for path, at in passed.items():
        same = path.startswith("stages") and at.given.shape == at.output.shape
        own = at.output - at.given if same else at.output
        sums[path] = float((at.gradient * own).abs().sum())
    total = sum(sums.values()) or 1.0
    return {path: value / total for path, value in sums.items()}


def _passed(
    network: Backbone, images: Tensor, loss: Callable[[Tensor], Tensor]
) -> dict[str, _Passed]:
    training = [part for part in network.modules() if part.training]
    network.eval()
    x, kept = images, []
    try:
        with torch.enable_grad():
            for item in components(network.architecture, network.num_classes):
                given, x = x, network.get_submodule(item.path)(x)
                kept.append((item.path, given, x))
            outputs = [output for _, _, output in kept]
            gradients = torch.autograd.grad(loss(x), outputs)
    finally:
        for part in training:
            part.training = True
    return {
        path: _Passed(given.detach(), output.detach(), gradient)
        for (path, given, output), gradient in zip(kept, gradients, strict=True)
    }
