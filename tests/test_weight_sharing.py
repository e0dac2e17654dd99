"""The shared subnet is the extracted subnet, bit for bit, and its gradients land in place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from search_space import Architecture, SearchSpace, components, known, load_space, space_names
from search_space.errors import InvalidArchitectureError
from supernet import Supernet, build
from supernet.network.axes import (
    Axis,
    Centre,
    Concat,
    Product,
    Slice,
    boxes,
    cut,
    extent,
    permute,
    shape,
)
from supernet.network.supernet import template

SIDE = {"digits": 16, "cifar": 32, "tiny": 64, "base": 64}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name == "base" else ())
        for name in space_names()
    ],
)
def supernet(request: pytest.FixtureRequest) -> Supernet:
    torch.manual_seed(0)
    return Supernet(load_space(request.param), num_classes=5)


def some_architectures(space: SearchSpace, n: int = 3) -> list[Architecture]:
    drawn = space.decode(space.sample(np.random.default_rng(0), n))
    return [space.smallest, *drawn, space.largest]


def test_subnet_equals_extracted_network_bitwise(supernet: Supernet) -> None:
    side = SIDE[supernet.space.name]
    images = torch.randn(2, 3, side, side)
    for architecture in some_architectures(supernet.space):
        for training in (False, True):
            supernet.train(training)
            network = supernet.extract(architecture)
            assert network.training == training
            assert torch.equal(supernet(images, architecture), network(images))


def test_drop_path_draws_the_same_numbers(supernet: Supernet) -> None:
    supernet.train()
    side = SIDE[supernet.space.name]
    images = torch.randn(4, 3, side, side)
    architecture = supernet.space.largest
    network = supernet.extract(architecture, drop_path_rate=0.5)
    torch.manual_seed(7)
    shared = supernet(images, architecture, drop_path_rate=0.5)
    torch.manual_seed(7)
    assert torch.equal(shared, network(images))
    assert not torch.equal(shared, supernet(images, architecture))


def kept(axis: Axis, large: dict[str, int], small: dict[str, int]) -> list[int]:
    """Entry by entry, which positions along one dimension a smaller module keeps."""
    match axis:
        case int():
            return list(range(axis))
        case str():
            return list(range(small[axis]))
        case Centre(name):
            start = (large[name] - small[name]) // 2
            return list(range(start, start + small[name]))
        case Product(factors):
            positions = [0]
            for factor in factors:
                inner = kept(factor, large, small)
                positions = [p * extent(factor, large) + i for p in positions for i in inner]
            return positions
        case Concat(parts):
            positions, start = [], 0
            for part in parts:
                positions += [start + i for i in kept(part, large, small)]
                start += extent(part, large)
            return positions


def scatter(network: torch.nn.Module, supernet: Supernet, architecture: Architecture) -> dict:
    """Gradients of an extracted network, put entry by entry where the supernet keeps them."""
    own = dict(network.named_parameters())
    result = {n: torch.zeros_like(p) for n, p in supernet.named_parameters()}
    for component in components(architecture, supernet.num_classes):
        module = template(component.spec)
        for name, axes in module.axes().items():
            inside = name
            if name.startswith("mixer."):
                mixer = dict(component.spec.options)["mixer"]
                inside = f"mixer.{mixer}.{name.removeprefix('mixer.')}"
            shared = f"{component.path}.{inside}"
            large, small = supernet.sizes[shared], module.sizes()
            where = [kept(axis, large, small) for axis in axes]
            grad = own[f"{component.path}.{name}"].grad
            assert grad is not None
            result[shared][np.ix_(*where)] += grad
    return result


def test_gradients_are_those_of_the_extracted_network_in_place(supernet: Supernet) -> None:
    supernet.train()
    side = SIDE[supernet.space.name]
    images = torch.randn(2, 3, side, side)
    for architecture in some_architectures(supernet.space, 1)[:2]:
        network = supernet.extract(architecture)
        supernet.zero_grad()
        supernet(images, architecture).square().sum().backward()
        network(images).square().sum().backward()
        expected = scatter(network, supernet, architecture)
        touched = 0
        for name, parameter in supernet.named_parameters():
            actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.equal(actual, expected[name]), name
            touched += int(actual.abs().sum() > 0)
        assert touched > 20


def test_gradients_of_several_subnets_add_up() -> None:
    space = load_space("digits")
    supernet = Supernet(space, 5)
    images = torch.randn(2, 3, 16, 16)
    nets = some_architectures(space, 2)
    total: dict[str, torch.Tensor] = {}
    for architecture in nets:
        supernet.zero_grad()
        supernet(images, architecture).square().sum().backward()
        for name, parameter in supernet.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad
    supernet.zero_grad()
    for architecture in nets:
        supernet(images, architecture).square().sum().backward()
    for name, parameter in supernet.named_parameters():
        if name in total:
            torch.testing.assert_close(parameter.grad, total[name])


def test_every_parameter_is_used_by_some_architecture(supernet: Supernet) -> None:
    """No shared weight is larger than what the space can reach."""
    space = supernet.space
    reached: set[str] = set()
    for i, stage in enumerate(space.stages):
        for block, j in itertools.product(stage.blocks, range(stage.max_depth)):
            mixer = block.mixer.name
            prefix = f"stages.{i}.blocks.{j}."
            reached |= {
                n
                for n, _ in supernet.named_parameters()
                if n.startswith(prefix) and (".mixer." not in n or f".mixer.{mixer}." in n)
            }
    rest = {n for n, _ in supernet.named_parameters()} - reached
    assert all(".downsample." in n or n.startswith(("stem.", "head.")) for n in rest)


def test_architecture_outside_the_space_is_refused() -> None:
    supernet = Supernet(load_space("digits"), 5)
    with pytest.raises(InvalidArchitectureError, match="does not hold"):
        supernet(torch.randn(1, 3, 64, 64), known("convnext_t"))


axes = st.recursive(
    st.one_of(st.sampled_from(["a", "b", Centre("c")]), st.integers(1, 3)),
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda items: st.sampled_from([Product(*items), Concat(*items)])
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(axes, min_size=1, max_size=3), st.data())
def test_boxes_are_the_positions_that_the_axes_declare(
    items: list[Axis], data: st.DataObject
) -> None:
    large = {"a": 4, "b": 3, "c": 5}
    small = {
        "a": data.draw(st.integers(0, 4)),
        "b": data.draw(st.integers(1, 3)),
        "c": data.draw(st.sampled_from([1, 3, 5])),
    }
    full = shape(tuple(items), large)
    assume(np.prod(full) <= 50_000)
    weight = torch.arange(float(np.prod(full))).reshape(full).requires_grad_()
    where = [kept(axis, large, small) for axis in items]
    expected = weight.detach().numpy()[np.ix_(*where)]
    part = Slice.of(tuple(items), large, small)
    (actual,) = cut([weight], [part])
    assert actual.is_contiguous()
    np.testing.assert_array_equal(actual.detach().numpy(), expected)
    (actual * 2).sum().backward()
    marked = np.zeros(weight.shape)
    marked[np.ix_(*where)] = 2
    np.testing.assert_array_equal(weight.grad.numpy(), marked)
    assert all(np.prod(box.sizes) > 0 for box in boxes(tuple(items), large, small))


def test_sorting_hidden_channels_keeps_the_function() -> None:
    """A permutation along a named axis re-orders every weight that shares it."""
    network = build(known("focalnet_t_srf"), 5).eval()
    block = network.stages[0].blocks[0]
    order = np.random.default_rng(0).permutation(block.hidden).tolist()
    images = torch.randn(1, 8, 8, block.dim)
    before = block(images)
    state = permute(dict(block.state_dict()), block.axes(), block.sizes(), "hidden", order)
    assert not torch.equal(state["mlp.fc1.weight"], block.mlp.fc1.weight)
    block.load_state_dict(state)
    torch.testing.assert_close(block(images), before, atol=1e-5, rtol=1e-5)
