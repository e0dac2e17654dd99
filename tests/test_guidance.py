"""Training with a parent: what the loss is made of, and that rare classes can count more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_training import config, few_images

from search_space import load_space
from supernet import Backbone, build
from supernet.data.batches import Batch
from supernet.inherit.guidance import Guidance, GuidedObjective, finetune_guided, map_distance

pytestmark = pytest.mark.usefixtures("one_thread")


def networks() -> tuple[Backbone, Backbone]:
    torch.manual_seed(0)
    space = load_space("digits")
    return build(space.smallest, 10), build(space.smallest, 10)


def test_the_loss_is_labels_logits_and_maps() -> None:
    network, parent = networks()
    images, targets = torch.randn(6, 3, 16, 16), torch.arange(6)
    recipe = config(label_smoothing=0.0, amp="off")
    guidance = Guidance(logits=0.25, maps=2.0, temperature=3.0)
    weights = torch.arange(1.0, 11.0)
    objective = GuidedObjective(network.eval(), parent, recipe, guidance, weights)
    (loss,) = objective.losses(0, Batch(images, targets, torch.arange(6), 0))
    logits, wanted = network(images), parent(images)
    hard = F.cross_entropy(logits, targets, weights, reduction="sum") / 6
    shares = (wanted / 3).softmax(1)
    soft = 9 * F.cross_entropy(logits / 3, shares)
    maps = [net.forward_intermediates(images)[1] for net in (network, parent)]
    far = [1 - F.cosine_similarity(a, b, dim=1).mean() for a, b in zip(*maps, strict=True)]
    expected = 0.75 * hard + 0.25 * soft + 2 * torch.stack(far).mean()
    torch.testing.assert_close(loss.loss, expected)


def test_maps_of_other_sides_and_widths() -> None:
    maps = [torch.randn(2, 4, 2, 2), torch.randn(2, 3, 1, 1)]
    larger = maps[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert map_distance(maps, [larger, torch.randn(2, 5, 1, 1)]).item() == pytest.approx(
        0, abs=1e-6
    )
    assert map_distance(maps[1:], [torch.randn(2, 5, 1, 1)]).item() == 0


def test_rare_classes_count_more(monkeypatch: pytest.MonkeyPatch) -> None:
    data = few_images()
    counted = torch.where(torch.from_numpy(data.train.labels) == 0)[0]
    labels = data.train.labels.copy()
    labels[counted[1:]] = 1  # one image of class 0 is left
    monkeypatch.setattr(data.train, "labels", labels)
    losses = {}
    for choice in ("none", "balanced"):
        network, parent = networks()
        recipe = config(epochs=2, class_weights=choice)
        losses[choice] = finetune_guided(network, parent, data, recipe)[1].losses[""]
    assert losses["none"] != losses["balanced"]
