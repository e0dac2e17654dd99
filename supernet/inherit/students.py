"""Students: modules that learn what a parent's module computes, each by itself.

One pass of the parent gives input and output of its module at every place, and serves all students
of all places. What one becomes does not depend on which others learn beside it.

Sources: Grafting (arXiv 2506.05340), stage 1, with its L1 and L2 losses; Puzzle (arXiv 2411.19146),
whose normalised loss makes places comparable; LANA (arXiv 2107.10624).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from search_space.errors import DataError, RunError
from supernet.data.batches import resize_images
from supernet.data.evaluation_batches import moved
from supernet.inherit.bank import Entry, WeightBank
from supernet.network.axes import StaticModule
from supernet.network.norms import BatchNorm, has_batch_norms, pooled
from supernet.training.evaluation import Batches, evaluation_mode

_FLOOR = 1e-3  # of an output: smaller changes are not what errors are measured by
SLOWER = 0.1  # factor of the learning rate of a second try
_WARM_UP = 0.05  # share of the steps

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """States how alternatives are distilled; all but ``places`` decides their weights.

    Attributes:
        steps: Of each alternative, a batch each; batches are shown again and again.
        lr: Peak learning rate of Adam, after a short warm-up and before a cosine.
        clip_norm: Largest norm of an alternative's gradient.
        seed: Of weights that start anew.
        places: How many places' alternatives are trained, and written, at a time. More need fewer
            passes of the parent, and more memory: three times the weights, and what one alternative
            keeps for its backward pass.

    Raises:
        RunError: A number is not above 0, or the seed negative.
    """

    steps: int = 400
    lr: float = 5e-3
    clip_norm: float = 1.0
    seed: int = 0
    places: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "seed"):
                rule = "not be negative" if name == "seed" else "be above 0, and finite"
                raise RunError(f"{name} of the distillation is {value}; it must {rule}")


@dataclass(eq=False)
class Student:
    """A module that learns what the parent's module at a path computes.

    Attributes:
        entry: The path of the parent's module, and the module's own spec.
        module: Is trained in place, on the bank's device.
        power: Of the differences that are averaged: 1 or 2, for L1 or L2.
    """

    entry: Entry
    module: StaticModule
    power: int = 2

    @property
    def path(self) -> str:
        """Of the parent's module."""
        return self.entry[0]


def distil(
    bank: WeightBank,
    batches: Batches,
    students: Sequence[Student],
    settings: Distillation,
    *,
    progress: Progress | None = None,
) -> list[Student]:
    """Trains modules in place, each by itself, on inputs and outputs of the parent's modules.

    Batch norms normalise by their batch; in the end they get averages of one pass over all batches.
    A student whose loss or gradient is not finite starts once more with a tenth of the learning
    rate. If that fails, too, it keeps the weights that it started from.

    Args:
        bank: Holds the parent; it is not changed.
        batches: As for ``distil_alternatives``.
        students: The modules. None may be the parent's own.
        settings: How they are trained.
        progress: As for ``distil_alternatives``.

    Returns:
        The students that failed twice.

    Raises:
        DataError: As ``distil_alternatives``.
    """
    with evaluation_mode(bank):
        failed = _train(bank, batches, students, settings, settings.lr, progress)
        if failed:
            failed = _train(bank, batches, failed, settings, SLOWER * settings.lr, None)
        with_norms = [student for student in students if has_batch_norms(student.module)]
        if with_norms:
            _fit_averages(bank, batches, with_norms)
    return failed


def relative_error(output: Tensor, x: Tensor, y: Tensor, power: int) -> Tensor:
    """Computes by how much an output misses the parent's, relative to what the parent changes.

    It is mean |output − y|ᵖ / mean |y − x|ᵖ: 0 for the parent's own output, 1 for leaving the block
    out. Where input and output have other shapes, the change is that from each channel's mean.
    """
    means = y.mean(tuple(range(y.ndim - 1)), keepdim=True)
    change = y - (x if x.shape == y.shape else means)
    size = change.abs().pow(power).mean()
    least = y.abs().pow(power).mean() * _FLOOR**power
    missed = (output - y).abs().pow(power).mean()
    return missed / torch.maximum(size, least).clamp_min(1e-12)


def _train(
    bank: WeightBank,
    batches: Batches,
    students: Sequence[Student],
    settings: Distillation,
    lr: float,
    progress: Progress | None,
) -> list[Student]:
    """Trains students; gives back those that failed, with the weights that they started from."""
    starts = {student: copy.deepcopy(student.module.state_dict()) for student in students}
    optimizers = {
        student: torch.optim.Adam(student.module.parameters(), lr, fused=True)
        for student in students
    }
    for student in students:
        student.module.train()
    warm_up = max(1, round(_WARM_UP * settings.steps))
    failed: list[Student] = []
    for step, images in enumerate(_images(bank, batches, settings.steps)):
        if not optimizers:
            break
        seen = _seen(bank, images, {student.path for student in optimizers})
        cosine = (1 + math.cos(math.pi * step / settings.steps)) / 2
        figures = []
        for student, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / warm_up) * cosine
            optimizer.zero_grad()
            x, y = seen[student.path]
            error = relative_error(student.module(x), x, y, student.power)
            error.backward()
            weights = list(student.module.parameters())
            length = nn.utils.clip_grad_norm_(weights, settings.clip_norm)
            optimizer.step()  # whoever fails starts anew, so nothing is looked at before
            figures += [error.detach(), length]
        # one transfer from the device for everything that must be looked at
        values = torch.stack(figures).tolist()
        losses = []
        for student, loss, norm in zip(list(optimizers), values[::2], values[1::2], strict=True):
            if math.isfinite(loss) and math.isfinite(norm):
                losses.append(loss)
            else:
                _check_finite(student.path, *seen[student.path])
                failed.append(student)
                del optimizers[student]
        if progress is not None:
            mean = sum(losses) / max(1, len(losses))
            progress(step + 1, settings.steps, {"relative_error": mean})
    for student in failed:
        student.module.load_state_dict(starts[student])
    return failed


@torch.no_grad()
def _fit_averages(bank: WeightBank, batches: Batches, students: Sequence[Student]) -> None:
    """Makes averages of students' batch norms those of the parent's inputs of all batches."""
    paths = {student.path for student in students}
    parts = [part for student in students for part in student.module.modules()]
    for student in students:
        student.module.eval()
    with pooled([part for part in parts if isinstance(part, BatchNorm)]):
        for images in _images(bank, batches):
            seen = _seen(bank, images, paths)
            for student in students:
                student.module(seen[student.path][0])


def _images(bank: WeightBank, batches: Batches, steps: int | None = None) -> Iterator[Tensor]:
    """Yields images of ``steps`` batches, again from the first when they end; of one pass for None.

    They are on the bank's device and of the parent's resolution.
    """
    device, shown = next(bank.parameters()).device, 0
    while True:
        before = shown
        for images, _ in moved(batches, device):
            if shown == steps:
                return
            if steps is not None and len(images) < 2:  # too few for a batch norm
                continue
            yield resize_images(images, bank.parent.resolution)
            shown += 1
        if shown == before:
            raise DataError(
                "there are no images to distil on; give batches of two images or more that can be "
                "read again and again, such as a list, not a generator"
            )
        if steps is None:
            return


@torch.no_grad()
def _seen(
    bank: WeightBank, images: Tensor, paths: Collection[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """In- and outputs of the parent's modules at ``paths``; the pass ends after the last."""
    x, found = images, {}
    for item, module in bank.chain(bank.parent):
        y = module(x)
        if item.path in paths:
            found[item.path] = x, y
            if len(found) == len(paths):
                break
        x = y
    return found


def _check_finite(path: str, x: Tensor, y: Tensor) -> None:
    for name, values in (("input", x), ("output", y)):
        if not values.isfinite().all():
            raise DataError(
                f"the {name} of the parent's {path} is not finite, so nothing can be learnt from "
                "it; check the images and the parent's weights"
            )
