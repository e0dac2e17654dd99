"""Counts against fvcore on the built network, against timm, and published figures.

fvcore traces the network with data, by code of its own. Operators that it does not count
must be element-wise, pooling or padding: anything else fails the test instead of shrinking the
count.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from timm_pairs import QUICK, all_pairs
from torch import nn

from predictors.counts import count_architecture, counts
from predictors.operators import trace
from search_space import Architecture, known, known_names, load_space, space_names
from supernet import build
from supernet.network.layers import fold_batch_norms

UNCOUNTED = {
    *("add", "sub", "mul", "neg", "gelu", "mean", "avg_pool2d", "pad", "lift_fresh"),
    *("relu", "hardtanh", "silu", "hardswish", "hardsigmoid", "sigmoid", "max_pool2d"),
    *("pow", "square", "clamp_min", "div", "exp", "expand_as", "linalg_vector_norm", "tanh"),
}
NORMS = {"layer_norm", "group_norm"}  # no layer whose outputs count as activations


def _sdpa_shapes(inputs: list) -> tuple[int, int, int, int]:
    query, key = (list(value.type().sizes()) for value in inputs[:2])
    return math.prod(query[:-2]), query[-2], key[-2], query[-1]


def _sdpa_macs(inputs: list, outputs: list) -> dict[str, int]:
    heads, queries, keys, dim = _sdpa_shapes(inputs)
    return {"attention": 2 * heads * queries * keys * dim}


def _sdpa_activations(inputs: list, outputs: list) -> dict[str, int]:
    heads, queries, keys, dim = _sdpa_shapes(inputs)
    return {"attention": heads * queries * (keys + dim)}


def fvcore_counts(architecture: Architecture, num_classes: int) -> dict[str, int]:
    network = build(architecture, num_classes).eval()
    images = torch.zeros(1, 3, architecture.resolution, architecture.resolution)
    result = {"num_params": sum(p.numel() for p in network.parameters())}
    network = fold_batch_norms(network)  # the form that runs, whose operations are counted
    for metric, analysis, handle, uncounted in (
        ("macs", FlopCountAnalysis, _sdpa_macs, UNCOUNTED),
        ("activations", ActivationCountAnalysis, _sdpa_activations, UNCOUNTED | NORMS),
    ):
        count = analysis(network, images).unsupported_ops_warnings(False)
        count.set_op_handle("aten::scaled_dot_product_attention", handle)
        result[metric] = int(count.total())
        unknown = {op.removeprefix("aten::") for op in count.unsupported_ops()} - uncounted
        assert not unknown, f"fvcore does not count {unknown}: give it a handle"
    return result


def assert_counts_agree(architecture: Architecture, num_classes: int) -> None:
    ours, theirs = (
        count_architecture(architecture, num_classes),
        fvcore_counts(architecture, num_classes),
    )
    assert ours["num_params"] == theirs["num_params"]
    assert ours["macs"] == pytest.approx(theirs["macs"], rel=0.005)
    assert ours["activations"] == theirs["activations"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "base" else ()) for n in space_names()],
)
def test_random_architectures_agree_with_fvcore(name: str) -> None:
    space = load_space(name)
    n = 2 if space.resolutions[-1] > 100 else 6
    for architecture in space.decode(space.sample(np.random.default_rng(0), n)):
        assert_counts_agree(architecture, 10)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in known_names()
    ],
)
def test_known_designs_agree_with_fvcore(name: str) -> None:
    assert_counts_agree(known(name), 1000)


@pytest.mark.parametrize(
    ("name", "params", "macs", "activations"),
    [
        # papers and timm's benchmark table, in millions, billions and millions
        ("swin_t", 28.29, 4.51, 17.06),
        ("swin_s", 49.61, 8.77, 27.47),
        ("focalnet_t_srf", 28.43, 4.42, 16.32),
        ("convnext_t", 28.59, 4.47, 13.44),
        ("poolformer_s12", 11.92, 1.82, 5.53),
        ("hornet_t", 22.41, 3.98, None),
    ],
)
def test_published_figures(
    name: str, params: float, macs: float, activations: float | None
) -> None:
    ours = count_architecture(known(name))
    assert round(ours["num_params"] / 1e6, 2) == params
    assert ours["macs"] / 1e9 == pytest.approx(macs, rel=0.005)
    if activations is not None:
        assert ours["activations"] / 1e6 == pytest.approx(activations, rel=0.01)


@all_pairs
def test_parameters_equal_timm(name: str, timm_name: str) -> None:
    with torch.device("meta"):
        theirs = sum(p.numel() for p in timm.create_model(timm_name).parameters())
    assert count_architecture(known(name))["num_params"] == theirs


@pytest.mark.parametrize("name", space_names())
def test_tables_equal_direct_counts(name: str) -> None:
    space = load_space(name)
    genes = space.sample(np.random.default_rng(1), 8)
    tables = counts(space, 10)
    for i, architecture in enumerate(space.decode(genes)):
        assert count_architecture(architecture, 10) == {
            metric: int(table.predict(genes)[i]) for metric, table in tables.items()
        }


def test_operators_that_no_module_of_ours_uses_are_counted_too() -> None:
    """A user's mixer may multiply matrices in any way; by hand."""

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = torch.einsum("bhwc,bhvc->bhwv", x, x)  # 5 × 7 × 7 × 3
            x = scores.softmax(-1) @ x  # 5 × 7 × 3 × 7
            return torch.nn.functional.conv1d(x.flatten(1, 2).mT, torch.empty(4, 3, 1)).relu_()

    expected = 5 * 7 * 7 * 3 + 5 * 7 * 3 * 7 + 4 * 35 * 3, 5 * 7 * 7 + 5 * 7 * 3 + 4 * 35
    launched, _, _ = trace(Odd, (1, 5, 7, 3))
    assert (sum(op.macs for op in launched), sum(op.activations for op in launched)) == expected
