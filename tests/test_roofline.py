"""Operators, datasheets, the roofline, published figures and estimates made of them.

Oracles: fvcore and the mixers' closed forms for operations, hand counts for bytes, an
optimisation of our own for one left-out figure, published latencies for estimates.
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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from predictors.estimates.anchors import (
    anchor_network,
    anchors,
    basis,
    constants,
    expected_error,
    leave_out,
    one_figure,
)
from predictors.estimates.calibrate import predict_network
from predictors.estimates.datasheets import datasheet, datasheet_names, datasheet_of
from predictors.estimates.estimate import (
    anchor_errors,
    estimate,
    estimated_conditions,
)
from predictors.estimates.roofline import Constants, Demand, fit
from predictors.measuring.runtimes import runtime_names
from predictors.operators import operators
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
    expected = matrix_flops(module, torch.zeros(1, size, size, 32))
    for batch_size in (1, 2):
        launched = operators(spec, size, batch_size, "fp16")
        assert sum(op.flops for op in launched) == batch_size * expected
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
    assert [op.kind for op in operators(spec, 8) if op.name == "conv2d"] == ["vector"]
    sheet = datasheet("a100")
    demand = Demand.of(operators(spec, 8), sheet, "fp16")
    assert demand.compute_ms[0] == pytest.approx(2 * 8 * 8 * 32 * 49 / 19.5e12 * 1e3)


# Datasheets and the roofline ----------------------------------------------------------------------


def test_datasheets_by_name() -> None:
    asked = {"a100", "a100-40gb", "a100-80gb", "h100", "h200", "l4", "t4", "rtx3090", "rtx4090"}
    assert asked | {"orin"} <= set(datasheet_names())
    assert datasheet("a100") == datasheet("a100-80gb")
    for name in datasheet_names():
        sheet = datasheet(name)
        assert datasheet_of(sheet.identity) == sheet
        assert sheet.source
        assert 0 < sheet.peak("fp32") < sheet.peak("fp16")
    with pytest.raises(UnknownNameError, match="Did you mean 'a100'"):
        datasheet("a1000")
    with pytest.raises(UsageError, match=r"t4.*bf16.*fp16, fp32"):
        estimated_conditions("t4", precision="bf16")


def test_published_ratios_of_peaks() -> None:
    """Tensor cores do TF32 at half the speed of fp16; 40 and 80 GB differ in memory only."""
    for name in ("a100", "h100", "h200", "l4", "rtx3090", "rtx4090", "a10", "orin"):
        sheet = datasheet(name)
        assert sheet.peak("tf32") == pytest.approx(sheet.peak("fp16") / 2, rel=0.01)
    assert datasheet("a100-40gb").computes_like(datasheet("a100-80gb"))
    assert datasheet("h100").computes_like(datasheet("h200"))
    assert not datasheet("a100").computes_like(datasheet("h100"))


def test_roofline_by_hand() -> None:
    demand = Demand(np.array([1.0, 0.1]), np.array([0.2, 0.6]))
    free = Constants(compute=0.5, memory=0.5, overhead_ms=0.5, hosted=False)
    assert demand.latency_ms(free) == pytest.approx(2.0 + 1.2 + 2 * 0.5)
    hosted = Constants(compute=0.5, memory=0.5, overhead_ms=1.5, hosted=True)
    assert demand.latency_ms(hosted) == pytest.approx(2.0 + 1.5)


@settings(max_examples=20, deadline=None)
@given(st.floats(1, 10), st.floats(1, 10), st.sampled_from(["eager", "cudagraph"]))
def test_no_device_gets_slower_by_more_of_anything(
    bandwidth: float, peak: float, runtime: str
) -> None:
    sheet = datasheet("l4")
    better = replace(
        sheet,
        bandwidth_gb_s=sheet.bandwidth_gb_s * bandwidth,
        peak_tflops=tuple((key, value * peak) for key, value in sheet.peak_tflops),
    )
    found = constants(runtime, "fp16")
    for part in components(known("focalnet_t_srf"))[:4]:
        launched = operators(part.spec, part.in_size, 8, "fp16")
        before = Demand.of(launched, sheet, "fp16").latency_ms(found)
        after = Demand.of(launched, better, "fp16").latency_ms(found)
        assert before / (bandwidth * peak) <= after * (1 + 1e-12)
        assert after <= before * (1 + 1e-12)


@pytest.mark.parametrize("hosted", [False, True])
def test_fit_finds_the_constants_that_made_the_figures(hosted: bool) -> None:
    truth = Constants(0.4, 0.6, 0.012, hosted)
    demands = [
        Demand.of(
            [op for c in components(known(name)) for op in operators(c.spec, c.in_size, batch)],
            datasheet("a10"),
            "tf32",
        )
        for name in ("swin_t", "convnext_t")
        for batch in (1, 4, 16, 64)
    ]
    figures = [demand.latency_ms(truth) for demand in demands]
    found = fit(demands, figures, hosted=hosted)
    for name in ("compute", "memory", "overhead_ms"):  # the prior pulls a little
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.25)
    for demand, figure in zip(demands, figures, strict=True):
        assert demand.latency_ms(found) == pytest.approx(figure, rel=0.02)
    disturbed = [2 * figures[0], *figures[1:]]  # one that is wrong hardly matters
    found = fit(demands, disturbed, hosted=hosted)
    errors = [d.latency_ms(found) / y - 1 for d, y in zip(demands, figures, strict=True)]
    assert np.median(np.abs(errors)) < 0.05


# Published figures --------------------------------------------------------------------------------


def test_anchors_are_what_our_architectures_express() -> None:
    assert len(anchors()) >= 60
    for anchor in anchors():
        assert anchor_network(anchor.network).resolution == 224
        assert datasheet(anchor.device).peak(anchor.number_format) > 0
        assert anchor.runtime in (*runtime_names(), "fused")
        assert anchor.latency_ms > 0
        assert anchor.source
    assert {a.mixer for a in anchors()} == {"window_attention", "focal_modulation"}
    large = anchor_network("swin_l")
    assert large.widths == (192, 384, 768, 1536)
    assert large.depths == (2, 2, 18, 2)


def test_constants_come_from_one_source_where_there_is_one() -> None:
    found = basis("eager", "fp16")
    assert found.exact
    assert {a.group for a in found.figures} == {found.figures[0].group}
    assert basis("eager", "bf16") == found
    assert not basis("cudagraph", "fp16").exact
    assert all(not a.hosted or a.batch_size >= 16 for a in basis("cudagraph", "fp16").figures)


def test_one_left_out_figure_by_an_optimisation_of_our_own() -> None:
    figures = basis("eager", "fp16").figures
    left = next(a for a in figures if a.device == "a100-40gb" and a.batch_size == 32)

    def predict(logs: np.ndarray, anchor) -> float:
        compute, memory, floor = np.exp(logs)
        sheet, total = datasheet(anchor.device), 0.0
        for part in components(anchor_network(anchor.network)):
            for op in operators(part.spec, part.in_size, anchor.batch_size, "fp16"):
                rate = sheet.peak("fp16") if op.kind == "matrix" else sheet.peak("fp32")
                busy = max(
                    op.flops / (rate * 1e9 * compute),
                    op.bytes / (sheet.bandwidth_gb_s * 1e6 * memory),
                )
                total += max(busy, floor)
        return total

    def loss(logs: np.ndarray) -> float:
        prior = (logs - np.log([0.5, 0.7, 0.02])) / [0.7, 0.5, 0.7]
        data = [np.log(predict(logs, a) / a.latency_ms) / 0.1 for a in figures if a is not left]
        return sum(2 * (math.sqrt(1 + r * r) - 1) for r in (*data, *prior))

    best = minimize(loss, np.log([0.5, 0.5, 0.02]), method="Nelder-Mead").x
    by_hand = predict(best, left) / left.latency_ms - 1
    (held,) = [h for h in one_figure(figures, True) if h.anchor is left]
    assert held.error == pytest.approx(by_hand, abs=0.02)


def test_expected_errors_are_those_of_what_was_left_out() -> None:
    figures = basis("eager", "fp16").figures
    here = [h for h in one_figure(figures, True) if h.anchor.device == "a100-40gb"]
    own = expected_error(datasheet("a100"), "eager", "fp16", "window_attention")
    assert own.error == pytest.approx(np.mean([abs(h.error) for h in here]))
    held = leave_out(figures, True, lambda a: a.device)
    by_device = [
        np.mean([abs(h.error) for h in held if h.anchor.device == name])
        for name in ("a10", "a100-40gb")
    ]
    other = expected_error(datasheet("h100"), "eager", "fp16", "window_attention")
    assert other.error == pytest.approx(np.mean(by_device))
    assert other.error > own.error
    unseen = expected_error(datasheet("a100"), "eager", "fp16", "pooling")
    assert unseen.error > own.error
    assert "pooling has no figures" in unseen.reason
    # no figure of this runtime at all: the error of predicting one implementation from others
    assert expected_error(datasheet("a100"), "cudagraph", "fp16").error > unseen.error


def test_errors_for_people() -> None:
    rows = anchor_errors("a100")
    assert {row.held_out for row in rows} == {"figure", "device", "mixer", "implementation"}
    own = [row for row in rows if row.held_out == "figure"]
    assert {row.device for row in own} == {"a100-40gb"}
    (eager,) = [row for row in own if (row.runtime, row.precision) == ("eager", "fp16")]
    assert eager.n == 4
    assert eager.mean_error == pytest.approx(
        expected_error(datasheet("a100"), "eager", "fp16").error
    )
    assert 0 <= eager.within_10 <= 1
    assert not [row for row in anchor_errors("h100") if row.held_out in ("figure", "device")]
    assert len(anchor_errors()) > len(rows)
    with pytest.raises(UnknownNameError):
        anchor_errors("b100")


# Estimates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runtime", "published_ms"), [("eager", 5.01), ("tensorrt", 1.47)])
def test_swin_t_on_an_a100_is_within_the_stated_error(runtime: str, published_ms: float) -> None:
    conditions = estimated_conditions("a100-40gb", runtime=runtime)
    table = LatencyTable(conditions, {}, {})
    error = expected_error(datasheet("a100-40gb"), runtime, "fp16", "window_attention").error
    assert 0.02 < error < 0.5
    assert predict_network(table, known("swin_t")) == pytest.approx(published_ms, rel=error)


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
