"""The zoo in int8: graphs with integer weights that compute nearly the same, kept by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_job import USAGE, nas
from torch import nn

from nas.workflows.zoo import find_zoo
from predictors.devices import find_device
from predictors.measuring.bench import Limits
from predictors.measuring.runtimes.onnx_graph import to_onnx
from predictors.zoo import latencies
from predictors.zoo.integers import Quantised
from predictors.zoo.networks import deployed
from search_space.errors import UsageError
from supernet.network.integer_graphs import is_quantised

MODELS = "test_vit,mobilenetv3_small_100"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and measurements of a moment."""
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    monkeypatch.setattr(latencies, "_LONG", Limits(2, 2, 0.0))
    monkeypatch.setattr(latencies, "_QUICK", Limits(2, 2, 0.0))
    return tmp_path / "latency"


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 5),
        nn.Softmax(1),
    )
    return nn.Sequential(*layers).eval()


def test_layers_with_weights_are_integers_and_the_rest_is_float() -> None:
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    network = small_network()
    graph = to_onnx(Quantised(network), images)
    assert is_quantised(graph)
    writers = {name: node.op_type for node in graph.graph.node for name in node.output}
    for node in graph.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert writers[node.input[0]] == "DequantizeLinear"
        elif node.op_type == "Softmax":
            assert node.output[0] == graph.graph.output[0].name
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (actual,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        expected = network(images).numpy()
        assert torch.equal(Quantised(network)(images), network(images))
    np.testing.assert_allclose(actual, expected, atol=0.02)  # the image that ranges are found on
    assert np.abs(actual - expected).max() > 0


def test_every_layer_of_a_published_transformer_gets_integer_weights() -> None:
    network = deployed("test_vit", 160)
    graph = to_onnx(Quantised(network), torch.randn(1, 3, 160, 160)).graph
    integers = [item for item in graph.initializer if item.data_type == 3 and len(item.dims) > 1]
    assert len(integers) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in network.modules())


def test_latencies_in_int8_are_kept_by_themselves(cache: Path) -> None:
    target = find_device("cpu", threads=1, runtime="onnxruntime")
    found = find_zoo(target, names=MODELS, int8=True)
    assert {model.name for model in found.models} == set(MODELS.split(","))
    assert found.problems == {}
    find_zoo(target, names="test_vit")
    assert len(list(cache.glob("zoo-*.json"))) == 2


def test_the_command_says_whose_accuracy_it_shows() -> None:
    options = ("zoo", "--precision", "int8", "--threads", "1", "--names", "test_vit")
    answer = nas(*options)
    assert "onnxruntime, fp32" in answer.out
    assert "networks in int8" in answer.out
    assert "the accuracy is that of float" in answer.out
    told = json.loads(nas(*options, "--json").out)
    assert told["precision"] == "int8"
    assert told["device"]["precision"] == "fp32"  # of inputs and outputs


def test_what_runs_nothing_in_int8_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'eager' runs nothing in int8.*onnxruntime, openvino"):
        find_zoo(find_device("cpu"), int8=True)
    with pytest.raises(UsageError, match=r"device 'a100' is not at hand"):
        find_zoo(find_device("a100"), int8=True)
    assert nas("zoo", "--precision", "int8", "--runtime", "eager").code == USAGE
