"""The static module of a component.

Maps are ``(batch, height, width, dim)``, contiguous, at every module boundary: the one memory
layout that latency tables assume. Stems, transitions, blocks and heads cover the published
networks in ``search_space.known``; ``timm_weights`` shows which is which.
"""

from __future__ import annotations

from typing import Any

from search_space.components import ModuleSpec
from supernet.network import blocks, heads, stems, transitions  # noqa: F401  they register themselves
from supernet.network.axes import StaticModule
from supernet.network.quantised import quantise_module
from supernet.network.registry import (
    Modules,
    register_block,
    register_head,
    register_stem,
    register_transition,
)

_KINDS: dict[str, Modules[Any]] = {
    "stem": register_stem,
    "downsample": register_transition,
    "block": register_block,
    "head": register_head,
}


def build_module(spec: ModuleSpec, **extra: Any) -> StaticModule:
    """Builds the static module of a component, with ``extra`` constructor options.

    One that computes in int8 has its batch norms folded, and ranges that mean nothing before
    ``supernet.quantisation`` has found them.
    """
    options = spec.in_float.as_dict()
    module: StaticModule = _KINDS[spec.kind][options.pop("style")](**options, **extra)
    if spec.quantised:
        quantise_module(module)
    return module


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Returns the drop-path rates of ``depth`` blocks, from 0 linearly to ``rate`` at the last.

    Source: Huang et al., Deep networks with stochastic depth, 2016.
    """
    return [rate * i / max(1, depth - 1) for i in range(depth)]
