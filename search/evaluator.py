"""Accuracy and loss of architectures with weights inherited from the supernet.

Inherited weights are used as they are, but batch norms have no averages to inherit: networks that
can have any are extracted and recalibrated first. The split to evaluate on is the validation split,
which is cut from the training data.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from search_space.architecture import Architecture
from search_space.errors import UsageError
from search_space.metrics import ACCURACY, BALANCED_ACCURACY, IMAGES, LOSS
from search_space.precision import quantised

if TYPE_CHECKING:
    import torch

    from supernet.network.supernet import Subnets

    Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

Array = npt.NDArray[Any]
_KEPT = 256  # architectures whose averages are kept


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
        amp: ``auto`` for 16 bits on GPUs, ``off`` for float32 everywhere.
        class_counts: images of each class in all parts; None where single parts are not asked for.
        calibration: training images, as batches, by which batch norms get their averages
            (``supernet.training.recalibration``); None where the space has none.

    Raises:
        UsageError: The space has batch norms, and there is no ``calibration``.

    Attributes:
        recalibrated: Networks that were extracted and recalibrated so far.
        recalibration_seconds: What that took.
    """

    supernet: Subnets
    parts: Sequence[Batches]
    _: KW_ONLY
    device: str | torch.device = "cpu"
    amp: str = "auto"
    class_counts: Sequence[int] | None = None
    calibration: Batches | None = None
    recalibrated: int = field(default=0, init=False)
    recalibration_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.calibration is None and self.supernet.needs_images:
            raise UsageError(
                "the networks have batch norms, or blocks in int8, whose averages and ranges no "
                "subnet inherits; give calibration, as "
                "supernet.training.recalibration.calibration_batches makes it."
            )
        self.supernet.to(self.device)
        # of architectures by digest, the last few: parts of the images are asked for one by one
        self._averages: dict[str, dict[str, torch.Tensor]] = {}

    def __call__(self, architecture: Architecture, part: int | None = None) -> dict[str, float]:
        from supernet.data.evaluation_batches import moved
        from supernet.training.evaluation import evaluate

        model, subnet = self._model(architecture)
        parts = self.parts if part is None else [self.parts[part]]
        quality = evaluate(
            model,
            chain.from_iterable(moved(each, self.device) for each in parts),
            architecture=subnet,
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

    def _model(self, architecture: Architecture) -> tuple[torch.nn.Module, Architecture | None]:
        """The supernet and its subnet, or the extracted network where averages are needed."""
        from supernet.training.recalibration import extract

        if self.calibration is None:
            return self.supernet, architecture
        started = time.perf_counter()
        known = self._averages.get(architecture.digest)
        batches = self.calibration if known is None else None
        network = extract(self.supernet, architecture, batches, amp=self.amp)
        if known is not None:
            network.load_state_dict(known, strict=False)
            return network, None
        if not quantised(architecture):  # whose weights are fitted, too, and too much to keep
            if len(self._averages) >= _KEPT:
                del self._averages[next(iter(self._averages))]
            self._averages[architecture.digest] = dict(network.named_buffers())
        self.recalibrated += 1
        self.recalibration_seconds += time.perf_counter() - started
        return network, None


@dataclass(frozen=True)
class SupernetFactory:
    """Builds a ``SupernetEvaluator`` in another process; picklable, for ``RayExecutor``.

    It holds NumPy arrays, which Ray keeps once a machine and shows to all workers there. Images
    too many for memory are not held but read by each worker, from the same paths.

    Attributes:
        skeleton: the module, without weights.
        weights: its parameters and buffers.
        parts: of the images, each (images (n, 3, side, side), labels (n,)) as arrays, or something
            picklable that gives them as tensors whenever it is iterated.
        threads: that torch uses in a worker on the CPU; None for what ``OMP_NUM_THREADS`` says,
            which Ray sets to the worker's share of the CPUs.
        options: further ones of ``SupernetEvaluator``; the device ``cuda`` is the GPU, or the part
            of one, that the worker is given.
    """

    skeleton: Subnets
    weights: Mapping[str, Array]
    parts: list[list[tuple[Array, Array]]] | Sequence[Batches]
    threads: int | None
    options: Mapping[str, Any]
    calibration: list[tuple[Array, Array]] | Batches | None = None

    @classmethod
    def of(
        cls,
        supernet: Subnets,
        parts: Sequence[Batches],
        *,
        threads: int | None = None,
        calibration: Batches | None = None,
        **options: Any,
    ) -> SupernetFactory:
        """A factory of evaluators like the one made of the same arguments here."""
        weights = {
            name: each.detach().cpu().numpy() for name, each in supernet.state_dict().items()
        }
        held = _as_arrays(parts) or parts
        shown: Any = calibration
        if calibration is not None and (arrays := _as_arrays([calibration])) is not None:
            shown = arrays[0]
        return cls(deepcopy(supernet).to("meta"), weights, held, threads, options, shown)

    def __call__(self) -> SupernetEvaluator:
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        supernet = deepcopy(self.skeleton).to_empty(device="cpu")
        with warnings.catch_warnings():
            # shared arrays are read-only, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            supernet.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights.items()})
            *parts, calibration = [
                [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in part]
                if isinstance(part, list)
                else part
                for part in (*self.parts, self.calibration)
            ]
        evaluator: Any = SupernetEvaluator
        return evaluator(supernet.eval(), parts, calibration=calibration, **self.options)


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
