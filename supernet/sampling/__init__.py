"""Training strategies: which subnets a step trains, on which images, with which targets."""

from supernet.sampling.banks import Banks
from supernet.sampling.base import Observation, StepSubnet, SubnetSampler, Target
from supernet.sampling.complexity import ComplexitySampler
from supernet.sampling.factory import COST_STRATEGIES, SHRINKINGS, STRATEGIES, make_sampler
from supernet.sampling.multi_architecture import MultiArchitectureSampler
from supernet.sampling.performance import PerformanceSampler
from supernet.sampling.sandwich import SandwichSampler
from supernet.sampling.shrinking import DelayedShrinking, ProgressiveShrinking
from supernet.sampling.uniform import UniformSampler

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
    "UniformSampler",
    "make_sampler",
]
