"""Training strategies: which subnets a step trains, on which images, with which targets."""

from supernet.training.strategies.banks import Banks
from supernet.training.strategies.base import Observation, StepSubnet, SubnetSampler, Target
from supernet.training.strategies.complexity import ComplexitySampler
from supernet.training.strategies.factory import (
    COST_STRATEGIES,
    SHRINKINGS,
    STRATEGIES,
    make_sampler,
)
from supernet.training.strategies.performance import PerformanceSampler
from supernet.training.strategies.sandwich import SandwichSampler
from supernet.training.strategies.shrinking import DelayedShrinking, ProgressiveShrinking
from supernet.training.strategies.uniform import MultiArchitectureSampler

__all__ = [
    "COST_STRATEGIES",
    "SHRINKINGS",
    "STRATEGIES",
    "Banks",
    "ComplexitySampler",
    "DelayedShrinking",
    "MultiArchitectureSampler",
    "Observation",
    "PerformanceSampler",
    "ProgressiveShrinking",
    "SandwichSampler",
    "StepSubnet",
    "SubnetSampler",
    "Target",
    "make_sampler",
]
