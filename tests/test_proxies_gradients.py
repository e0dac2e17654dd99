"""Synaptic flow, NASWOT, ZiCo, gradient norm, SNIP and DSS against formulas written out here."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from proxy_cases import small
from torch import Tensor, nn

from predictors.proxies import Network, ScoreSettings, UndefinedProxyError, proxy
from predictors.proxies.dss import roles, saliency
from predictors.proxies.gradients import loss_gradients, zico
from predictors.proxies.naswot import Codes, log_determinant
from predictors.proxies.preparation import absolute_weights
from predictors.proxies.synflow import log_synaptic_flow

SIDE = 2
INPUTS = 3 * SIDE * SIDE


class TwoLayers(nn.Module):
    """W₂ relu(W₁ x) of flattened images."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, 5, bias=False)
        self.second = nn.Linear(5, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.flatten(1))))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(module: TwoLayers) -> tuple[np.ndarray, np.ndarray]:
    return tuple(layer.weight.detach().double().numpy() for layer in (module.first, module.second))  # type: ignore[return-value]


def gradients_by_hand(
    module: TwoLayers, x: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean cross entropy in W₁ and W₂."""
    first, second = arrays(module)
    hidden = x @ first.T
    active = np.maximum(hidden, 0)
    logits = active @ second.T
    wrong = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong[np.arange(len(x)), labels] -= 1
    wrong /= len(x)
    return ((wrong @ second) * (hidden > 0)).T @ x, wrong.T @ active


# Synaptic flow ------------------------------------------------------------------------------------


def flow(module: nn.Module, side: int = SIDE) -> float:
    absolute_weights(module)
    return math.exp(log_synaptic_flow(module.double(), (3, side, side)))


def test_flow_of_a_chain_is_the_product_of_its_matrices() -> None:
    """n layers: n times 1ᵀ |W_n| … |W_1| 1; norms are not there."""
    chain = nn.Sequential(
        nn.Flatten(),
        nn.Linear(INPUTS, 7, bias=False),
        nn.LayerNorm(7),
        nn.Linear(7, 5, bias=False),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 4, bias=False),
    )
    product = np.ones(INPUTS)
    for layer in (chain[1], chain[3], chain[6]):
        product = np.abs(layer.weight.detach().double().numpy()) @ product
    assert flow(chain) == pytest.approx(3 * product.sum(), rel=1e-12)


def test_flow_is_the_sum_of_weights_times_gradients() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)).double()
    value = flow(module, side=3)
    total = module(torch.ones(1, 3, 3, 3, dtype=torch.float64)).sum()
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(total, parameters)
    expected = sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
    assert value == pytest.approx(float(expected), rel=1e-9)


class Gated(nn.Module):
    """A branch of two layers, multiplied by one of a single layer or not at all."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.branch = nn.Sequential(
            nn.Linear(INPUTS, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Softplus(threshold=0)
        )
        self.gate = nn.Linear(INPUTS, 6, bias=False)
        self.gate.weight.data.fill_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        branch = self.branch(x)
        return branch * self.gate(x) if self.gated else branch


def test_gates_neither_multiply_nor_add_flow() -> None:
    """Here the gate is the same for all channels, so that without it nothing changes."""
    values = []
    for gated in (True, False):
        torch.manual_seed(0)
        values.append(flow(Gated(gated)))
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_the_mean_over_keys(fused: bool, masked: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(3, 9, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
            mask = torch.zeros(4, 4, dtype=x.dtype)
            if masked:
                mask[:, 3] = -math.inf
            if fused:
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return (q @ k.transpose(1, 2) * 3**-0.5 + mask).softmax(-1) @ v

    module = Attention()
    values = module.qkv.weight[6:].detach().abs().double()
    assert flow(module) == pytest.approx(float(4 * values.sum()), rel=1e-12)


def test_deep_gated_networks_stay_within_range() -> None:
    network = Network.of_architecture(small("gnconv", depth=12), num_classes=3)
    value = proxy("synflow").score(network, ScoreSettings(repeats=1)).value
    assert value is not None
    assert 1 < value < 300


def test_flow_that_has_no_logarithm_says_so() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 2, bias=False)).double()
    nn.init.zeros_(module[1].weight)
    with pytest.raises(UndefinedProxyError, match="no logarithm"):
        log_synaptic_flow(module, (3, SIDE, SIDE))
    nn.init.constant_(module[1].weight, 1e308)
    with pytest.raises(UndefinedProxyError, match="beyond double precision"):
        log_synaptic_flow(module, (3, SIDE, SIDE))


# NASWOT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    [torch.relu, F.gelu, F.silu, nn.ReLU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Hardswish()],
)
def test_codes_are_signs_before_the_activation(activation: object) -> None:
    """Three images, four units: the kernel counts the units on which two images agree."""
    assert callable(activation)
    x = torch.tensor([[1.0, 2.0, -1.0, 3.0], [1.0, -2.0, -1.0, 3.0], [-1.0, -2.0, 5.0, 0.0]])
    with Codes(3) as codes:
        activation(x)
    agreements = torch.tensor([[4, 3, 0], [3, 4, 1], [0, 1, 4]], dtype=torch.float64)
    torch.testing.assert_close(codes.kernel, agreements)
    # 4·(16 − 1) − 3·(12 − 0)
    assert log_determinant(codes.kernel) == pytest.approx(math.log(24))


def test_kernels_of_layers_add_up_and_biases_have_none() -> None:
    x = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    with Codes(2) as codes:
        F.gelu(x)
        torch.relu_(x.clone())
        torch.relu(torch.ones(1, 8))  # has no axis of images
    torch.testing.assert_close(codes.kernel, 2 * torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Flatten(), "no known activation function"),
        (nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Threshold(-9, 0)), "no known activation"),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), None),
    ],
)
def test_networks_without_codes_say_so(module: nn.Module, reason: str | None) -> None:
    score = proxy("naswot").score(Network("", 4, lambda: module), ScoreSettings(repeats=1))
    assert (score.value is None) == (reason is not None)
    assert (reason or "") in score.reason


def test_images_with_the_same_code_say_so() -> None:
    with pytest.raises(UndefinedProxyError, match="switch all activations alike"):
        log_determinant(torch.full((2, 2), 3.0, dtype=torch.float64))


# Gradients of a loss ------------------------------------------------------------------------------


def test_gradient_norm_and_snip_of_two_layers() -> None:
    network = Network("", SIDE, TwoLayers)
    draws, module = generator(3), network.build(3)
    x = torch.randn(6, 3, SIDE, SIDE, generator=draws)
    labels = torch.randint(4, (6,), generator=draws).numpy()
    gradients = gradients_by_hand(module, x.flatten(1).double().numpy(), labels)
    settings = ScoreSettings(seed=3, repeats=1, batch_size=6)
    norm, snip = (proxy(name).score(network, settings).value for name in ("grad_norm", "snip"))
    assert norm == pytest.approx(sum(np.linalg.norm(g) for g in gradients), rel=1e-5)
    expected = sum(np.abs(w * g).sum() for w, g in zip(arrays(module), gradients, strict=True))
    assert snip == pytest.approx(expected, rel=1e-5)


def test_zico_of_two_layers() -> None:
    network = Network("", SIDE, TwoLayers)
    draws, module = generator(5), network.build(5)
    batches = []
    for _ in range(2):
        x = torch.randn(6, 3, SIDE, SIDE, generator=draws)
        labels = torch.randint(4, (6,), generator=draws).numpy()
        batches.append(gradients_by_hand(module, x.flatten(1).double().numpy(), labels))
    expected = 0.0
    for a, b in zip(*batches, strict=True):
        ratios = ((np.abs(a) + np.abs(b)) / 2)[a != b] / (np.abs(a - b) / 2)[a != b]
        expected += math.log(ratios.sum())
    score = proxy("zico").score(network, ScoreSettings(seed=5, repeats=1, batch_size=6))
    assert score.value == pytest.approx(expected, rel=1e-4)


def test_zico_leaves_out_what_never_changes() -> None:
    moving = {"a": torch.tensor([1.0, 3.0, 0.0]), "b": torch.tensor([0.0])}
    later = {"a": torch.tensor([3.0, 3.0, 0.0]), "b": torch.tensor([0.0])}
    assert zico([moving, later]) == pytest.approx(math.log(2.0))
    with pytest.raises(UndefinedProxyError, match="no gradient differs"):
        zico([moving, moving])


def test_batch_norms_use_the_batch() -> None:
    """With the fresh statistics of eval mode they would be no norms at all."""
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(INPUTS, 4)).eval()
    x = torch.randn(6, 3, SIDE, SIDE, generator=generator())
    plain, scaled = (
        loss_gradients(module, factor * x, generator(1))["2.weight"] for factor in (1, 50)
    )
    torch.testing.assert_close(plain, scaled, atol=1e-5, rtol=1e-4)
    assert int(module[0].num_batches_tracked) == 0


@pytest.mark.parametrize("name", ["grad_norm", "snip", "zico"])
@pytest.mark.parametrize(
    ("module", "reason"), [(nn.Identity, "no classifier"), (nn.Flatten, "no linear layer")]
)
def test_networks_without_a_loss_say_so(name: str, module: type[nn.Module], reason: str) -> None:
    score = proxy(name).score(Network("", 4, module), ScoreSettings(repeats=1))
    assert score.value is None
    assert reason in score.reason


def test_layer_scales_do_not_decide_gradients() -> None:
    """Two networks that differ by their initial layer scale only are scored alike."""
    first = small("depthwise_conv")
    second = replace(first, macro=replace(first.macro, layer_scale=1e-2))
    settings = ScoreSettings(repeats=1, batch_size=2)
    for name in ("grad_norm", "snip", "zico", "synflow", "length_distortion", "ntk_condition"):
        values = [
            proxy(name).score(Network.of_architecture(item, 3), settings).value
            for item in (first, second)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


# DSS ----------------------------------------------------------------------------------------------


class Mixing(nn.Module):
    """Two named layers in a chain; attention is linear here, for its gradient to be simple."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(INPUTS, 5, bias=False)})
        self.mlp = nn.ModuleDict({"fc": nn.Linear(5, 4, bias=False)})
        self.other = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.mlp["fc"](self.attn["qkv"](x.flatten(1))))


def test_dss_of_a_chain() -> None:
    """R = 1ᵀ O M A 1: gradients are outer products, of one singular value each."""
    network = Network("", SIDE, Mixing)
    module = network.build(2)
    a, m, o = (
        np.abs(layer.weight.detach().double().numpy())
        for layer in (module.attn["qkv"], module.mlp["fc"], module.other)
    )
    ones, out = np.ones(INPUTS), np.ones(2)
    gradient_norm = np.linalg.norm(m.T @ o.T @ out) * np.linalg.norm(ones)
    expected = gradient_norm * np.linalg.svd(a, compute_uv=False).sum() + out @ o @ m @ a @ ones
    score = proxy("tf_tas_dss").score(network, ScoreSettings(seed=2, repeats=1))
    assert score.value == pytest.approx(expected, rel=1e-5)


def test_roles_follow_the_names_around_a_matrix() -> None:
    found = roles(Network.of_architecture(small("window_attention"), 3).build(0))
    assert {name.split(".", 4)[-1]: role for name, role in found.items()} == {
        "mixer.qkv.weight": "attention",
        "mixer.proj.weight": "attention",
        "mlp.fc1.weight": "mlp",
        "mlp.fc2.weight": "mlp",
    }
    assert set(roles(Network.of_architecture(small("gnconv"), 3).build(0)).values()) == {"mlp"}


def test_squeeze_and_excitation_is_no_attention() -> None:
    network = Network.of_timm("test_byobnet")  # calls it attn
    module = network.build(0)
    assert any(".attn." in name for name, _ in module.named_parameters())
    assert not roles(module)


class Large(Mixing):
    """Beyond single precision."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter *= 1e15


def test_dss_is_finite_beyond_single_precision() -> None:
    settings = ScoreSettings(seed=2, repeats=1)
    plain, large = (
        proxy("tf_tas_dss").score(Network("", SIDE, kind), settings).value
        for kind in (Mixing, Large)
    )
    assert plain is not None
    assert large == pytest.approx(plain * 1e45, rel=1e-5)


def test_dss_without_attention_and_mlps_says_so() -> None:
    with pytest.raises(UndefinedProxyError, match="attention or to an MLP"):
        saliency(TwoLayers(), torch.ones(1, 3, SIDE, SIDE))
