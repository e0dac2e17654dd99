"""Which networks to measure on a device: those that would tell the most about its constants.

Optimal design over the model's uncertainty: the logs of a runtime's constants and of the device's
speed vary around what was fitted, so a network's predicted log latency varies by its sensitivities;
the networks are chosen, one after another, that leave the least mean variance of all (I-optimal).
"""

from __future__ import annotations

import numpy as np

from predictors.estimates.kernels import KINDS, Demand
from predictors.estimates.model import constants_of
from predictors.estimates.transfer import target_sheet
from predictors.operators import operators
from predictors.tables.additive import Values
from predictors.tables.conditions import Conditions
from search_space import components, known

CANDIDATES = (
    *("swin_t", "swin_b", "focalnet_t_lrf", "convnext_t", "convnext_b", "poolformer_s12"),
    *("hornet_t", "caformer_s18", "mobilenetv2_100", "efficientnet_b0", "resnet18", "resnet50"),
)
_CONSTANT, _DEVICE, _NOISE = 0.3, 0.3, 0.05  # standard deviations of logs


def sensitivities(name: str, conditions: Conditions) -> Values:
    """Computes by how much the log latency moves with the log of each constant and the speed."""
    sheet, found = target_sheet(conditions), constants_of(conditions.runtime)
    chain = components(known(name))
    launched = [
        op
        for part in chain
        for op in operators(part.spec, part.in_size, conditions.batch_size, conditions.precision)
    ]
    number_format = sheet.number_format(conditions.precision, conditions.runtime)
    demand = Demand.of(launched, sheet, number_format)
    compute = demand.compute_ms * np.array(found.compute)[demand.kind]
    memory = demand.memory_ms / np.array(found.memory)[demand.kind]
    total = found.latency_ms(demand)
    parts = [
        np.bincount(demand.kind, np.where(larger, each, 0.0), len(KINDS)) / total
        for each, larger in ((compute, compute >= memory), (memory, memory > compute))
    ]
    rest = 1.0 - sum(float(part.sum()) for part in parts)
    return np.concatenate([*parts, [rest, _DEVICE / _CONSTANT]])


def most_helpful(conditions: Conditions, count: int = 3) -> tuple[str, ...]:
    """Chooses the known designs whose latencies would make the others' most certain."""
    rows = _CONSTANT * np.stack([sensitivities(name, conditions) for name in CANDIDATES])
    chosen: list[int] = []

    def left(indices: list[int]) -> float:
        seen = rows[indices]
        gain = rows @ seen.T
        within = seen @ seen.T + _NOISE**2 * np.eye(len(indices))
        explained = (gain * np.linalg.solve(within, gain.T).T).sum(axis=1)
        return float(((rows**2).sum(axis=1) - explained).mean())

    for _ in range(count):
        others = [i for i in range(len(CANDIDATES)) if i not in chosen]
        chosen.append(min(others, key=lambda i: left([*chosen, i])))
    return tuple(CANDIDATES[i] for i in chosen)
