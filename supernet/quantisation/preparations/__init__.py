"""What changes a float network before it gets int8, exact in float, one file a way."""

from supernet.quantisation.preparations import (  # noqa: F401  they register themselves
    equalise,
    reparameterise,
    smooth,
)
from supernet.quantisation.preparations.ways import PREPARATIONS, preparation, prepare_components

__all__ = ["PREPARATIONS", "preparation", "prepare_components"]
