"""Evaluation of a network on a split, for balanced and unbalanced classes.

Everything but the loss and the AUC follows from the confusion matrix, so that is what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from search_space.architecture import Architecture
from supernet.data.batches import resize_images
from supernet.data.evaluation_batches import moved
from supernet.network.quantised import fake_quantisers
from supernet.training.precision import autocast

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

MAX_LISTED_CLASSES = 100  # a larger confusion matrix is nothing to read, and megabytes of JSON


@dataclass(frozen=True, eq=False)
class Quality:
    """Holds how well a network does on a split.

    Example:
        >>> quality = evaluate(network, eval_batches(data.test))
        >>> quality.balanced_accuracy, quality.recalls, quality.to_dict()

    Attributes:
        confusion: Images by true class (row) and predicted class (column), int64, of shape
            (classes, classes).
        loss: Mean cross entropy to the labels, in nats; over few images it tells networks apart
            that accuracy, a count of images, leaves tied.
        auc: Area under the ROC curve of the second class of two; None for more classes, and where
            one of the two has no image.
    """

    confusion: npt.NDArray[np.int64]
    loss: float
    auc: float | None = None

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of the images whose class is predicted (top-1), 0..1; 0 without images."""
        return int(self.confusion.trace()) / max(1, self.images)

    @property
    def recalls(self) -> npt.NDArray[np.float64]:
        """The share of each class's images that are predicted as it; NaN without images."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(1))

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of classes with images: accuracy as if all were equally frequent."""
        present = self.recalls[self.confusion.sum(1) > 0]
        return float(present.mean()) if len(present) else 0.0

    @property
    def macro_f1(self) -> float:
        """The mean over classes of F1 = 2·hits / (images + predictions).

        Classes with neither images nor predictions are left out, as scikit-learn does.
        """
        sizes = self.confusion.sum(0) + self.confusion.sum(1)
        f1 = _shares(2 * self.confusion.diagonal(), sizes)[sizes > 0]
        return float(f1.mean()) if len(f1) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, JSON-able.

        The keys are ``images``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auc`` (None
        but for two classes), ``loss``, ``recalls`` (a list by class; None for a class without
        images), and ``confusion`` (rows of true classes, each a list by predicted class; None for
        more than ``MAX_LISTED_CLASSES`` classes).
        """
        listed = len(self.confusion) <= MAX_LISTED_CLASSES
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "auc": self.auc,
            "loss": self.loss,
            "recalls": [None if np.isnan(share) else float(share) for share in self.recalls],
            "confusion": self.confusion.tolist() if listed else None,
        }


def _shares(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Divides part by whole; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(1, whole), np.nan)


def evaluate(
    model: nn.Module | Callable[..., torch.Tensor],
    batches: Batches,
    *,
    architecture: Architecture | None = None,
    device: str | torch.device | None = None,
    amp: str = "auto",
) -> Quality:
    """Judges ``model(images)``, or ``model(images, architecture)``, by the labels of ``batches``.

    Images are resized to the architecture's resolution. Runs in evaluation and inference mode
    and leaves the modules in the modes they were in.

    Args:
        model: A module or a function that gives logits (n, classes).
        batches: (images (n, 3, side, side) float32 normalised, labels (n,) int64) pairs.
        architecture: The subnet to judge, of a supernet.
        device: Where images go; by default where the model's parameters are, else the CPU.
        amp: As the network was trained with (``TrainConfig.amp``). A network in int8 is judged in
            float32: 16 bits cannot tell the levels apart that are simulated.
    """
    if device is None:
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = "cpu" if first is None else first.device
    device = torch.device(device)
    if isinstance(model, nn.Module) and fake_quantisers(model):
        amp = "off"
    loss = torch.zeros((), dtype=torch.float64, device=device)
    classes = 0
    cells: list[torch.Tensor] = []  # of the confusion matrix, one for each image
    scores: list[tuple[torch.Tensor, torch.Tensor]] = []
    mode = evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.inference_mode():
        for images, labels in moved(batches, device):
            with autocast(device, amp):
                if architecture is None:
                    logits = model(at_trained_resolution(model, images))
                else:
                    logits = model(resize_images(images, architecture.resolution), architecture)
            loss += F.cross_entropy(logits.float(), labels, reduction="sum")
            classes = logits.shape[1]
            cells.append(labels * classes + logits.argmax(1))
            if classes == 2:
                scores.append(((logits[:, 1] - logits[:, 0]).float(), labels))
        auc = _area(*map(torch.cat, zip(*scores, strict=True))) if scores else None
    # Counted once, and here: the matrix may be larger than all else.
    flat = torch.cat(cells).cpu().numpy() if cells else np.zeros(0, np.int64)
    counts = np.bincount(flat, minlength=classes**2).reshape(classes, classes)
    return Quality(counts, float(loss) / max(1, int(counts.sum())), auc)


def _area(scores: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Gives the chance that an image of class 1 scores above one of class 0; ties count a half.

    It is the Mann-Whitney statistic, from mean ranks: (Σ ranks of class 1 − n₁(n₁ + 1)/2) / n₀n₁.
    """
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]
    positive = labels == 1
    n1 = int(positive.sum())
    n0 = len(labels) - n1
    if n0 == 0 or n1 == 0:
        return None
    return (float(ranks[positive].sum()) - n1 * (n1 + 1) / 2) / (n0 * n1)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switches to evaluation mode; afterwards each submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def at_trained_resolution(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Resizes images to the resolution of the model's architecture, where it has one."""
    architecture = getattr(model, "architecture", None)
    if isinstance(architecture, Architecture):
        return resize_images(images, architecture.resolution)
    return images
