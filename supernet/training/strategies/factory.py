"""Training strategies by name."""

from __future__ import annotations

from collections.abc import Callable

from search_space.errors import UnknownNameError, UsageError
from search_space.space import SearchSpace
from supernet.training.strategies.banks import Banks, CostFunction
from supernet.training.strategies.base import SubnetSampler
from supernet.training.strategies.complexity import ComplexitySampler
from supernet.training.strategies.performance import PerformanceSampler
from supernet.training.strategies.sandwich import SandwichSampler
from supernet.training.strategies.shrinking import DelayedShrinking, ProgressiveShrinking
from supernet.training.strategies.uniform import MultiArchitectureSampler, UniformSampler

STRATEGIES = ("sandwich", "uniform", "multi_architecture", "complexity", "performance")
COST_STRATEGIES = ("complexity", "performance")  # those that draw by cost
SHRINKINGS = ("none", "delayed", "progressive")


def make_sampler(
    space: SearchSpace,
    *,
    strategy: str = "multi_architecture",
    shrinking: str = "none",
    seed: int = 0,
    total_steps: int,
    num_random: int = 2,
    groups: int = 2,
    banks: int = 8,
    cost: CostFunction | None = None,
    teacher: bool = False,
    shrink_start: float = 0.5,
    shrink_epsilon: float = 0.1,
) -> SubnetSampler:
    """Makes the training strategy ``strategy``, within the schedule ``shrinking``.

    Example:
        >>> sampler = make_sampler(space, strategy="sandwich", total_steps=1000)
        >>> [subnet.role for subnet in sampler(0)]
        ['largest', 'smallest', 'random', 'random']

    Args:
        space: The search space of the supernet.
        strategy: One of ``STRATEGIES``.
        shrinking: One of ``SHRINKINGS``.
        seed: Of the draws.
        total_steps: Steps of the training.
        num_random: Subnets a step beside those always trained (sandwich), of the step's bank
            (complexity, performance).
        groups: Groups that the batch is cut into (multi_architecture).
        banks: Number of cost banks (complexity, performance).
        cost: Rows of shape (n, genes) → costs of shape (n,) (complexity, performance).
        teacher: Subnets learn from a fixed network where they would learn labels (uniform,
            multi_architecture; the largest of sandwich) or from the largest in place (complexity,
            performance, which then leave out the largest).
        shrink_start: Share of the training before delayed shrinking begins.
        shrink_epsilon: Factor of the learning rate that delayed shrinking begins with.

    Raises:
        UnknownNameError: There is no such strategy or schedule.
        UsageError: The options do not fit.
    """
    if shrinking not in SHRINKINGS:
        raise UnknownNameError("shrinking schedule", shrinking, SHRINKINGS)

    def filled() -> Banks:
        if cost is None:
            raise UsageError(
                f"strategy {strategy!r} draws subnets by cost: give a cost, such as MACs or a "
                "latency, or take strategy 'multi_architecture'."
            )
        return Banks.fill(space, cost, banks, seed)

    makers: dict[str, Callable[[], SubnetSampler]] = {
        "sandwich": lambda: SandwichSampler(space, num_random, seed, teacher=teacher),
        "uniform": lambda: UniformSampler(space, seed, teacher=teacher),
        "multi_architecture": lambda: MultiArchitectureSampler(
            space, groups, seed, teacher=teacher
        ),
        "complexity": lambda: ComplexitySampler(filled(), num_random, seed, teacher=teacher),
        "performance": lambda: PerformanceSampler(
            filled(), total_steps, num_random, seed, teacher=teacher
        ),
    }
    if strategy not in makers:
        raise UnknownNameError("training strategy", strategy, makers)
    sampler = makers[strategy]()
    match shrinking:
        case "delayed":
            return DelayedShrinking(
                sampler,
                space,
                total_steps=total_steps,
                start=shrink_start,
                epsilon=shrink_epsilon,
                teacher=teacher,
            )
        case "progressive":
            return ProgressiveShrinking(sampler, space, total_steps=total_steps)
    return sampler
