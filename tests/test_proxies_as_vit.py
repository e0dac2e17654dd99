"""L^E and κ: their definitions, closed forms of linear networks, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from proxy_cases import (
    MACROS,
    distortion_by_coordinates,
    kernel_by_jacobian,
    our_features,
    small,
    small_timm,
    without_norms,
)
from torch import Tensor, nn

from predictors.proxies import Network, ScoreSettings, UndefinedProxyError, proxy
from predictors.proxies.as_vit import _gram, condition_number, length_distortion, tangent_kernel
from predictors.proxies.preparation import (
    WithoutNorms,
    absolute_weights,
    as_vit_weights,
    final_norm,
    unit_scales,
)
from predictors.proxies.synflow import log_synaptic_flow
from search_space import Stage
from search_space.known import SWIN
from supernet import build
from supernet.network.timm_weights import from_timm

mixers = pytest.mark.parametrize("mixer", MACROS)


class Linear(nn.Module):
    """Features A x, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 6, bias=False, dtype=torch.float64)
        self.factor = factor

    def forward_features(self, x: Tensor) -> Tensor:
        return self.factor * self.layer(x.flatten(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ready(mixer: str) -> nn.Module:
    """A network in double precision as it is scored."""
    network = Network.of_architecture(small(mixer, depth=2), num_classes=3).build(1)
    unit_scales(network, generator(2))
    as_vit_weights(network, generator(3))
    return network.double()


def plane(side: int, dtype: torch.dtype = torch.float64) -> Tensor:
    gaussian = torch.randn(3 * side * side, 2, generator=generator(4), dtype=dtype)
    return torch.linalg.qr(gaussian).Q.reshape(3, side, side, 2)


def images(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=generator(5), dtype=torch.float64)


# Length distortion --------------------------------------------------------------------------------


@mixers
def test_distortion_is_what_reverse_mode_gives_coordinate_by_coordinate(mixer: str) -> None:
    network, circle = ready(mixer), plane(32)
    value = length_distortion(network, circle)
    without_norms(network)
    expected = distortion_by_coordinates(lambda x: our_features(network, x), circle)
    assert value == pytest.approx(expected, rel=1e-9)
    assert value > 1e-6


def test_score_is_that_of_the_drawn_network_and_plane() -> None:
    """The order of draws is part of what a seed means; single precision is enough."""
    architecture = small("window_attention")
    settings = ScoreSettings(seed=7, repeats=1, batch_size=4)
    score = proxy("length_distortion").score(Network.of_architecture(architecture), settings)
    draws = generator(7)
    torch.randn(4, 3, 32, 32, generator=draws)
    network = Network.of_architecture(architecture).build(7)
    unit_scales(network, draws)
    as_vit_weights(network, draws)
    circle = torch.linalg.qr(torch.randn(3 * 32 * 32, 2, generator=draws)).Q
    without_norms(network)
    expected = distortion_by_coordinates(
        lambda x: our_features(network, x), circle.reshape(3, 32, 32, 2)
    )
    assert score.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("factor", [1.0, 3.5])
def test_distortion_of_a_linear_network(factor: float) -> None:
    """f = A x stretches the circle by ‖A U (−sin θ, cos θ)‖ at θ."""
    network, circle = Linear(factor), plane(4)
    product = (network.layer.weight @ circle.reshape(-1, 2)).detach().numpy()
    angles = np.linspace(0, 2 * math.pi, 10)
    speeds = product @ np.stack([-np.sin(angles), np.cos(angles)])
    expected = factor * np.linalg.norm(speeds, axis=0).sum()
    assert length_distortion(network, circle) == pytest.approx(expected, rel=1e-12)


def test_distortion_of_what_turns_the_circle_is_its_polygon() -> None:
    """Where features are a rotation of the image, each of the ten speeds is 1."""

    class Flat(nn.Module):
        def forward_features(self, x: Tensor) -> Tensor:
            return x.flatten(1).flip(1)

    assert length_distortion(Flat(), plane(4)) == pytest.approx(10.0)


def test_distortion_does_not_depend_on_how_many_points_are_in_memory() -> None:
    network, circle = ready("gnconv"), plane(32)
    assert length_distortion(network, circle, at_once=3) == pytest.approx(
        length_distortion(network, circle), rel=1e-12
    )


def test_dropped_paths_do_not_count() -> None:
    architecture = small("depthwise_conv")
    settings = ScoreSettings(repeats=1)
    plain, dropping = (
        Network("", 32, lambda rate=rate: build(architecture, 3, drop_path_rate=rate))  # type: ignore[misc]
        for rate in (0.0, 0.5)
    )
    scored = proxy("length_distortion")
    assert scored.score(plain, settings) == scored.score(dropping, settings)


def test_constant_features_have_no_length() -> None:
    class Constant(nn.Module):
        def forward_features(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3)

    assert length_distortion(Constant(), plane(4)) == 0.0


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def test_operators_without_forward_derivative_are_named() -> None:
    class Hidden(Linear):
        def forward_features(self, x: Tensor) -> Tensor:
            return Opaque.apply(super().forward_features(x))

    with pytest.raises(UndefinedProxyError, match=r"no forward derivative: .*jvp"):
        length_distortion(Hidden(), plane(4))


# Tangent kernel -----------------------------------------------------------------------------------


@mixers
def test_kernel_is_that_of_the_jacobian(mixer: str) -> None:
    network, batch = ready(mixer), images(4, 32)
    kernel = tangent_kernel(network, batch)
    weights = [p for name, p in network.named_parameters() if name.split(".")[-1] == "weight"]
    network.head.norm = nn.Identity()
    expected = kernel_by_jacobian(lambda x: our_features(network, x), batch, weights)
    torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=0)
    eigenvalues = np.linalg.eigvalsh(expected.numpy())
    assert condition_number(kernel) == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-6)


def test_condition_number_of_a_linear_network() -> None:
    """Each feature adds the products of images, whatever the weights are."""
    batch = images(3, 4)
    flat = batch.flatten(1).numpy()
    expected = np.linalg.cond(flat @ flat.T)
    for factor in (1.0, 100.0):
        kernel = tangent_kernel(Linear(factor), batch)
        np.testing.assert_allclose(kernel, 6 * factor**2 * flat @ flat.T, rtol=1e-12)
        assert condition_number(kernel) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_kernel_does_not_depend_on_how_many_gradients_are_in_memory(kept: int) -> None:
    network, batch = ready("pooling"), images(4, 32)
    bytes_each = sum(
        8 * p.numel() for name, p in network.named_parameters() if name.endswith("weight")
    )
    kernel = tangent_kernel(network, batch, max_bytes=kept * bytes_each)
    torch.testing.assert_close(kernel, tangent_kernel(network, batch))


def test_final_norm_is_found_by_what_it_gives() -> None:
    """Swin and FocalNet normalise features, ConvNeXt and PoolFormer what is pooled from them."""
    image = torch.zeros(1, 3, 32, 32)
    found = {name: final_norm(build(small(name), 3).eval(), image) for name in MACROS}
    assert found["gnconv"] == found["pooling"] == found["depthwise_conv"] == 0
    # stem, two in each block, three before merging, and the last
    assert found["window_attention"] == 1 + 8 + 3 + 1
    ours = small_timm()
    image = torch.zeros(1, 3, 64, 64)
    assert final_norm(ours["swin"].build(0), image) == 1 + 10 + 3 + 1
    assert final_norm(ours["convnext"].build(0), image) == 0
    # a batch norm's output that was changed in place is not what the features are
    assert final_norm(ours["resnet"].build(0), image) == 0


def test_batches_without_a_condition_number_say_why() -> None:
    batch = images(3, 4)
    with pytest.raises(UndefinedProxyError, match="some images look the same"):
        condition_number(tangent_kernel(Linear(), batch[[0, 1, 0]]))
    with pytest.raises(UndefinedProxyError, match="not finite"):
        condition_number(tangent_kernel(Linear(math.inf), batch))
    single = proxy("ntk_condition").score(
        Network.of_architecture(small("pooling")), ScoreSettings(repeats=1, batch_size=1)
    )
    assert single.value is None
    assert "two images" in single.reason


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timms_network_with_our_weights_scores_alike(name: str) -> None:
    """Same functions, other modules, another layout and another place of the last norm."""
    if name == "convnext_atto":
        ours, options = small("depthwise_conv"), {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        ours = replace(ours, stages=tuple(wider(stage) for stage in ours.stages))
    else:
        ours = replace(small("window_attention", depth=2), resolution=128)
        ours = replace(
            ours,
            macro=SWIN,
            stages=tuple(
                wider(replace(stage, width=8 * 2**i)) for i, stage in enumerate(ours.stages)
            ),
        )
        options = {
            **{"img_size": 128, "window_size": 4, "embed_dim": 8},
            **{"depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)},
        }
    theirs = timm.create_model(name, num_classes=3, **options).eval()
    unit_scales(theirs, generator())
    network = build(ours, 3).eval()
    network.load_state_dict(from_timm(theirs.state_dict(), network))
    theirs, network = theirs.double(), network.double()
    circle, batch = plane(ours.resolution), images(2, ours.resolution)
    assert length_distortion(network, circle) == pytest.approx(
        length_distortion(theirs, circle), rel=1e-9
    )
    torch.testing.assert_close(tangent_kernel(network, batch), tangent_kernel(theirs, batch))
    for module in (network, theirs):
        absolute_weights(module)
    assert log_synaptic_flow(network, (3, ours.resolution, ours.resolution)) == pytest.approx(
        log_synaptic_flow(theirs, (3, ours.resolution, ours.resolution)), rel=1e-9
    )


def wider(stage: Stage) -> Stage:
    """With the published expansion of MLPs."""
    return replace(stage, blocks=tuple(block.replaced(mlp_ratio=4.0) for block in stage.blocks))


# Preparation --------------------------------------------------------------------------------------


def test_no_branch_starts_switched_off() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
            self.skip_gain = nn.Parameter(torch.zeros(()))
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 3)
            self.slope = nn.PReLU()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 1))
            nn.init.zeros_(self.norm.weight)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    layers = Layers()
    unit_scales(layers, generator())
    for ones in (layers.gamma, layers.skip_gain, layers.norm.weight):
        assert (ones == 1).all()
    for untouched in (layers.norm.bias, layers.head.bias, layers.cls_token):
        assert (untouched == 0).all()
    assert (layers.relative_position_bias_table == 0).all()
    assert layers.slope.weight.item() == 0.25
    assert 0 < layers.head.weight.std().item() < 0.1


def test_what_follows_a_norm_in_place_leaves_its_input_alone() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    with WithoutNorms():
        assert torch.relu_(torch.layer_norm(x, (2,))).tolist() == [[0.0, 2.0]]
    assert x.tolist() == [[-1.0, 2.0]]
    with WithoutNorms(2):
        first, second = (F.layer_norm(x, (2,)) for _ in range(2))
    torch.testing.assert_close(first, torch.tensor([[-1.0, 1.0]]), atol=1e-4, rtol=0)
    assert torch.equal(second, x)


def test_linear_layers_and_pointwise_convolutions_are_drawn_alike() -> None:
    layers = nn.ModuleList(
        [nn.Linear(64, 64), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3), nn.LayerNorm(64)]
    )
    before = layers[2].weight.clone()
    as_vit_weights(layers, generator())
    for drawn in layers[:2]:
        assert drawn.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not drawn.bias.any()
    assert torch.equal(layers[2].weight, before)


@pytest.mark.parametrize("name", ["length_distortion", "ntk_condition"])
def test_modules_without_one_map_of_features_say_so(name: str) -> None:
    class Pairs(nn.Module):
        def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    for module, reason in ((Pairs, "more than one map"), (nn.Flatten, "no forward_features")):
        score = proxy(name).score(Network("", 8, module), ScoreSettings(repeats=1, batch_size=2))
        assert score.value is None
        assert reason in score.reason


def test_products_of_gradients_are_summed_in_double_precision() -> None:
    """Images that differ little: what is left of a difference of products needs all digits."""
    rows = torch.ones(3, 3 << 20) + 0.1 * torch.rand(3, 3 << 20, generator=generator(0))
    exact = rows.double() @ rows.double().T
    kernel = _gram(lambda index: rows[index], 3, kept=2)
    assert torch.allclose(kernel, exact, rtol=1e-12)
    assert condition_number(kernel) == pytest.approx(condition_number(exact), rel=1e-8)
