"""A classifier fitted to what a trained network makes of images."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from search_space import Architecture, Macro, Mixer, Stage, metaformer
from supernet import Backbone, build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.adaptation import PENALTY, fit_classifier
from supernet.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> Backbone:
    """An untrained network without a norm before its classifier, so that features may be dead."""
    torch.manual_seed(0)
    block = metaformer(Mixer.of("depthwise_conv", kernel=3), 2.0)
    macro = Macro(stem_kernel=2, stem_stride=2)
    return build(Architecture(macro, 16, (Stage(16, (block,)), Stage(24, (block,)))), 7).eval()


def test_it_is_the_regression_of_another_library() -> None:
    data, trained = open_data("digits", 16), network()
    batches = list(eval_batches(data.train))
    with torch.no_grad():
        maps = [trained.forward_features(images) for images, _ in batches]
        features = torch.cat([trained.forward_head(x, pre_logits=True) for x in maps])
    labels = torch.cat([y for _, y in batches])
    scaled = (features - features.mean(0)) / features.std(0, correction=0)
    # its penalty is half of the squared weights, beside the sum over images
    theirs = LogisticRegression(C=1 / (2 * PENALTY * len(labels)), max_iter=2000, tol=1e-8)
    share = fit_classifier(trained, batches, data.num_classes)
    assert share == pytest.approx(theirs.fit(scaled, labels).score(scaled, labels), abs=0.003)
    assert evaluate(trained, batches).accuracy == pytest.approx(share, abs=1e-6)


def test_a_feature_that_hardly_changes_gets_no_large_weights() -> None:
    data, trained = open_data("digits", 16), network()
    with torch.no_grad():  # of each image almost the same
        trained.get_submodule("head.norm").weight[:6] *= 1e-4
    batches = list(eval_batches(data.train))
    fit_classifier(trained, batches, data.num_classes)
    weight = trained.get_classifier().weight
    assert weight[:, :6].abs().max() < weight[:, 6:].abs().max()
    assert evaluate(trained, batches).accuracy > 0.5
