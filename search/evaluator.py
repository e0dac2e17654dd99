"""Accuracy and loss of architectures with weights inherited from the supernet.

Networks here normalise with statistics of their own input only, so inherited weights are used
as they are. The split to evaluate on is the validation split, which is cut from the training data.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from search_space.architecture import Architecture
from search_space.space import SearchSpace

if TYPE_CHECKING:
    import torch

    from supernet.supernet import Supernet

    Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

Array = npt.NDArray[Any]


class SupernetEvaluator:
    """``evaluator(architecture)`` → ``{"accuracy": top-1, 0..1, "loss": in nats}``.

    The same for every call.

    Args:
        supernet: trained; moved to ``device`` and otherwise left as it is.
        batches: validation batches, iterated once per call: (images (n, 3, side, side),
            labels (n,)). Images are resized to each architecture's resolution.
        device: where to evaluate.
        amp: ``auto`` for bfloat16 on CUDA, ``off`` for float32 everywhere.
    """

    def __init__(
        self,
        supernet: Supernet,
        batches: Batches,
        device: str | torch.device = "cpu",
        *,
        amp: str = "auto",
    ) -> None:
        self.supernet = supernet.to(device)
        self.batches = batches
        self.device = device
        self.amp = amp

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        from supernet.training import evaluate

        quality = evaluate(
            self.supernet,
            self.batches,
            architecture=architecture,
            device=self.device,
            amp=self.amp,
        )
        return quality._asdict()


@dataclass(frozen=True)
class SupernetFactory:
    """Builds a ``SupernetEvaluator`` in another process; picklable, for ``RayExecutor``.

    It holds NumPy arrays, which Ray keeps once a machine and shows to all workers there. Images
    too many for memory are not held but read by each worker, from the same paths.

    Attributes:
        weights: the supernet's state by name.
        batches: (images (n, 3, side, side), labels (n,)) as arrays, or something picklable that
            gives them as tensors whenever it is iterated.
        device: ``cuda`` is the GPU, or the part of one, that the worker is given.
        threads: that torch uses in a worker on the CPU; None for what ``OMP_NUM_THREADS`` says,
            which Ray sets to the worker's share of the CPUs.
    """

    space: SearchSpace
    num_classes: int
    weights: Mapping[str, Array]
    batches: list[tuple[Array, Array]] | Batches
    device: str = "cpu"
    amp: str = "auto"
    threads: int | None = None

    @classmethod
    def of(
        cls,
        supernet: Supernet,
        batches: Batches,
        device: str = "cpu",
        *,
        amp: str = "auto",
        threads: int | None = None,
    ) -> SupernetFactory:
        """A factory of evaluators like the one made of the same arguments here."""
        weights = {
            name: tensor.detach().cpu().numpy() for name, tensor in supernet.state_dict().items()
        }
        return cls(
            supernet.space,
            supernet.num_classes,
            weights,
            _as_arrays(batches) or batches,
            device,
            amp,
            threads,
        )

    def __call__(self) -> SupernetEvaluator:
        import torch

        from supernet.supernet import Supernet

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        supernet = Supernet(self.space, self.num_classes)
        with warnings.catch_warnings():
            # shared arrays are read-only, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            supernet.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights.items()})
            batches: Any = self.batches
            if isinstance(batches, list):
                batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches]
        return SupernetEvaluator(supernet.eval(), batches, self.device, amp=self.amp)


def _as_arrays(batches: Batches) -> list[tuple[Array, Array]] | None:
    """All batches as arrays; None where they take more memory than decoded images may."""
    from supernet.data import MEMORY_LIMIT_BYTES

    arrays: list[tuple[Array, Array]] = []
    size = 0
    for images, labels in batches:
        size += images.nbytes
        if size > MEMORY_LIMIT_BYTES:
            return None
        arrays.append((np.asarray(images.cpu()), np.asarray(labels.cpu())))
    return arrays
