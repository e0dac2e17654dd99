"""Training strategies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_space.errors import UsageError
from search_space.space import SearchSpace
from supernet.training.strategies.banks import Banks, CostFunction
from supernet.training.strategies.base import SubnetSampler
from supernet.training.strategies.complexity import ComplexitySampler
from supernet.training.strategies.performance import PerformanceSampler
from supernet.training.strategies.sandwich import SandwichSampler
from supernet.training.strategies.shrinking import DelayedShrinking, ProgressiveShrinking
from supernet.training.strategies.uniform import MultiArchitectureSampler

if TYPE_CHECKING:
    from supernet.training.config import TrainConfig

STRATEGIES = ("sandwich", "uniform", "multi_architecture", "complexity", "performance")
COST_STRATEGIES = ("complexity", "performance")  # those that draw by cost
SHRINKINGS = ("none", "delayed", "progressive")


def make_sampler(
    space: SearchSpace,
    config: TrainConfig,
    total_steps: int,
    cost: CostFunction | None = None,
    *,
    teacher: bool = False,
) -> SubnetSampler:
    """Makes the training strategy ``config.strategy``, within the schedule ``config.shrinking``.

    With a teacher, subnets learn from it where they would learn labels (uniform,
    multi_architecture; the largest of sandwich) or from the largest in place (complexity,
    performance, which then leave out the largest).

    Example:
        >>> sampler = make_sampler(space, TrainConfig(strategy="sandwich"), total_steps=1000)
        >>> [subnet.role for subnet in sampler(0)]
        ['largest', 'smallest', 'random', 'random']

    Args:
        cost: Rows of shape (n, genes) → costs of shape (n,), for ``COST_STRATEGIES``.
        teacher: Whether there is a teacher that ``config`` does not name.

    Raises:
        UsageError: The options do not fit.
    """
    teacher = teacher or config.teacher is not None
    common: dict[str, Any] = {
        "num_random": config.num_random,
        "seed": config.seed,
        "teacher": teacher,
    }
    sampler: SubnetSampler
    if config.strategy in COST_STRATEGIES:
        if cost is None:
            raise UsageError(
                f"strategy {config.strategy!r} draws subnets by cost: give a cost, such as MACs or "
                "a latency, or take strategy 'multi_architecture'."
            )
        banks = Banks.fill(space, cost, config.banks, config.seed)
        if config.strategy == "complexity":
            sampler = ComplexitySampler(banks, **common)
        else:
            sampler = PerformanceSampler(banks, **common, total_steps=total_steps)
    elif config.strategy == "sandwich":
        sampler = SandwichSampler(space, **common)
    else:
        alone = config.strategy == "uniform"
        sampler = MultiArchitectureSampler(
            space,
            1 if alone else config.groups,
            config.seed,
            teacher=teacher,
            regularised=alone,
        )
    if config.shrinking == "delayed":
        return DelayedShrinking(
            sampler,
            space,
            total_steps=total_steps,
            start=config.shrink_start,
            epsilon=config.shrink_epsilon,
            teacher=teacher,
        )
    if config.shrinking == "progressive":
        return ProgressiveShrinking(sampler, space, total_steps=total_steps)
    return sampler
