"""The shared subnet is the extracted subnet, bit for bit, and its gradients land in place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from search_space import (
    Architecture,
    Macro,
    SearchSpace,
    StageSpace,
    components,
    known,
    load_space,
    metaformer,
    space_names,
)
from search_space import Mixer as Mixer_
from search_space.errors import InvalidArchitectureError
from supernet import Supernet, build
from supernet.network import supernet as supernet_module
from supernet.network.axes import Axis, Centre, Concat, Product, extent, permute, shape
from supernet.network.mixers import Mixer, register_mixer
from supernet.network.norms import BatchNorm
from supernet.network.slices import Slice, cut
from supernet.network.templates import TEMPLATES, template

SIDE = {"digits": 16, "cifar": 32, "tiny": 64, "base": 64, "mobile": 64}


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
            if any(isinstance(module, BatchNorm) for module in network.modules()):
                network.train()  # subnets normalise by their batch
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
    parameters = dict(network.named_parameters())
    result = {n: torch.zeros_like(p) for n, p in supernet.named_parameters()}
    for component in components(architecture, supernet.num_classes):
        module = template(component.spec)
        for name, axes in module.axes().items():
            options, inside = component.spec.as_dict(), name
            if name.startswith("mixer."):
                inside = f"mixer.{options['mixer']}.{name.removeprefix('mixer.')}"
            elif component.spec.kind == "block" and options["style"] != "metaformer":
                inside = f"{options['style']}.{name}"
            shared = f"{component.path}.{inside}"
            large, small = supernet.sizes[shared], module.sizes()
            where = [kept(axis, large, small) for axis in axes]
            grad = parameters[f"{component.path}.{name}"].grad
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


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """``values`` as a leaf in another memory layout."""
    match layout:
        case "offset":
            flat = torch.zeros(values.numel() + 3)
            result = flat[3:].view(values.shape)
        case "reversed":
            result = torch.empty(values.shape[::-1]).permute(*reversed(range(values.ndim)))
        case _:
            result = torch.empty_like(values)
    return result.copy_(values).requires_grad_()


LAYOUTS = st.sampled_from(["contiguous", "offset", "reversed"])


@settings(max_examples=150, deadline=None)
@given(st.lists(axes, min_size=1, max_size=3), LAYOUTS, LAYOUTS, LAYOUTS, st.data())
def test_slices_are_the_positions_that_the_axes_declare(
    items: list[Axis], of_weight: str, of_total: str, of_grad: str, data: st.DataObject
) -> None:
    """Whatever the memory layouts of the weight, its gradient and the small one's gradient."""
    large = {"a": 4, "b": 3, "c": 5}
    small = {
        "a": data.draw(st.integers(0, 4)),
        "b": data.draw(st.integers(1, 3)),
        "c": data.draw(st.sampled_from([1, 3, 5])),
    }
    full = shape(tuple(items), large)
    assume(np.prod(full) <= 50_000)
    weight = laid_out(torch.arange(float(np.prod(full))).reshape(full), of_weight)
    where = [kept(axis, large, small) for axis in items]
    expected = weight.detach().numpy()[np.ix_(*where)]
    part = Slice.of(tuple(items), large, small)
    (actual,) = cut([weight], [part])
    assert actual.is_contiguous()
    np.testing.assert_array_equal(actual.detach().numpy(), expected)
    weight.grad = laid_out(torch.ones(full), of_total).detach()
    grad = laid_out(torch.rand(actual.shape), of_grad).detach()
    actual.backward(grad)
    total = np.ones(full, dtype=np.float32)
    total[np.ix_(*where)] += grad.numpy()
    np.testing.assert_array_equal(weight.grad.numpy(), total)
    assert all(np.prod(sizes) > 0 for sizes, *_ in part.blocks)


@torch.no_grad()
def flattened(supernet: Supernet) -> None:
    """Parameters and gradients become views of one buffer each, as in flat optimisers."""
    total = sum(parameter.numel() for parameter in supernet.parameters())
    values, gradients = torch.zeros(total + 1), torch.zeros(total + 1)
    start = 1  # nothing lies at the buffer's beginning
    for parameter in supernet.parameters():
        part = slice(start, start + parameter.numel())
        values[part] = parameter.flatten()
        parameter.data = values[part].view(parameter.shape)
        parameter.grad = gradients[part].view(parameter.shape)
        start = part.stop


@pytest.mark.parametrize("layout", ["flat buffer", "channels last"])
def test_any_memory_layout_of_the_weights_gives_the_extracted_network(layout: str) -> None:
    torch.manual_seed(0)
    supernet = Supernet(load_space("digits"), num_classes=5).train()
    images = torch.randn(2, 3, 16, 16)
    architecture = supernet.space.decode(supernet.space.sample(np.random.default_rng(0), 1))[0]
    logits = supernet(images, architecture)
    expected = supernet.extract(architecture)
    if layout == "flat buffer":
        flattened(supernet)
    else:
        supernet.to(memory_format=torch.channels_last)
        assert not all(parameter.is_contiguous() for parameter in supernet.parameters())
    network = supernet.extract(architecture)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    torch.testing.assert_close(supernet(images, architecture), logits)
    torch.testing.assert_close(network(images), logits)
    for _ in range(2):
        supernet(images, architecture).square().sum().backward()
        network(images).square().sum().backward()
    gradients = scatter(network, supernet, architecture)
    for name, parameter in supernet.named_parameters():
        actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(actual, gradients[name], msg=name)


def test_passes_of_several_threads_do_not_disturb_each_other() -> None:
    """Supernets of one space in several threads, each with weights and a drop path of its own."""
    space = load_space("digits")
    supernets = []
    for seed in range(4):
        torch.manual_seed(seed)
        supernets.append(Supernet(space, num_classes=5).train(seed % 2 == 0))
    images = torch.randn(2, 3, 16, 16)
    nets = some_architectures(space, 6)
    with torch.no_grad():
        expected = [[supernet(images, net) for net in nets] for supernet in supernets]

    @torch.no_grad()
    def passes(which: int) -> int:
        return sum(
            not torch.equal(supernets[which](images, net), logits)
            for _ in range(3)
            for net, logits in zip(nets, expected[which], strict=True)
        )

    with ThreadPoolExecutor(len(supernets)) as pool:
        assert list(pool.map(passes, range(len(supernets)))) == [0] * len(supernets)


def test_the_drop_path_rate_makes_no_templates() -> None:
    space = load_space("digits")
    supernet = Supernet(space, 5).train()
    images = torch.randn(1, 3, 16, 16)
    nets = some_architectures(space, 8)
    numbers = []
    for rate in (0.0, 0.1, 0.35):
        for net in nets:
            supernet(images, net, drop_path_rate=rate)
        numbers.append((len(supernet._sources), TEMPLATES.of.cache_info().currsize))
    assert len(set(numbers)) == 1


def test_shared_weights_start_as_the_modules_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their names are: each module sets its values, the largest that uses one decides."""

    class Scaled(Mixer):
        def __init__(self, dim: int, kernel: int = 3) -> None:
            super().__init__()
            self.dim, self.kernel = dim, kernel
            self.gamma = nn.Parameter(torch.zeros(dim))
            self.scale1 = nn.Parameter(torch.full((dim,), 0.5))
            self.taps = nn.Parameter(torch.full((dim, kernel), float(kernel)))
            self.temperature = nn.Parameter(torch.tensor(7.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (self.gamma + self.scale1 + self.taps.sum(1)) * self.temperature

        def axes(self) -> dict[str, tuple[Axis, ...]]:
            channels: tuple[Axis, ...] = ("dim",)
            return {
                "gamma": channels,
                "scale1": channels,
                "taps": ("dim", Centre("kernel")),
                "temperature": (),
            }

        def sizes(self) -> dict[str, int]:
            return {"dim": self.dim, "kernel": self.kernel}

    monkeypatch.setitem(register_mixer._classes, "pooling", Scaled)
    monkeypatch.setattr(supernet_module, "template", template.__wrapped__)
    blocks = tuple(
        metaformer(mixer, ratio)
        for mixer in (Mixer_.of("pooling", kernel=3), Mixer_.of("pooling", kernel=5))
        for ratio in (1.0, 2.0)
    )
    stages = tuple(StageSpace((8, 16), (1, 2), blocks) for _ in range(4))
    macro = Macro(stem_kernel=2, stem_stride=2, layer_scale=1e-6)
    supernet = Supernet(SearchSpace("scaled", macro, (16,), stages), 5)
    place = supernet.get_submodule("stages.1.blocks.1")
    mixer = place.get_submodule("mixer.pooling")
    assert mixer.gamma.tolist() == [0.0] * 16
    assert mixer.scale1.tolist() == [0.5] * 16
    assert mixer.taps.tolist() == [[5.0] * 5] * 16
    assert mixer.temperature.item() == 7
    assert place.scale1.tolist() == place.scale2.tolist() == pytest.approx([1e-6] * 16)
    assert place.norm2.weight.tolist() == [1.0] * 16
    assert place.mlp.fc1.bias.tolist() == [0.0] * 32
    spread = place.mlp.fc1.weight.std().item()
    assert spread == pytest.approx(0.5 / 16**0.5, rel=0.15)


def test_entries_that_no_module_covers_alone_come_from_those_that_use_them() -> None:
    """Many small heads and few large ones: each part has values, the rest is used by none."""
    blocks = tuple(
        metaformer(Mixer_.of("window_attention", window=2, head_dim=head_dim), 1.0)
        for head_dim in (4, 8)
    )
    stages = tuple(StageSpace((8, 16), (1,), blocks) for _ in range(4))
    macro = Macro(stem_kernel=2, stem_stride=2)
    supernet = Supernet(SearchSpace("heads", macro, (16,), stages), 5)
    weight = supernet.get_parameter("stages.0.blocks.0.mixer.window_attention.qkv.weight")
    used = weight.detach().view(3, 4, 8, 16) != 0  # heads, head_dim
    assert used[:, :4, :4].all()
    assert used[:, :2].all()
    assert not used[:, 2:, 4:].any()


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
