"""Energy of inference from operations and bytes, where no counter can be read.

    joules = multiply-adds · 4.6 pJ + bytes of weights · 162.5 pJ + other bytes · 12.5 pJ

A multiplication and an addition in float32 take 3.7 and 0.9 pJ, 64 bits from a cache of 1 MB
100 pJ, and 64 bits from memory 1.3 nJ or more, in 45 nm at 0.9 V. Source: Horowitz, Computing's
energy problem, ISSCC 2014, figure 1.1.9. Weights come from memory once per image, and maps through
the cache, each read and written by every operator. Newer processes need less, instructions around
the arithmetic more: it orders networks and says what dominates, and is no measurement.
"""

from __future__ import annotations

from predictors.operators import operators
from search_space import ModuleSpec
from supernet.network.templates import folded_template

MAC = 3.7e-12 + 0.9e-12  # joules
CACHE_BYTE, MEMORY_BYTE = 100e-12 / 8, 1.3e-9 / 8
FLOAT = 4  # bytes


def energy_joules(spec: ModuleSpec, in_size: int) -> float:
    """Estimates the joules that a component takes for one image of side ``in_size``, float32."""
    launched = operators(spec, in_size)
    weights = FLOAT * sum(parameter.numel() for parameter in folded_template(spec).parameters())
    maps = max(0, sum(op.bytes for op in launched) - weights)
    return MAC * sum(op.macs for op in launched) + MEMORY_BYTE * weights + CACHE_BYTE * maps
