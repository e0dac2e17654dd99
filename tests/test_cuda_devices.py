"""What runs on a GPU stays there, shown without one by tensors that have a device but no data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from predictors.tables.additive import entries
from search_space import ModuleSpec, SearchSpace, load_space
from search_space.components import input_shape
from supernet.network.modules import build_module


def one_of_each(space: SearchSpace) -> list[tuple[ModuleSpec, int]]:
    """An entry of every kind of component, mixer and mixer's parameters."""
    found = {}
    for spec, in_size in entries(space, 10):
        options = spec.as_dict()
        found[spec.kind, str(options.get("mixer")), str(options.get("params"))] = spec, in_size
    return list(found.values())


class Strangers(TorchDispatchMode):
    """Remembers operators that touch another device, or wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if any(t.device.type != "cuda" for t in tensors) or "_local_scalar" in str(func):
            self.seen.add(str(func))
        return result


@pytest.mark.parametrize(("spec", "in_size"), one_of_each(load_space("tiny")), ids=str)
def test_a_component_can_be_captured_in_a_cuda_graph(spec: ModuleSpec, in_size: int) -> None:
    with FakeTensorMode(), torch.inference_mode():
        with torch.device("meta"):
            module = build_module(spec).eval()
        for child in module.modules():
            for name, weight in list(child.named_parameters(recurse=False)):
                half = torch.empty(weight.shape, dtype=torch.half, device="cuda")
                setattr(child, name, nn.Parameter(half, requires_grad=False))
        images = torch.empty(input_shape(spec, in_size, 2), dtype=torch.half, device="cuda")
        module(images)  # constants are made now
        with Strangers() as strangers:
            output = module(images)
    assert (output.device.type, output.dtype) == ("cuda", torch.half)
    assert not strangers.seen
