"""The group of a training's workers, which exchange gradients and figures once a step.

Every worker holds all weights and takes the same optimiser step, so nothing else needs to be
told. Gradients of all subnets of a step are summed on each worker first and go over the network
once, as one flat vector, with the step's figures behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=30)


class Group:
    """Connects the workers of a training; this one alone unless a process group is there."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def current(cls) -> Group:
        """The group of ``torch.distributed``'s default process group, if there is one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def reduce(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Replaces gradients by their mean over workers, and returns all workers' figures.

        A parameter that no worker has a gradient of keeps none, so that the optimiser leaves it
        alone.

        Args:
            parameters: The same on each worker.
            figures: Shape (n,), as many on each worker.

        Returns:
            The figures by worker, shape (size, n).
        """
        if self.size == 1:
            return figures[None]
        table = figures.new_zeros(self.size, len(figures), dtype=torch.float32)
        table[self.rank] = figures
        # float32 on the network whatever gradients are, and whether there is one travels along
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        parts = [*gradients, present.to(table.device), table]
        flat = torch.cat([part.detach().reshape(-1).float() for part in parts])
        dist.all_reduce(flat)
        sums = flat.split([part.numel() for part in parts])
        known = sums[-2].tolist()
        # into the gradients, not in their place: optimisers want the memory format of the weights
        for parameter, gradient, total, count in zip(
            parameters, gradients, sums, known, strict=False
        ):
            if count:
                parameter.grad = gradient.copy_(total.div_(self.size).view_as(gradient))
        return sums[-1].view_as(table)

    def union(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Returns masks that are True where any worker's are, of the same shapes on each."""
        if self.size == 1:
            return list(masks)
        flat = torch.cat([mask.reshape(-1) for mask in masks]).to(torch.uint8)
        dist.all_reduce(flat, op=dist.ReduceOp.MAX)
        parts = flat.bool().split([mask.numel() for mask in masks])
        return [part.view_as(mask) for part, mask in zip(parts, masks, strict=True)]

    def gather(self, text: str) -> list[str]:
        """Returns the texts of all workers, by rank."""
        if self.size == 1:
            return [text]
        said: list[str | None] = [None] * self.size
        dist.all_gather_object(said, text)
        return [str(each) for each in said]

    @contextmanager
    def patient(self) -> Iterator[Callable[[], None]]:
        """Gives a function that waits until all workers have called it, however long that takes.

        Other meetings end the training after half an hour without an answer, which a worker that
        stores a teacher's predictions may need many times over.
        """
        if self.size == 1:
            yield lambda: None
            return
        waiting: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

        def wait_for_all() -> None:
            dist.barrier(group=waiting)

        try:
            yield wait_for_all
        finally:
            dist.destroy_process_group(waiting)
