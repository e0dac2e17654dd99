"""Accuracy and loss of architectures with weights inherited from the supernet.

Networks here normalise with statistics of their own input only, so inherited weights are used
as they are. The split to evaluate on is the validation split, which is cut from the training data.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from search_space.architecture import Architecture
from search_space.metrics import ACCURACY, BALANCED_ACCURACY, IMAGES, LOSS
from search_space.space import SearchSpace

if TYPE_CHECKING:
    import torch

    from supernet.network.supernet import Supernet

    Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

Array = npt.NDArray[Any]


@dataclass(eq=False)
class SupernetEvaluator:
    """Judges architectures: ``evaluator(architecture)`` is a mapping of metrics by name.

    ``accuracy`` (top-1, 0..1), ``balanced_accuracy`` (mean recall of the classes, 0..1), ``loss``
    (in nats) and IMAGES (their count). ``evaluator(architecture, part)`` is the same of one part of
    the images, in such a way that means over parts by IMAGES are the figures of all of them: the
    balanced accuracy of a part is the mean over its images of whether they are right, weighted by
    the inverse frequency of their class among all images. Equal for every call.

    Args:
        supernet: trained; moved to ``device`` and otherwise left as it is.
        parts: of the validation images, each as batches, iterated once per call: (images
            (n, 3, side, side), labels (n,)). Images are resized to each architecture's resolution.
        amp: ``auto`` for bfloat16 on CUDA, ``off`` for float32 everywhere.
        class_counts: images of each class in all parts; None where single parts are not asked for.
    """

    supernet: Supernet
    parts: Sequence[Batches]
    _: KW_ONLY
    device: str | torch.device = "cpu"
    amp: str = "auto"
    class_counts: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self.supernet.to(self.device)

    def __call__(self, architecture: Architecture, part: int | None = None) -> dict[str, float]:
        from supernet.training.evaluation import evaluate

        quality = evaluate(
            self.supernet,
            chain.from_iterable(self.parts) if part is None else self.parts[part],
            architecture=architecture,
            device=self.device,
            amp=self.amp,
        )
        balanced = quality.balanced_accuracy
        if part is not None and self.class_counts is not None:
            counts = np.asarray(self.class_counts)
            right = quality.confusion.diagonal()[counts > 0] / counts[counts > 0]
            balanced = float(right.mean() * counts.sum() / quality.images)
        return {
            ACCURACY: quality.accuracy,
            BALANCED_ACCURACY: balanced,
            LOSS: quality.loss,
            IMAGES: quality.images,
        }


@dataclass(frozen=True)
class SupernetFactory:
    """Builds a ``SupernetEvaluator`` in another process; picklable, for ``RayExecutor``.

    It holds NumPy arrays, which Ray keeps once a machine and shows to all workers there. Images
    too many for memory are not held but read by each worker, from the same paths.

    Attributes:
        parts: of the images, each (images (n, 3, side, side), labels (n,)) as arrays, or something
            picklable that gives them as tensors whenever it is iterated.
        threads: that torch uses in a worker on the CPU; None for what ``OMP_NUM_THREADS`` says,
            which Ray sets to the worker's share of the CPUs.
        options: further ones of ``SupernetEvaluator``; the device ``cuda`` is the GPU, or the part
            of one, that the worker is given.
    """

    space: SearchSpace
    num_classes: int
    weights: Mapping[str, Array]
    parts: list[list[tuple[Array, Array]]] | Sequence[Batches]
    threads: int | None
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        supernet: Supernet,
        parts: Sequence[Batches],
        *,
        threads: int | None = None,
        **options: Any,
    ) -> SupernetFactory:
        """A factory of evaluators like the one made of the same arguments here."""
        weights = {
            name: each.detach().cpu().numpy() for name, each in supernet.state_dict().items()
        }
        held = _as_arrays(parts) or parts
        return cls(supernet.space, supernet.num_classes, weights, held, threads, options)

    def __call__(self) -> SupernetEvaluator:
        import torch

        from supernet.network.supernet import Supernet

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        supernet = Supernet(self.space, self.num_classes)
        with warnings.catch_warnings():
            # shared arrays are read-only, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            supernet.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights.items()})
            parts: Any = [
                [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in part]
                if isinstance(part, list)
                else part
                for part in self.parts
            ]
        return SupernetEvaluator(supernet.eval(), parts, **self.options)


def _as_arrays(parts: Sequence[Batches]) -> list[list[tuple[Array, Array]]] | None:
    """All images as arrays; None where they take more memory than decoded images may."""
    from supernet.data.splits import MEMORY_LIMIT_BYTES

    arrays: list[list[tuple[Array, Array]]] = []
    size = 0
    for part in parts:
        arrays.append([])
        for images, labels in part:
            size += images.nbytes
            if size > MEMORY_LIMIT_BYTES:
                return None
            arrays[-1].append((np.asarray(images.cpu()), np.asarray(labels.cpu())))
    return arrays
