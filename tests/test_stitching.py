"""Networks stitched of trained ones: least squares, assembling, joint training, the front."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import config, few_images
from torch import Tensor

from predictors.counts import count_architecture, counts
from results.export.card import ModelCard
from results.export.write import export_network
from search.stitching import judge_routes
from search_space import Architecture, Block, Macro, Mixer, Stage, around, metaformer
from search_space.errors import DataError, InvalidArchitectureError, RunError, UsageError
from search_space.preprocessing import Preprocessing
from search_space.stitches import Route, Stitch, one_way, two_way
from supernet import Supernet, build
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.stitching.fit import least_squares
from supernet.inherit.stitching.network import StitchedNet, assemble
from supernet.inherit.stitching.training import RouteSampler, ranges_of, train_stitched
from supernet.network.backbone import Backbone
from supernet.network.channel_order import sort_channels
from supernet.network.timm_models import timm_model
from supernet.training.evaluation import evaluate

WINDOWS = metaformer(Mixer.of("window_attention", window=4, head_dim=8), 2)
POOLING = metaformer(Mixer.of("pooling"), 2)
MACRO = Macro(stem_kernel=2, stem_stride=2, downsample="patch_merging")


def parent(widths: tuple[int, ...], depths: tuple[int, ...], block: Block = WINDOWS) -> Backbone:
    """A network of random weights that are not small, in evaluation mode."""
    stages = tuple(Stage(w, (block,) * d) for w, d in zip(widths, depths, strict=True))
    torch.manual_seed(sum(widths))
    network = build(Architecture(MACRO, 32, stages), 10).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and "table" not in name:
                weight.copy_(torch.randn_like(weight) / weight[0].numel() ** 0.5)
    return network


def residual(widths: tuple[int, ...], depths: tuple[int, ...]) -> Backbone:
    macro = Macro(stem="conv_act", stem_kernel=3, stem_stride=1, stem_width=8, downsample="block")
    stages = tuple(Stage(w, (Block.of("basic"),) * d) for w, d in zip(widths, depths, strict=True))
    torch.manual_seed(sum(widths))
    return build(Architecture(macro, 32, stages), 10).eval()


def images(count: int = 24, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 3, 32, 32, generator=generator)
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in drawn.split(10)]


@pytest.mark.parametrize("make", [parent, residual])
@pytest.mark.parametrize("enter", [1, 2, 3])
@torch.no_grad()
def test_a_network_stitched_to_itself_is_that_network(make, enter: int) -> None:
    """At even and odd positions: windows are shifted as they were."""
    network = make((16, 24), (4, 1))
    own = assemble([network, network], Route(0, (Stitch(0, 1, 0, enter - 1, enter, 0),)), images())
    x = images(8, seed=2)[0][0]
    torch.testing.assert_close(own(x), network(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_layers_are_least_squares_solutions() -> None:
    """Against NumPy, of all positions at once, for maps of two networks."""
    small, large = parent((8, 16), (3, 1)), parent((16, 24), (3, 1))
    batches = images()
    stitch = Stitch(0, 1, 0, 1, 2, 0)
    weight, bias = least_squares([small, large], [Route(0, (stitch,))], batches)[stitch.shared]
    x, y = [], []
    for batch, _ in batches:
        x.append(small.stages[0].blocks[:2](small.stem(batch)).reshape(-1, 8))
        y.append(large.stages[0].blocks[:2](large.stem(batch)).reshape(-1, 16))
    ones = torch.cat([torch.cat(x), torch.ones(sum(map(len, x)), 1)], dim=1)
    wanted, *_ = np.linalg.lstsq(ones.double().numpy(), torch.cat(y).double().numpy(), rcond=None)
    np.testing.assert_allclose(weight.numpy(), wanted[:-1].T, atol=1e-5)
    np.testing.assert_allclose(bias.numpy(), wanted[-1], atol=1e-5)


@torch.no_grad()
def test_stitches_that_share_a_layer_are_averaged() -> None:
    parents = [parent((8, 16), (3, 1)), parent((16, 24), (3, 1))]
    pair = [Stitch(0, 1, 0, 0, 1, 5), Stitch(0, 1, 0, 0, 2, 5)]
    ((weight, bias),) = least_squares(parents, [Route(0, (s,)) for s in pair], images()).values()
    apart = [
        least_squares(parents, [Route(0, (replace(s, layer=i),))], images())
        for i, s in enumerate(pair)
    ]
    each = [next(iter(found.values())) for found in apart]
    torch.testing.assert_close(weight, (each[0][0] + each[1][0]) / 2)
    torch.testing.assert_close(bias, (each[0][1] + each[1][1]) / 2)


@pytest.mark.parametrize("rank", [0, 3])
@torch.no_grad()
def test_every_route_computes_what_is_extracted(rank: int) -> None:
    parents = [parent((8, 16), (3, 2)), parent((16, 24), (6, 2)), parent((16, 32), (6, 2))]
    routes = two_way([p.architecture.depths for p in parents])
    net = StitchedNet(parents, routes, rank).eval()
    net.fit(images())
    for layer in net.layers.values():
        if rank:
            layer.up.normal_()  # as if it had learnt
    x = images()[0][0]
    for route, architecture in zip(routes, net.architectures, strict=True):
        logits = net(x, architecture)
        assert logits.isfinite().all()
        torch.testing.assert_close(net.extract(architecture)(x), logits, atol=0, rtol=0)
        if not route.stitches:
            torch.testing.assert_close(logits, parents[route.parent](x), atol=0, rtol=0)


@torch.no_grad()
def test_residual_networks_are_stitched_by_blocks() -> None:
    parents = [residual((8, 16), (2, 1)), residual((16, 24), (3, 1))]
    routes = one_way([p.architecture.depths for p in parents])
    net = StitchedNet(parents, routes).eval()
    net.fit(images())
    assert net.needs_images
    assert len(routes) == 4
    x = images()[0][0]
    for architecture in net.architectures:
        torch.testing.assert_close(net.extract(architecture)(x), net(x, architecture))


def test_a_low_rank_layer_learns_its_change_only() -> None:
    parents = [parent((8, 16), (2, 1)), parent((16, 24), (2, 1))]
    net = StitchedNet(parents, one_way([(2, 1)] * 2), rank=2)
    net.fit(images())
    (layer,) = net.layers.values()
    assert {name for name, _ in layer.named_parameters()} == {"bias", "down", "up"}
    torch.testing.assert_close(layer.matrix, layer.weight)
    net(images()[0][0], net.architectures[-1]).sum().backward()
    assert layer.up.grad is not None
    assert layer.up.grad.abs().sum() > 0


def test_what_cannot_be_stitched_is_refused() -> None:
    parents = [parent((8, 16), (2, 1)), parent((16, 24), (2, 1))]
    routes = one_way([(2, 1)] * 2)
    with pytest.raises(UsageError, match="are one architecture"):
        StitchedNet([parents[0], parents[0]], routes)
    with pytest.raises(UsageError, match="classes"):
        StitchedNet([parents[0], build(parents[1].architecture, 5)], routes)
    net = StitchedNet(parents, routes)
    with pytest.raises(DataError, match="there are none"):
        net.fit([])
    with pytest.raises(InvalidArchitectureError, match="none of the 3"):
        net(images()[0][0], parent((8, 32), (2, 1)).architecture)


# Joint training and the front ---------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [1, 3, 7])
def test_ranges_of_cost_are_of_one_width(ranges: int) -> None:
    costs = [4.0, 1.0, 1.5, 9.9, 10.0, 2.0]
    groups = ranges_of(costs, ranges)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(costs[a] <= costs[b] for group in groups for a, b in itertools.pairwise(group))
    edges = np.linspace(1, 10, ranges + 1)
    for group in groups:
        numbers = np.searchsorted(edges[1:-1], [costs[i] for i in group], side="right")
        assert len(set(numbers)) == 1
    assert ranges_of([2.0, 2.0], 4) == ((0, 1),)


def test_draws_are_alike_over_ranges_and_then_over_networks() -> None:
    drawn = [parent((8, 8 * n), (1, 1)).architecture for n in range(2, 6)]
    sampler = RouteSampler(drawn, ((0,), (1, 2, 3)), seed=3)
    counts = Counter(sampler(step)[0].architecture for step in range(3000))
    shares = [counts[one] / 3000 for one in drawn]
    assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.03)
    assert sampler(5) == RouteSampler(drawn, ((0,), (1, 2, 3)), seed=3)(5)


@pytest.fixture(scope="module")
def small_pair() -> list[Backbone]:
    return [small_parent(8), small_parent(16)]


def small_parent(width: int) -> Backbone:
    return build(replace(parent((width, 2 * width), (3, 2)).architecture, resolution=16), 10)


def stitched_pair(parents: list[Backbone]) -> StitchedNet:
    net = StitchedNet(parents, one_way([p.architecture.depths for p in parents]))
    net.fit(eval_batches(few_images().train))
    return net


@pytest.mark.parametrize("by_cost", [False, True])
def test_joint_training_trains_parents_and_stitches(small_pair, by_cost: bool) -> None:
    net, data = stitched_pair(small_pair), few_images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    costs = [float(count_architecture(a, 10)["macs"]) for a in net.architectures]
    metrics = train_stitched(net, data, config(epochs=6), costs=costs if by_cost else None)
    assert metrics[-1].losses["route"] < metrics[0].losses["route"]
    assert set(metrics[-1].val_accuracy) == {"parent 0", "parent 1"}
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    for part in ("parents.0.stem", "parents.0.head", "parents.1.stem", "parents.1.head", "layers"):
        assert any(name.startswith(part) for name in changed), part


def test_a_joint_training_that_is_cut_off_goes_on(small_pair, tmp_path) -> None:
    data, teacher = few_images(), small_pair[1]
    whole, cut = stitched_pair(small_pair), stitched_pair(small_pair)
    train_stitched(whole, data, config(epochs=3), teacher=teacher)

    def stop(done: int, steps: int, info: dict) -> None:
        if done == steps - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stitched(cut, data, config(epochs=3), tmp_path, teacher=teacher, progress=stop)
    again = stitched_pair(small_pair)
    train_stitched(again, data, config(epochs=3), tmp_path, teacher=teacher)
    for (name, value), other in zip(
        whole.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert value.equal(other), name
    other = StitchedNet(small_pair, two_way([(3, 2)] * 2))
    with pytest.raises(RunError, match="networks"):
        train_stitched(other, data, config(epochs=3), tmp_path, teacher=teacher)


def test_one_cost_for_each_network(small_pair) -> None:
    with pytest.raises(UsageError, match="2 costs for 4 networks"):
        train_stitched(stitched_pair(small_pair), few_images(), config(), costs=[1.0, 2.0])


def test_the_front_is_what_no_other_beats(small_pair) -> None:
    net = stitched_pair(small_pair)
    batches = eval_batches(few_images().validation)
    points = judge_routes(net, batches, lambda a: count_architecture(a, 10)["macs"])
    assert [point.route for point in points] == list(net.networks.values())
    for point in points:
        own = evaluate(net.extract(point.architecture), batches)
        assert (own.confusion == point.quality.confusion).all()
        beaten = any(
            other.cost <= point.cost
            and other.quality.accuracy >= point.quality.accuracy
            and (other.cost, other.quality.accuracy) != (point.cost, point.quality.accuracy)
            for other in points
        )
        assert point.on_front == (not beaten)


# A stitched network is one like any other ---------------------------------------------------------


def a_network(make) -> Backbone:
    """A route there and back, so that widths change twice."""
    parents = [make((8, 16), (3, 1)), make((16, 24), (3, 1))]
    (route,) = (r for r in two_way([(3, 1)] * 2) if r.parents == (0, 1, 0))
    return assemble(parents, route, images())


@pytest.mark.parametrize("make", [parent, residual])
@torch.no_grad()
def test_it_is_a_point_of_a_space_and_can_be_a_parent(make) -> None:
    network = a_network(make)
    architecture, x = network.architecture, images()[0][0]
    space = around(architecture)
    genes = space.encode([architecture])
    for metric, table in counts(space, 10).items():
        wanted = count_architecture(architecture, 10)[metric]
        assert table.predict(genes) == pytest.approx([wanted])
    parameters = sum(value.numel() for value in network.parameters())
    assert count_architecture(architecture, 10)["num_params"] == parameters
    bank = WeightBank(space, network).eval()
    torch.testing.assert_close(bank(x, architecture), network(x), atol=0, rtol=0)
    supernet = Supernet(space, 10)
    supernet.insert(architecture, network)
    sort_channels(supernet)  # changes the order of channels and nothing else
    if make is parent:
        sorted_network = supernet.eval().extract(architecture)
        torch.testing.assert_close(sorted_network(x), network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [parent, residual])
def test_it_is_exported(make, tmp_path) -> None:
    network = a_network(make)
    assert timm_model(network.architecture) is None
    exported = export_network(
        network,
        tmp_path / "out",
        preprocessing=Preprocessing(resolution=32),
        card=ModelCard(title="stitched", class_names=[str(i) for i in range(10)]),
        formats=("timm", "onnx"),
    )
    assert [item.format for item in exported] == ["timm", "onnx"]  # each one verified
