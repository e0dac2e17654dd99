"""What two modules have in common: parameters of one name and one declaration of axes.

An alternative starts from what it shares with the trained module in its place: first channels, the
middle of a kernel. Around a smaller kernel a larger one is zero, so that it computes the same.
"""

from __future__ import annotations

import torch

from supernet.inherit.smaller import centres
from supernet.network.axes import Axes, Sizes, StaticModule, names
from supernet.network.slices import Slice


@torch.no_grad()
def copy_shared(module: StaticModule, donor: StaticModule) -> list[str]:
    """Copies into a module what it shares with another; all else stays as it is.

    Args:
        module: Gets the values, in place.
        donor: Has them; it may be larger in some sizes and smaller in others.

    Returns:
        The names of parameters that have values of the donor.
    """
    theirs, mine = donor.axes(), module.axes()
    large, small = donor.sizes(), module.sizes()
    shared = [name for name, axes in mine.items() if theirs.get(name) == axes]
    for name in shared:
        axes = mine[name]
        used = {key for axis in axes for key in names(axis)}
        common = {key: min(large[key], small[key]) for key in used}
        target, source = module.get_parameter(name), donor.get_parameter(name)
        around = common | {key: small[key] for axis in axes for key in centres(axis)}
        for part, _ in Slice.of(axes, small, around).pairs(target, _empty(axes, small, around)):
            part.zero_()
        middle = _empty(axes, large, common).to(source)
        for there, here in Slice.of(axes, large, common).pairs(source, middle):
            here.copy_(there)
        for here, there in Slice.of(axes, small, common).pairs(target, middle):
            here.copy_(there)
    return shared


def _empty(axes: Axes, large: Sizes, small: Sizes) -> torch.Tensor:
    return torch.empty(Slice.of(axes, large, small).shape)
