"""Local distillation on Ray: the alternatives of some places are a task for any worker.

Tasks know nothing of each other, and a lost worker's task goes to another. Weights come back to
the process that called, which alone writes them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from search_space.errors import RunError
from supernet.cluster.connection import Resources, connected, one_line, share_of
from supernet.inherit.bank import Entry, WeightBank
from supernet.inherit.local_distillation import Group, Taught, teach
from supernet.inherit.students import Distillation, Progress
from supernet.network.axes import StaticModule
from supernet.training.evaluation import Batches

_LOSSES = 3  # workers that a task may lose before it counts as the cause


@dataclass(frozen=True)
class TeachingOnRay:
    """Trains alternatives on workers of a Ray cluster, for ``distil_alternatives``.

    Example:
        On eight workers::

            distil_alternatives(bank, batches, teaching=TeachingOnRay(workers=8))

    Args:
        workers: That work at a time. Where there are fewer groups, the alternatives of each place
            are a group of their own.
        address: See ``supernet.cluster.connection.connected``.
        gpus: Of each worker; None for one where the cluster has some.
    """

    workers: int
    address: str | None = None
    gpus: float | None = None

    def __call__(
        self,
        bank: WeightBank,
        batches: Batches,
        groups: Sequence[Group],
        settings: Distillation,
        progress: Progress | None = None,
    ) -> Generator[list[Taught], None, None]:
        """Yields each group as it is finished.

        Raises:
            RunError: The cluster cannot be used, has no room, or workers are lost on one group.
            DataError: As ``distil``.
        """
        if not groups:
            return
        device = next(bank.parameters()).device
        with connected(self.address):
            import ray
            from ray.exceptions import RayError, RayTaskError

            groups = _spread(groups, self.workers)
            workers = min(self.workers, len(groups))
            resources = share_of(self.address, workers, self.gpus)
            task: Any = ray.remote(_teach).options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0.0),
                max_retries=_LOSSES - 1,
                scheduling_strategy="SPREAD",
            )
            held = ray.put((_parent_alone(bank), batches, settings))
            queue = list(groups)
            busy: dict[Any, Group] = {}
            while queue or busy:
                while queue and len(busy) < workers:
                    group = queue.pop(0)
                    starts = {e: copy.deepcopy(bank[e]).cpu() for e in group if e in bank}
                    busy[task.remote(held, group, starts, resources)] = group
                (ready, *_), _ = ray.wait(list(busy))
                group = busy.pop(ready)
                try:
                    taught = ray.get(ready)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    raise _lost(group, error) from error
                if progress is not None:
                    done = len(groups) - len(queue) - len(busy)
                    progress(done * settings.steps, len(groups) * settings.steps, {})
                yield [replace(one, module=one.module.to(device)) for one in taught]


def _spread(groups: Sequence[Group], workers: int) -> Sequence[Group]:
    """Groups for all workers: the places by themselves where they were fewer."""
    if len(groups) >= workers:
        return groups
    places: dict[str, list[Entry]] = {}
    for entry in itertools.chain(*groups):
        places.setdefault(entry[0], []).append(entry)
    return list(places.values())


def _parent_alone(bank: WeightBank) -> WeightBank:
    """A bank on the CPU that holds nothing but the parent: what every worker needs."""
    return WeightBank(bank.space, bank.extract(bank.parent)).cpu().eval()


def _teach(
    held: tuple[WeightBank, Batches, Distillation],
    group: Group,
    starts: Mapping[Entry, StaticModule],
    resources: Resources,
) -> list[Taught]:
    """Runs in a worker."""
    torch.set_num_threads(max(1, int(resources["CPU"])))
    bank, batches, settings = held
    for entry, module in starts.items():
        bank.put(entry, module)
    device = "cuda" if resources.get("GPU") else "cpu"
    taught = teach(bank.to(device), batches, group, settings)
    return [replace(one, module=one.module.cpu()) for one in taught]


def _lost(group: Group, error: BaseException) -> RunError:
    paths = ", ".join(dict.fromkeys(path for path, _ in group))
    return RunError(
        f"{_LOSSES} workers were lost while they distilled the alternatives at {paths} "
        f"({one_line(error)}). What was finished is kept; continue with --resume, and with fewer "
        "workers or places if memory is short"
    )
