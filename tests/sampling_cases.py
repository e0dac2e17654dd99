"""A space, its costs and banks, which the tests of training strategies share."""

from __future__ import annotations

import functools

import numpy as np

from predictors.counts import counts
from search_space import SearchSpace, load_space
from supernet.training.config import TrainConfig
from supernet.training.strategies import (
    Banks,
    StepSubnet,
    SubnetSampler,
    make_sampler,
)
from supernet.training.strategies.banks import CostFunction

SPACE = load_space("digits")
MACS = counts(SPACE, 10)["macs"].predict
STEPS = 600


def make(space: SearchSpace, strategy: str, cost: CostFunction, **options) -> SubnetSampler:
    return make_sampler(space, TrainConfig(strategy=strategy, **options), STEPS, cost)


@functools.cache
def filled_banks() -> Banks:
    """Six banks of MACs, filled once."""
    return Banks.fill(SPACE, MACS, 6, seed=1, population=8192, per_bank=200)


def macs_of(*subnets: StepSubnet) -> np.ndarray:
    return MACS(SPACE.encode([subnet.architecture for subnet in subnets]))
