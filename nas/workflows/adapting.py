"""A published network is adapted to a run's images: a classifier of theirs, then all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nas.workflows.inherited import START
from nas.workflows.with_images import ImageRun, shown
from search_space import Architecture
from supernet import Backbone, build
from supernet.data.augmentation import gentle_augment
from supernet.data.dataset import ImageData
from supernet.inherit.adaptation import fit_classifier
from supernet.network.tensor_files import read_tensors, write_tensors
from supernet.training.config import TrainConfig
from supernet.training.recalibration import calibration_batches

LOADING, CLASSIFYING, ADAPTING = (
    "loading the parent",
    "a classifier for the parent",
    "adapting the parent",
)
CLASSIFIER_IMAGES = 4096  # that the first classifier is fitted to


def begin(
    run: ImageRun, folder: str, architecture: Architecture, load: Callable[[], Backbone]
) -> None:
    """Keeps a published network with a classifier of the run's images, unless that is there."""
    file = run.path / folder / START
    if file.exists():
        return
    theirs = load()
    with run.phase(CLASSIFYING):
        network, share = classified(
            theirs, architecture, run.data, seed=run.config.seed, device=run.compute
        )
        run.console.say(f"  a classifier alone knows {share:.1%} of training images")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, network.state_dict())


def adapted(run: ImageRun, folder: str, architecture: Architecture) -> Backbone:
    """The network that ``begin`` has kept, trained on the run's images, now or before."""
    recipe = gentle(run.config.adapt, run.data)
    network = build(architecture, run.num_classes, drop_path_rate=recipe.drop_path_rate)
    network.load_state_dict(read_tensors(run.path / folder / START))
    with run.phase(ADAPTING) as progress:
        run.train_network(network, recipe, folder, shown(progress))
    return network.eval()


def gentle(recipe: TrainConfig, data: ImageData) -> TrainConfig:
    """A recipe with the augmentation of few epochs, where it names none."""
    return replace(recipe, augment=recipe.augment or gentle_augment(data.kind, data.resolution))


def classified(
    theirs: Backbone, architecture: Architecture, data: ImageData, *, seed: int, device: str
) -> tuple[Backbone, float]:
    """A published network with a classifier that is fitted to the images.

    Returns:
        The network at the resolution of ``architecture``, on the CPU, and the share of the training
        images that it classifies right.
    """
    network = build(architecture, theirs.num_classes)
    network.load_state_dict(theirs.state_dict())
    images = calibration_batches(data, CLASSIFIER_IMAGES, seed)
    share = fit_classifier(network.to(device), images, data.num_classes)
    return network.cpu(), share
