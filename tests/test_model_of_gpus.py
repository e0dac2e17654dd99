"""Operators, datasheets, the model of kernels, published figures and estimates made of them.

Oracles: fvcore and the mixers' closed forms for operations, hand counts for bytes and waves,
published latencies for estimates.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from predictors.estimates.anchors import anchors, figures_of, scalar
from predictors.estimates.calibrate import predict_network
from predictors.estimates.datasheets import datasheet, datasheet_names, datasheet_of
from predictors.estimates.design import CANDIDATES, most_helpful
from predictors.estimates.estimate import estimate, estimated_conditions, range_of
from predictors.estimates.kernels import KINDS, Demand
from predictors.estimates.model import Constants, constants_of, fit, fitted
from predictors.measuring.runtimes import runtime_names
from predictors.operators import operators, trace
from predictors.tables.additive import entries
from predictors.tables.latency_table import LatencyTable
from search_space import (
    Architecture,
    Mixer,
    components,
    known,
    load_space,
    metaformer,
)
from search_space.components import block_spec, head_spec
from search_space.errors import UnknownNameError, UsageError
from search_space.known import CONVNEXT
from search_space.mixers import MIXERS
from supernet import build
from supernet.network.layers import fold_batch_norms
from supernet.network.modules import build_module

# Operators ----------------------------------------------------------------------------------------


def _sdpa_macs(inputs: list, outputs: list) -> dict[str, int]:
    query, key, value = (list(item.type().sizes()) for item in inputs[:3])
    return {"attention": math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])}


def _nothing(inputs: list, outputs: list) -> dict[str, int]:
    return {"norm": 0}


def network_flops(architecture: Architecture, batch_size: int) -> int:
    chain = components(architecture, 10)
    return sum(op.flops for c in chain for op in operators(c.spec, c.in_size, batch_size))


def matrix_flops(module: nn.Module, x: torch.Tensor) -> float:
    """Twice fvcore's multiply-adds, which are the same on every processor."""
    count = FlopCountAnalysis(module.eval(), x).unsupported_ops_warnings(False)
    count.set_op_handle("aten::scaled_dot_product_attention", _sdpa_macs)
    for norm in ("layer_norm", "group_norm", "native_layer_norm"):
        count.set_op_handle(f"aten::{norm}", _nothing)  # norms are no matrix products
    return 2 * count.total()


@pytest.mark.parametrize(
    "name", ["swin_t", "focalnet_t_lrf", "convnext_t", "poolformer_s12", "hornet_t"]
)
def test_operations_of_networks_are_twice_fvcores_multiply_adds(name: str) -> None:
    architecture = replace(known(name), resolution=64)
    expected = matrix_flops(build(architecture, 10), torch.zeros(1, 3, 64, 64))
    assert network_flops(architecture, 1) == pytest.approx(expected, rel=1e-9)
    assert network_flops(architecture, 3) == 3 * network_flops(architecture, 1)


@pytest.mark.parametrize("name", MIXERS.names())
@pytest.mark.parametrize("size", [4, 7, 10])
def test_a_block_in_parts_is_the_whole_block(name: str, size: int) -> None:
    spec = block_spec(CONVNEXT, 32, metaformer(Mixer.of(name), 3.0), position=1)
    module = fold_batch_norms(build_module(spec))
    for batch_size in (1, 2):  # biases of positions are made once for all images
        expected = matrix_flops(module, torch.zeros(batch_size, size, size, 32))
        launched = operators(spec, size, batch_size, "fp16")
        assert sum(op.flops for op in launched) == expected
        assert all(op.bytes > 0 for op in launched)


def test_bytes_of_a_head_by_hand() -> None:
    spec, batch = head_spec(CONVNEXT, 64, 10), 5
    mean, norm, linear = operators(spec, 7, batch, "fp16")
    assert mean.bytes == 2 * (batch * 7 * 7 * 64 + batch * 64)
    assert norm.bytes == 2 * (batch * 64 + 64 + 64 + batch * 64)
    assert linear.bytes == 2 * (batch * 64 + 64 * 10 + 10 + batch * 10)
    assert (mean.flops, norm.flops, linear.flops) == (0, 0, 2 * batch * 64 * 10)
    assert [op.kind for op in (mean, norm, linear)] == ["memory", "memory", "matrix"]
    single = operators(spec, 7, batch, "fp32")
    assert [op.bytes for op in single] == [2 * op.bytes for op in (mean, norm, linear)]


def test_views_launch_nothing_and_copies_do() -> None:
    pooling = block_spec(CONVNEXT, 32, metaformer(Mixer.of("pooling"), 2.0), 0)
    names = [op.name for op in operators(pooling, 8)]
    assert names[:2] == ["avg_pool2d", "sub"]  # two permutations in between
    assert Counter(names) == Counter(
        avg_pool2d=1, sub=1, layer_norm=2, linear=2, gelu=1, mul=2, add=2
    )
    window = block_spec(CONVNEXT, 32, metaformer(Mixer.of("window_attention", window=4), 2.0), 0)
    copies = [op for op in operators(window, 8, 1, "fp16") if op.name == "reshape"]
    assert [op.bytes for op in copies] == [2 * 2 * 3 * 8 * 8 * 32, 2 * 2 * 8 * 8 * 32]


def test_depthwise_convolutions_stay_off_tensor_cores() -> None:
    spec = block_spec(CONVNEXT, 32, metaformer(Mixer.of("depthwise_conv"), 2.0), 0)
    launched = operators(spec, 8)
    assert [op.kind for op in launched if op.name == "conv2d"] == ["vector"]
    demand = Demand.of(launched, datasheet("a100"), "fp16")
    (grouped,) = demand.compute_ms[demand.kind == KINDS.index("grouped")]
    assert grouped == pytest.approx(2 * 8 * 8 * 32 * 49 / 19.5e12 * 1e3)


# Datasheets and the model -------------------------------------------------------------------------


def test_datasheets_by_name() -> None:
    asked = {"a100", "a100-40gb", "a100-80gb", "h100", "h200", "l4", "t4", "rtx3090", "rtx4090"}
    asked |= {"orin", "l40s", "a10g", "a6000", "rtx3090ti", "rtx5090", "h100-pcie", "b200"}
    assert asked <= set(datasheet_names())
    assert datasheet("a100") == datasheet("a100-80gb")
    for name in datasheet_names():
        sheet = datasheet(name)
        assert datasheet_of(sheet.identity) == sheet
        assert sheet.source
        assert 0 < sheet.peak("fp32") < sheet.peak("fp16")
        assert 0 < sheet.sustained_share("fp16") <= 1
    with pytest.raises(UnknownNameError, match="Did you mean 'a100'"):
        datasheet("a1000")
    with pytest.raises(UsageError, match=r"t4.*bf16.*fp16, fp32"):
        estimated_conditions("t4", precision="bf16")


def _product_us(m: int, n: int, k: int, device: str = "a100") -> float:
    build = lambda: nn.Linear(k, n, bias=False)  # noqa: E731
    (op,) = trace(build, (m, k), torch.float16)[0]
    return float(Demand.of([op], datasheet(device), "fp16").compute_ms[0]) * 1e3


@pytest.mark.parametrize("shape", [(49, 384, 96), (3136, 96, 384), (13824, 256, 8192)])
def test_a_product_takes_the_waves_of_its_best_tiles(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    tiles = [(256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (16, 64)]
    least = math.inf
    for rows, columns in tiles:
        height = rows * columns / (rows + columns)
        rate = 312e6 / 108 * 2.23 * height / (height + 112)
        for splits in (1, 2, 4, 8, 16):
            waves = math.ceil(math.ceil(m / rows) * math.ceil(n / columns) * splits / 108)
            each = 2 * rows * columns * (k / splits + 90) / rate + 3.6 / 1.41
            extra = (8 * m * n * splits / (25 * 108 * 1410) + 2 / 1.41) if splits > 1 else 0
            least = min(least, waves * each + 1.6 / 1.41 + extra)
    expected = max(least, 2 * m * n * k / (312e6 * 0.88))
    assert _product_us(m, n, k) == pytest.approx(expected)
    assert _product_us(2 * m, n, k) >= _product_us(m, n, k)


def test_latency_by_hand() -> None:
    compute, memory = [1.0] * len(KINDS), [1.0] * len(KINDS)
    linear, pointwise = KINDS.index("linear"), KINDS.index("elementwise")
    compute[linear], memory[pointwise] = 2.0, 0.5
    demand = Demand(np.array([linear, pointwise]), np.array([1.0, 0.1]), np.array([0.2, 0.6]), 2.0)
    each = Constants(tuple(compute), tuple(memory), floor=4.0)
    assert each.latency_ms(demand) == pytest.approx(2.0 + 1.2 + 2 * 0.002)
    assert replace(each, fused=True).latency_ms(demand) == pytest.approx(2.0 + 1.2 + 0.002)
    hosted = replace(each, host_us=1500.0)
    assert hosted.latency_ms(demand) == pytest.approx(2.002 + 1.5)


def test_fit_finds_the_constants_that_made_the_figures() -> None:
    usual = constants_of("cudagraph")
    truth = replace(usual, compute=tuple(1.3 * c for c in usual.compute), floor=1.2 * usual.floor)
    demands = [
        Demand.of(
            [op for c in components(known(name)) for op in operators(c.spec, c.in_size, batch)],
            datasheet("a10"),
            "tf32",
        )
        for name in ("swin_t", "convnext_t")
        for batch in (1, 64)
    ]
    figures = [truth.latency_ms(demand) for demand in demands]
    found = fit(demands, figures, usual)
    for demand, figure in zip(demands, figures, strict=True):
        assert found.latency_ms(demand) == pytest.approx(figure, rel=0.05)  # the usual pulls


# Published figures --------------------------------------------------------------------------------


def test_anchors_are_what_our_architectures_express() -> None:
    assert len(anchors()) >= 300
    assert {"rtx3090", "rtx4090", "t4", "a10", "a100-40gb"} <= {a.device for a in anchors()}
    for anchor in anchors():
        assert known(anchor.network)
        assert datasheet(anchor.device).peak(anchor.number_format) > 0
        assert anchor.runtime in runtime_names()
        assert anchor.latency_ms > 0
        assert anchor.source


def test_a_devices_own_figures_make_its_scalar() -> None:
    sheet = datasheet("rtx4090")
    figures = figures_of(sheet, "inductor", "fp16", 256)
    assert len(figures) > 50
    few = [a for a in figures if a.mixer == "focal_modulation"]
    ratios = [a.latency_ms / constants_of("inductor").latency_ms(a.demand) for a in few]
    found = scalar(sheet, "inductor", "fp16", 256, "focal_modulation")
    assert found == pytest.approx(np.median(ratios))
    assert scalar(datasheet("b200"), "inductor", "fp16", 256) == 1.0


def test_ranges_hold_what_they_say_and_eager_single_images_promise_nothing() -> None:
    for found in fitted().ranges:
        assert list(found.quantiles) == sorted(found.quantiles)
        assert found.ratios[9] == pytest.approx(1.0)
        assert found.promised != (found.runtime == "eager" and found.batches == "1")
    own = range_of(estimated_conditions("rtx4090", runtime="inductor", batch_size=64))
    new = range_of(estimated_conditions("h100", runtime="inductor", batch_size=64))
    assert own.known
    assert not new.known
    assert own.error < new.error


def test_the_networks_that_help_most_are_of_different_kinds() -> None:
    chosen = most_helpful(estimated_conditions("h100"))
    assert len(set(chosen)) == 3
    assert set(chosen) <= set(CANDIDATES)
    assert len({known(name).stages[0].blocks[0].label for name in chosen}) > 1


# Estimates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runtime", "published_ms"), [("cudagraph", 1.47), ("tensorrt", 1.47)])
def test_swin_t_on_an_a100_is_within_the_stated_error(runtime: str, published_ms: float) -> None:
    conditions = estimated_conditions("a100-40gb", runtime=runtime)
    table = LatencyTable(conditions, {}, {})
    found, predicted = range_of(conditions), predict_network(table, known("swin_t"))
    low, high = found.quantile(0.05) / found.median, found.quantile(0.95) / found.median
    assert low * predicted < published_ms < high * predicted


@pytest.mark.parametrize("name", ["a100", "h100", "t4", "orin"])
def test_an_estimated_table_says_what_it_is(name: str, tmp_path: Path) -> None:
    space = load_space("digits")
    table = estimate(estimated_conditions(name), space, 10)
    assert table.conditions.estimated
    assert set(table.entries) == set(entries(space, 10))
    assert table.complete(space, 10)
    correction = table.corrections[space.digest]
    assert (correction.scale, correction.offset_ms) == (1.0, 0.0)
    for value in table.entries.values():
        assert (value.origin, value.runs) == ("estimated", 0)
        assert 0 < value.low_ms < value.latency_ms < value.high_ms
        assert value.high_ms <= value.latency_ms * (1 + correction.expected_error) * (1 + 1e-9)
    assert any("estimated, not measured" in warning for warning in correction.warnings)
    compiled = table.compile(space, 10)
    network = space.largest
    assert compiled.predict(space.encode([network]))[0] == pytest.approx(
        predict_network(table, network, 10)
    )
    table.save(tmp_path / "table.parquet")
    assert LatencyTable.load(tmp_path / "table.parquet") == table


def test_larger_devices_batches_and_networks_order_as_they_should() -> None:
    def ms(device: str, network: str = "convnext_b", **options) -> float:
        return predict_network(
            LatencyTable(estimated_conditions(device, **options), {}, {}), known(network)
        )

    assert ms("h100") < ms("a100") < ms("l4") < ms("orin")
    assert ms("a100-80gb", batch_size=64) < ms("a100-40gb", batch_size=64)
    assert ms("a100", "convnext_t") < ms("a100", "convnext_b")
    assert ms("a100", batch_size=1) < ms("a100", batch_size=8) < 8 * ms("a100", batch_size=1)
    assert ms("a100", precision="fp16", batch_size=32) < ms("a100", precision="fp32", batch_size=32)
