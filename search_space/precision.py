"""Precisions: which components of a network compute in int8, and spaces that choose that.

Between components maps are always in the run's float format, so that what a component costs does
not depend on its neighbours' precision: conversions belong to the component that needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from search_space.architecture import Architecture
from search_space.blocks import PRECISION, Block
from search_space.components import components
from search_space.errors import UnknownNameError
from search_space.registry import FLOAT, INT8, PRECISIONS
from search_space.space import SearchSpace

MIXED = "mixed"
SEARCHED = (INT8, MIXED)
FORMATS = ("fp32", "fp16", "bf16")
"""Float formats of a run: of inputs, outputs and whatever is not in int8."""


def check_offered(precision: str) -> None:
    """Refuses what is neither a float format nor searched; raises UnknownNameError."""
    if precision not in (*FORMATS, *SEARCHED):
        raise UnknownNameError("precision", precision, (*FORMATS, *SEARCHED))


def in_precision(architecture: Architecture, precision: str) -> Architecture:
    """Returns the network whose components all compute in one precision.

    Args:
        architecture: A network, whatever its components compute in.
        precision: ``float`` or ``int8``.

    Raises:
        UnknownNameError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    stages = tuple(
        replace(stage, blocks=tuple(_with(block, precision) for block in stage.blocks))
        for stage in architecture.stages
    )
    macro = replace(architecture.macro, precision=precision)
    return replace(architecture, macro=macro, stages=stages)


def quantised(architecture: Architecture) -> bool:
    """Whether any component of a network computes in int8."""
    return any(item.spec.quantised for item in components(architecture))


def with_precisions(space: SearchSpace, precision: str) -> SearchSpace:
    """Returns the space of the same networks in int8.

    Args:
        space: Any space; what it says of precisions itself is replaced.
        precision: ``int8`` puts every component in int8. ``mixed`` lets each block be int8 or
            float, int8 first, since it is the lighter one, beside stem, transitions and head in
            int8.

    Raises:
        UnknownNameError: There is no such choice.
    """
    if precision not in SEARCHED:
        raise UnknownNameError("choice of precisions", precision, SEARCHED)
    offered = (INT8,) if precision == INT8 else (INT8, FLOAT)
    stages = tuple(
        replace(
            stage,
            positions=tuple(_offered(choices, offered) for choices in stage.positions),
        )
        for stage in space.stages
    )
    return replace(
        space,
        name=f"{space.name}-{precision}",
        macro=replace(space.macro, precision=INT8),
        stages=stages,
    )


def _offered(choices: Sequence[Block], precisions: Sequence[str]) -> tuple[Block, ...]:
    found = (_with(block, precision) for block in choices for precision in precisions)
    return tuple(dict.fromkeys(found))


def _with(block: Block, precision: str) -> Block:
    return block if block.skipped else block.replaced(**{PRECISION: precision})


def point_of(architecture: Architecture, space: SearchSpace) -> Architecture | None:
    """Returns the point of a space that is a network, with as little of it in int8 as there is.

    Args:
        architecture: A network in float.
        space: A space that may offer it in other precisions.

    Returns:
        The network itself, the one with all but its blocks in int8, or that all in int8; None where
        the space holds none of them.
    """
    beside = replace(architecture, macro=replace(architecture.macro, precision=INT8))
    wanted = (architecture, beside, in_precision(architecture, INT8))
    return next((each for each in wanted if space.contains(each)), None)
