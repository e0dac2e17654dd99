"""Modules in int8 on the runtimes of CPUs: integers run, and compute what was simulated."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from mixer_sizes import narrow
from torch import Tensor, nn

from predictors.measuring.bench import WeightPool, entry_subject, network_subject, steady
from predictors.measuring.runtimes import find_runtime, runtime_names
from predictors.measuring.runtimes.onnx_graph import to_onnx
from predictors.measuring.this_machine import local_conditions
from search_space import MIXERS, ModuleSpec, known, load_space, metaformer
from search_space.blocks import BLOCKS, SKIP, Block
from search_space.components import block_spec
from search_space.errors import UsageError
from search_space.precision import in_precision
from search_space.registry import FLOAT, INT8
from supernet.network.quantised import fake_quantisers, reset_ranges

SIDE, WIDTH = 8, 16
HERE = local_conditions(threads=1)
POOL = WeightPool(HERE)
QUICK = ("attention", "window_attention, shifted", "depthwise_conv", "gnconv", "outlook_attention")
"""Blocks around mixers that are tried by default, beside those without one."""


def usable() -> list[str]:
    """Runtimes that run int8 on this machine's CPU."""
    found = []
    for name in runtime_names():
        try:
            find_runtime(name).require("cpu")
        except UsageError:
            continue
        if find_runtime(name).int8:
            found.append(name)
    return found


def blocks() -> dict[str, ModuleSpec]:
    """One block of every kind, and one around every mixer."""
    plain, convolutional = load_space("digits").macro, load_space("mobile").macro
    found = (
        {name: block_spec(plain, WIDTH, metaformer(narrow(name), 2), 0) for name in MIXERS.names()}
        | {
            f"{name}, shifted": block_spec(plain, WIDTH, metaformer(narrow(name), 2), 1)
            for name in MIXERS.names()
            if MIXERS[name].alternates
        }
        | {
            kind: block_spec(convolutional, WIDTH, Block.of(kind), 1)
            for kind in BLOCKS.names()
            if kind != SKIP and not BLOCKS[kind].has_mixer
        }
    )
    return {name: spec for name, spec in found.items() if spec is not None}


def lively(spec: ModuleSpec) -> tuple[nn.Module, Tensor]:
    """A module whose output differs for each of its weights, and images in its range."""
    generator = torch.Generator().manual_seed(1)
    module = entry_subject(spec, SIDE, HERE, POOL).module
    for name, parameter in module.named_parameters():
        if not name.endswith("scale"):
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 16
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise / (2 * fan_in**0.5)
    reset_ranges(module)
    return module, torch.randn((2, SIDE, SIDE, WIDTH), generator=generator) / 2


def computed(runtime: str, module: nn.Module, images: Tensor) -> Tensor:
    conditions = local_conditions(threads=1, runtime=runtime, batch_size=len(images))
    with steady(conditions):
        output: Any = find_runtime(runtime).prepare(module, images, conditions)()
        return output.clone()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK or name in BLOCKS else pytest.mark.slow)
        for name in blocks()
    ],
)
def test_integers_compute_what_was_simulated(name: str) -> None:
    module, images = lively(blocks()[name].computing(INT8))
    assert fake_quantisers(module)
    with torch.inference_mode():
        expected = module(images)
    for runtime in usable():
        gaps = (computed(runtime, module, images) - expected).abs() / expected.abs().mean()
        # sums that lie between two levels may round to the other one, which few do
        assert gaps.mean() < 1e-3, runtime
        assert gaps.max() < 0.2, runtime


def test_the_simulated_network_is_another_than_the_one_in_float() -> None:
    spec = blocks()["inverted_residual"]
    (rounded, images), (in_float, _) = (lively(spec.computing(p)) for p in (INT8, FLOAT))
    with torch.inference_mode():
        difference = (rounded(images) - in_float(images)).abs().mean()
        assert 0.002 < difference / in_float(images).abs().mean() < 0.2


def test_every_convolution_of_a_measured_network_runs_in_integers(tmp_path: Path) -> None:
    architecture = replace(known("tf_efficientnet_lite0"), resolution=32)
    subject = network_subject(in_precision(architecture, INT8), 10, HERE, POOL)
    assert all(part.watch is None for part in fake_quantisers(subject.module).values())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    graph = to_onnx(subject.module, subject.images).SerializeToString()
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert run.count("QLinearConv") == 49
    assert not {"Conv", "FusedConv"} & set(run)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="kernels of x86")
@pytest.mark.parametrize("name", ["inverted_residual", "depthwise_conv", "window_attention"])
def test_openvino_runs_each_layer_with_weights_in_integers(name: str) -> None:
    pytest.importorskip("openvino")
    from predictors.measuring.runtimes.open_vino import _core, _settings

    module, images = lively(blocks()[name].computing(INT8))
    read = _core().read_model(to_onnx(module, images).SerializeToString())
    compiled = _core().compile_model(read, "CPU", _settings(HERE))
    precisions = [
        str(node.get_rt_info()["runtimePrecision"].astype(str))
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("Convolution", "FullyConnected")
    ]
    assert len(precisions) >= 3
    assert set(precisions) <= {"u8", "i8"}
