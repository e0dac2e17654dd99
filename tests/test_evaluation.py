"""What networks are judged by, against scikit-learn; and trainings for unbalanced classes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from tiny_training import few_images, fresh, small_network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from search.evaluator import SupernetEvaluator
from search_space import load_space
from search_space.errors import RunError
from supernet.data.augmentation import AugmentConfig
from supernet.data.batches import balanced_order
from supernet.data.evaluation_batches import doubling_batches, eval_batches
from supernet.training.evaluation import Quality, evaluate
from supernet.training.objectives import balanced_weights, label_loss
from supernet.training.train import TrainConfig, finetune

pytestmark = pytest.mark.usefixtures("one_thread")


class _Fixed(nn.Module):
    """Gives the logits that the images are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_a_batch_of_many_classes_takes_no_square_of_them():
    logits = torch.zeros(3, 500)
    logits[[0, 1, 2], [7, 499, 7]] = 1
    labels = torch.tensor([7, 2, 7])
    with _Largest() as largest:
        quality = evaluate(_Fixed(), [(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    assert largest.elements <= logits.numel()
    assert np.argwhere(quality.confusion).tolist() == [[2, 499], [7, 7]]
    assert (quality.images, quality.confusion[7, 7], quality.confusion.shape) == (3, 2, (500, 500))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_figures_of_a_split_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(3)
    labels = rng.choice(classes, 300, p=[0.9, *[0.1 / (classes - 1)] * (classes - 1)])
    logits = rng.normal(size=(300, classes)).round(1)  # rounded, so that scores tie
    logits[np.arange(300), labels] += 1
    batches = [
        (torch.tensor(logits[a:b]), torch.tensor(labels[a:b])) for a, b in pairwise((0, 128, 300))
    ]
    quality = evaluate(_Fixed(), batches)
    predicted = logits.argmax(1)
    assert quality.confusion.tolist() == metrics.confusion_matrix(labels, predicted).tolist()
    assert quality.images == 300
    assert quality.accuracy == metrics.accuracy_score(labels, predicted)
    for value, reference in (
        (quality.balanced_accuracy, metrics.balanced_accuracy_score(labels, predicted)),
        (quality.macro_f1, metrics.f1_score(labels, predicted, average="macro")),
        (quality.recalls, metrics.recall_score(labels, predicted, average=None)),
        (quality.loss, metrics.log_loss(labels, torch.tensor(logits).softmax(1).numpy())),
    ):
        assert value == pytest.approx(reference, rel=1e-6)
    if classes == 2:
        scores = logits[:, 1] - logits[:, 0]
        assert quality.auc == pytest.approx(metrics.roc_auc_score(labels, scores.astype("f4")))
    else:
        assert quality.auc is None
    assert json.loads(json.dumps(quality.to_dict()))["confusion"] == quality.confusion.tolist()


def test_a_class_without_images_has_no_recall_and_counts_in_no_mean():
    quality = evaluate(_Fixed(), [(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 1]))])
    assert quality.to_dict()["recalls"] == [1.0, 2 / 3, None]
    assert quality.balanced_accuracy == pytest.approx(5 / 6)
    assert quality.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    alone = evaluate(_Fixed(), [(torch.eye(2), torch.tensor([1, 1]))])
    assert alone.auc is None
    nothing = Quality(np.zeros((2, 2), np.int64), 0.0)
    assert (nothing.accuracy, nothing.balanced_accuracy, nothing.macro_f1) == (0, 0, 0)


def test_parts_of_the_images_average_to_the_balanced_accuracy_of_all():
    space, data = load_space("digits"), few_images()
    labels = data.validation.labels
    evaluator = SupernetEvaluator(
        fresh(space), doubling_batches(data.validation, 2), class_counts=np.bincount(labels)
    )
    whole = evaluator(space.smallest)
    parts = [evaluator(space.smallest, part) for part in range(3)]
    images = [part["validation_images"] for part in parts]
    for name in ("accuracy", "balanced_accuracy", "loss"):
        mean = np.average([part[name] for part in parts], weights=images)
        assert mean == pytest.approx(whole[name], rel=1e-6)


def test_class_weights_are_those_of_scikit_learn_and_do_not_depend_on_the_batch():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = balanced_weights(labels, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights.tolist() == pytest.approx(expected)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(labels)
    whole = label_loss(logits, targets, 0.1, weights)
    parts = [label_loss(logits[a:b], targets[a:b], 0.1, weights) for a, b in ((0, 5), (5, 10))]
    assert whole == pytest.approx(sum(parts) / 2)
    shares = torch.full((10, 3), 0.1 / 3)
    shares[torch.arange(10), targets] += 0.9
    assert label_loss(logits, shares, 0.0, weights) == pytest.approx(whole)


def test_a_balanced_epoch_shows_classes_alike_and_repeats_no_image_too_soon():
    labels = np.repeat([0, 1, 2], [80, 8, 2])
    epochs = [balanced_order(labels, np.random.default_rng([0, epoch])) for epoch in range(2)]
    for order in epochs:
        assert np.bincount(labels[order]).tolist() == [30, 30, 30]
        assert np.bincount(order[labels[order] == 1]).max() <= 4
        assert np.bincount(order[labels[order] == 2])[88:].tolist() == [15, 15]
        assert np.bincount(order[labels[order] == 0]).max() == 1
    frequent = [set(order[labels[order] == 0].tolist()) for order in epochs]
    assert frequent[0] != frequent[1]
    even = np.array([0, 1] * 5)
    assert sorted(balanced_order(even, np.random.default_rng(0)).tolist()) == list(range(10))


@pytest.mark.parametrize("choice", [{"class_weights": "balanced"}, {"sampling": "balanced"}])
def test_a_rare_class_is_learnt_where_classes_are_balanced(choice):
    """Of images that are noise but for a faint sign of a class that one in twenty has."""

    def trained(**settings: str) -> Quality:
        data = few_images()
        data.train.labels = (data.train.labels == 8).astype(np.int64)
        data.validation.labels = (data.validation.labels == 8).astype(np.int64)
        data = replace(data, class_names=("others", "eight"))
        network = small_network(classes=2)
        config = TrainConfig(
            epochs=2, batch_size=32, lr=2e-3, augment=AugmentConfig(crop="none"), **settings
        )
        finetune(network, data, config)
        return evaluate(network, eval_batches(data.validation))

    plain, balanced = trained(), trained(**choice)
    assert balanced.recalls[1] > plain.recalls[1] + 0.2


def test_what_would_count_rare_classes_twice_or_not_at_all_is_refused():
    with pytest.raises(RunError, match=r"both 'balanced'.*set one of them"):
        TrainConfig(class_weights="balanced", sampling="balanced")
    with pytest.raises(RunError, match=r"teacher.*sampling"):
        TrainConfig(class_weights="balanced", teacher="resnet18")
