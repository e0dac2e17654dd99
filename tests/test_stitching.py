"""Networks stitched of trained ones: least squares, assembling, joint training, the front."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from search_space import Architecture, Block, Macro, Mixer, Stage, metaformer
from search_space.errors import DataError, InvalidArchitectureError, UsageError
from search_space.stitches import Route, Stitch, one_way, two_way
from supernet import build
from supernet.inherit.stitching.fit import least_squares
from supernet.inherit.stitching.network import StitchedNet, assemble
from supernet.network.backbone import Backbone

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
    assert net.has_batch_norms
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
