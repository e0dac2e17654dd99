"""What changes a float network before it gets int8 changes nothing but ranges."""

from __future__ import annotations

import pytest
import torch
from test_quantised import images, small, trained
from torch import nn

from search_space.components import components
from search_space.errors import UnknownNameError, UsageError
from search_space.precision import in_precision
from supernet import Backbone
from supernet.network.layers import fold_batch_norms
from supernet.quantisation.calibration import quantised_network
from supernet.quantisation.preparations import PREPARATIONS, prepare_components
from supernet.quantisation.preparations.pairs import Pair, chain_pairs, pairs_of

NAMES = ("resnet18", "swin_t", "convnext_t", "caformer_s18", "mobilenetv2_050")


def uneven(name: str) -> Backbone:
    """A folded network whose channels differ a lot in size."""
    network = fold_batch_norms(trained(small(name)))
    torch.manual_seed(1)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.LayerNorm):
                part.weight.mul_(torch.exp(1.5 * torch.randn(len(part.weight))))
                if part.bias is not None:
                    part.bias.add_(torch.randn(len(part.weight)))
    return network


def paths_of(network: Backbone) -> list[str]:
    return [item.path for item in components(network.architecture, 10)]


@pytest.mark.parametrize("way", PREPARATIONS.names())
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_in_float_stay(name: str, way: str) -> None:
    network = uneven(name)
    before = network(images(1))
    prepare_components(network, paths_of(network), [images()], [way])
    torch.testing.assert_close(network(images(1)), before, rtol=1e-4, atol=1e-4)


def test_norms_are_found_with_all_that_reads_them() -> None:
    network = uneven("swin_t")
    pairs = pairs_of(network, paths_of(network), [images()])
    found = {id(pair.writer): [id(layer) for layer in pair.readers] for pair in pairs}
    names = {id(part): name for name, part in network.named_modules()}
    readable = {names[w]: [names[r] for r in readers] for w, readers in found.items()}
    for i in range(4):
        block = f"stages.{i}.blocks.0"
        (reads,) = readable[f"{block}.norm2"]
        assert reads.startswith(f"{block}.mlp")
    assert not any("proj" in layer for layers in readable.values() for layer in layers)


def test_a_relu6_allows_no_equalisation() -> None:
    network = fold_batch_norms(trained(small("mobilenetv2_050")))
    assert not chain_pairs(network)
    assert chain_pairs(fold_batch_norms(trained(small("resnet18"))))


def pair_of_norm() -> tuple[Pair, torch.Tensor, nn.Module]:
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(6), nn.Linear(6, 4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0, 1.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0, 0.0]))
    x = torch.randn(500, 6)
    pair = Pair(norm, [layer], shifts=True)
    pair.see(norm(x))
    return pair, x, nn.Sequential(norm, layer)


def test_channels_get_one_range() -> None:
    """With the mean scale and zero point, as RepQ-ViT says."""
    pair, x, both = pair_of_norm()
    wanted = both(x)
    scales = (pair.high - pair.low) / 255
    zeros = -pair.low / scales
    PREPARATIONS["reparameterise"].call(pair)
    torch.testing.assert_close(both(x), wanted, rtol=1e-4, atol=1e-4)
    seen = both[0](x)  # type: ignore[index]
    low = -float(scales.mean() * zeros.mean())
    assert torch.allclose(pair.low, torch.full((6,), low), atol=1e-4)
    high = low + 255 * float(scales.mean())
    assert torch.allclose(pair.high, torch.full((6,), high), atol=1e-4)
    assert float(seen.detach().min()) >= low - 1e-4
    assert float(seen.detach().max()) <= high + 1e-4


def test_linear_layers_take_over_half() -> None:
    pair, _, _ = pair_of_norm()
    values = torch.maximum(-pair.low, pair.high)
    weights = pair.readers[0].weight.detach().abs().amax(0)
    PREPARATIONS["smooth"].call(pair)
    assert torch.allclose(torch.maximum(-pair.low, pair.high), (values * weights).sqrt())
    assert torch.allclose(pair.largest_weights(), (values * weights).sqrt())


def test_equalised_channels_are_written_and_read_alike() -> None:
    network = fold_batch_norms(trained(small("resnet18")))
    pairs = pairs_of(network, paths_of(network), [images()])
    assert pairs
    for pair in pairs:
        PREPARATIONS["equalise"].call(pair)
        writes = pair.writer.weight.detach().flatten(1).abs().amax(1)
        assert torch.allclose(writes, pair.largest_weights(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "ways"), [("convnext_t", ("smooth", "reparameterise")), ("resnet18", ("equalise",))]
)
@torch.no_grad()
def test_channels_that_were_made_uneven_lose_less_when_prepared(
    name: str, ways: tuple[str, ...]
) -> None:
    network = fold_batch_norms(trained(small(name)))
    for pair in pairs_of(network, paths_of(network), [images()]):
        pair.divide(torch.exp(1.5 * torch.randn(len(pair.low))))
    architecture = in_precision(network.architecture, "int8")
    wanted = network(images(1))

    def error(*prepare: str) -> float:
        result = quantised_network(network, architecture, [images()], prepare=prepare)
        return float((result(images(1)) - wanted).norm())

    lost = error()
    for way in ways:
        assert error(way) < 0.8 * lost, way


def test_errors_say_what_is_wrong() -> None:
    network = uneven("resnet18")
    architecture = in_precision(network.architecture, "int8")
    with pytest.raises(UnknownNameError, match="preparation"):
        quantised_network(network, architecture, [images()], prepare=("polish",))
    with pytest.raises(UsageError, match="no calibration images"):
        quantised_network(network, architecture, [], prepare=("smooth",))
