"""The zoo: its data, the form in which networks run, and what is found within a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm_pairs import randomised
from tiny_job import FAILED, INFEASIBLE, USAGE, nas
from torch import Tensor, nn

from nas.workflows import zoo as workflow
from nas.workflows.zoo import Zoo, find_zoo, zoo_frontier
from nas.workflows.zoo_latencies import KnownLatencies, promising
from predictors.counts import count_architecture
from predictors.devices import Target, find_device
from predictors.estimates.calibrate import predict_network
from predictors.estimates.estimate import estimate_operators
from predictors.measuring import bench
from predictors.measuring.bench import Limits
from predictors.measuring.remeasure import Measurement
from predictors.measuring.runtimes import find_runtime
from predictors.operators import trace
from predictors.tables.latency_table import LatencyTable
from predictors.zoo import latencies
from predictors.zoo.latencies import ZooLatency, measured
from predictors.zoo.networks import deployed, fold_plain_batch_norms
from predictors.zoo.published import PublishedModel, named, published_models, source
from search_space import known
from search_space.errors import InfeasibleError, UsageError
from search_space.metrics import MEMORY

TINY = "test_vit,test_byobnet,mobilenetv3_small_100"
BY_KEY = {model.key: model for model in published_models()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and measurements of a moment."""
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    monkeypatch.setattr(latencies, "_LONG", Limits(2, 2, 0.0))
    monkeypatch.setattr(latencies, "_QUICK", Limits(2, 2, 0.0))
    return tmp_path / "latency"


# The data ---------------------------------------------------------------------------------------


def test_every_published_model_is_one_of_timms_and_stands_once() -> None:
    models, pretrained = published_models(), set(timm.list_pretrained())
    assert len(models) > 400
    assert [m.full_name for m in models if m.full_name not in pretrained] == []
    assert len({m.key for m in models}) == len(models)
    assert all(40 < m.top1 < 91 for m in models)
    assert [m.top1 for m in models] == sorted((m.top1 for m in models), reverse=True)
    assert "pytorch-image-models" in source()


def test_the_source_counted_the_same_parameters() -> None:
    for model in {m.name: m for m in published_models() if m.num_params < 3e6}.values():
        with torch.device("meta"):
            network = timm.create_model(model.name, num_classes=1000)
        ours = sum(p.numel() for p in network.parameters())
        assert model.num_params == pytest.approx(ours, abs=0.006e6), model


@pytest.mark.parametrize("key", ["resnet18@224", "repvgg_a0@224", "test_vit@160", "levit_128s@224"])
def test_multiply_adds_are_those_of_the_form_that_runs(key: str) -> None:
    model = BY_KEY[key]
    shape = (1, 3, model.image_size, model.image_size)
    launched, _, _ = trace(lambda: deployed(model.name, model.image_size), shape)
    assert model.macs == pytest.approx(sum(op.macs for op in launched), abs=0.05e6 + 1)


def test_points_of_our_spaces_are_recognised_and_as_large_as_timms() -> None:
    points = {model.design: model for model in published_models() if model.design is not None}
    assert len(points) >= 60
    for design in ("resnet18", "convnext_atto", "mobilenetv3_small_100", "tf_efficientnet_lite0"):
        model = points[design]
        architecture = model.architecture
        assert architecture == replace(known(design), resolution=model.image_size)
        counts = count_architecture(architecture)
        assert model.num_params == pytest.approx(counts["num_params"], abs=0.006e6)
        assert model.macs == pytest.approx(counts["macs"], rel=0.01)
    assert all(model.architecture is not None for model in points.values())  # all are valid


def test_patterns_select_by_name_with_or_without_weights() -> None:
    models = published_models()
    assert {m.name for m in named("resnet18, resnet18d", models)} == {"resnet18", "resnet18d"}
    assert {m.name for m in named("*.d1_in1k", models)} >= {"convnext_pico", "convnext_femto"}
    assert named("*", models) == list(models)
    with pytest.raises(UsageError, match=r"'resnett18\*'; nearest are resnet18, resnet1"):
        named("resnett18*", models)


# The form that runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("test_resnet", 0),
        ("mobilenetv3_small_050", 0),
        ("tf_efficientnet_lite0", 0),
        ("regnety_002", 0),
        ("mobilenetv4_conv_small", 0),
        ("densenet121", 62),  # those after a concatenation
    ],
)
def test_folding_changes_no_logits(name: str, left: int) -> None:
    network = randomised(timm.create_model(name), 0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(images)
        after = fold_plain_batch_norms(network, images)(images)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in network.modules()) == left
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


class Shared(nn.Module):
    """A convolution that a norm and a sum read, and a norm that two convolutions share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.alone, self.twice = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return (
            self.twice(self.second(x)) + self.twice(self.third(x)) + torch.cat([self.alone(x) + x])
        )


def test_norms_whose_input_is_read_elsewhere_stay() -> None:
    network = randomised(Shared(), 0)
    images = torch.randn(1, 3, 4, 4)
    before = network(images)
    assert torch.equal(fold_plain_batch_norms(network, images)(images), before)
    assert isinstance(network.alone, nn.BatchNorm2d)
    assert isinstance(network.twice, nn.BatchNorm2d)


# What is found within a budget ------------------------------------------------------------------


def elsewhere(tmp_path: Path) -> Target:
    """A device that a table describes, whose latencies a test makes up."""
    return replace(find_device("a100"), name="board", kind="table", path=tmp_path / "none.parquet")


def made_up(model: PublishedModel) -> float:
    """Milliseconds that depend on size and family, and on a digest of the name."""
    noise = sum(map(ord, model.key)) % 17 / 50
    return 3e-9 * model.macs**0.95 * (1 + noise) * (1 + len(model.name) / 60)


def dominated(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in others)


@pytest.mark.parametrize("budget", [0.5, 2.0, math.inf])
def test_the_frontier_is_that_of_brute_force(
    budget: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(models: Sequence[PublishedModel]) -> list[ZooLatency]:
        asked.extend(model.key for model in models)
        return [ZooLatency(made_up(model), "predicted") for model in models]

    monkeypatch.setattr(workflow, "source_of", lambda *_: ask)
    monkeypatch.setitem(workflow._AT_ONCE, "table", 6)
    found = find_zoo(elsewhere(tmp_path), {"latency_ms": budget})
    within = {m.key: (made_up(m), m.top1) for m in published_models() if made_up(m) <= budget}
    points = list(within.values())
    truth = {key for key, point in within.items() if not dominated(point, points)}
    assert {m.key for m in found.front} <= truth if found.not_tried else truth
    missed = {m.key for m in found.models} ^ set(within)
    assert len(missed) <= 0.1 * len(within)  # a family that is known to be too slow is not tried
    assert len(truth - {m.key for m in found.front}) <= 0.1 * len(truth)
    assert len(asked) == len(set(asked))
    assert len(asked) < len(published_models()) or budget == math.inf
    assert [m.top1 for m in found.models] == sorted((m.top1 for m in found.models), reverse=True)
    assert zoo_frontier(elsewhere(tmp_path), {"latency_ms": budget}) == found.front


def test_without_time_for_all_the_rest_is_named_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def ask(models: Sequence[PublishedModel]) -> list[ZooLatency]:
        now[0] += 1
        return [ZooLatency(made_up(model), "predicted") for model in models]

    monkeypatch.setattr(workflow, "source_of", lambda *_: ask)
    monkeypatch.setattr(workflow, "time", type("Clock", (), {"monotonic": lambda: now[0]}))
    monkeypatch.setitem(workflow._AT_ONCE, "table", 6)
    counts = []
    for _ in range(2):
        begin = now[0]
        found = find_zoo(elsewhere(tmp_path), {"latency_ms": 2.0}, seconds=3)
        assert now[0] - begin == 3
        counts.append((len(found.models), len(found.not_tried)))
    assert counts[1][0] > counts[0][0]
    assert found.not_tried


def test_a_budget_that_nothing_meets_is_told_with_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        workflow,
        "source_of",
        lambda *_: lambda models: [ZooLatency(made_up(m), "predicted") for m in models],
    )
    fastest = min(published_models(), key=made_up)
    with pytest.raises(InfeasibleError, match=f"fastest is {fastest.name}"):
        find_zoo(elsewhere(tmp_path), {"latency_ms": 1e-6})
    with pytest.raises(InfeasibleError, match="params ≤ 100k; the least has test_efficientnet"):
        find_zoo(elsewhere(tmp_path), {"num_params": 1e5})
    with pytest.raises(UsageError, match="cannot be limited by 'memory'"):
        find_zoo(elsewhere(tmp_path), {MEMORY: 1e5})


def test_networks_are_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_device("cpu", threads=1)
    found = find_zoo(target, {"num_params": 3e6}, names=TINY)
    assert {m.name for m in found.models} == set(TINY.split(","))
    assert {m.origin for m in found.models} == {"measured"}
    assert [m.design for m in found.points()] == ["mobilenetv3_small_100"]
    monkeypatch.setattr(latencies, "measure_subjects", None)
    assert find_zoo(target, {"num_params": 3e6}, names=TINY) == found
    file = next(cache.glob("zoo-*.json"))
    file.write_text("{", "utf-8")
    answer = nas("zoo", "--threads", "1", "--names", TINY)
    assert answer.code == FAILED
    assert file.name in answer.err
    assert "Delete it" in answer.err


def test_of_several_measurements_the_least_disturbed_counts() -> None:
    known = KnownLatencies(find_device("cpu"), 1000)
    model = BY_KEY["resnet18@224"]
    for latency, together in ((6.0, False), (7.0, True), (5.0, False)):
        known.add([model], [ZooLatency(latency, "measured", low_ms=4.0, together=together)])
    assert known.timed([model]) == {model: 5.0}
    assert known.timed([model], quickest=True) == {model: 4.0}
    assert known[model].tries == 3
    assert known[model].together
    failed = BY_KEY["test_vit@160"]
    known.add([failed], [ZooLatency(None, "measured", "no such operator")])
    assert failed in known
    assert failed not in known.timed([failed])


def test_what_was_within_the_budget_in_some_runs_is_measured_again(tmp_path: Path) -> None:
    known = KnownLatencies(elsewhere(tmp_path), 1000)
    model = BY_KEY["resnet18@224"]
    for tries in range(3):
        assert (model in promising([model], known, 5.0)) == (tries < 3)
        known.add([model], [ZooLatency(6.0, "measured", low_ms=4.9)])
    assert promising([model], known, 5.0) == []
    assert promising([model], KnownLatencies(elsewhere(tmp_path), 1000), 7.0) == []


def test_what_a_runtime_cannot_run_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    target, eager = find_device("cpu", threads=1), find_runtime("eager")

    def prepare(module: nn.Module, images: Tensor, conditions: object) -> object:
        if type(module).__name__ == "ByobNet":
            raise RuntimeError("no such operator\nand more")
        return lambda: module(images)

    monkeypatch.setattr(eager, "prepare", prepare)
    found = measured([BY_KEY["test_byobnet@160"], BY_KEY["test_vit@160"]], target)
    assert found[0] == ZooLatency(None, "measured", "eager cannot run it: no such operator")
    assert found[1].latency_ms is not None


def test_onnxruntime_takes_weights_in_any_layout() -> None:
    target = find_device("cpu", runtime="onnxruntime", threads=1)
    found = measured([BY_KEY["test_byobnet@160"]], target)
    assert found[0].problem == ""


def test_networks_run_folded_in_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects: list[bench.Subject] = []

    def measure(made: list[bench.Subject], *_: object, **__: object) -> list[Measurement]:
        subjects.extend(made)
        return [Measurement(1.0, 1.0, 1.0, 1, 0.0)] * len(made)

    monkeypatch.setattr(latencies, "measure_subjects", measure)
    target = find_device("cpu", batch_size=2, precision="bf16")
    measured([BY_KEY["test_byobnet@160"], BY_KEY["resnet10t@176"]], target)
    assert [tuple(s.images.shape) for s in subjects] == [(2, 3, 160, 160), (2, 3, 176, 176)]
    for subject in subjects:
        assert subject.images.dtype == torch.bfloat16
        assert {p.dtype for p in subject.module.parameters()} == {torch.bfloat16}
        assert not any(isinstance(m, nn.BatchNorm2d) for m in subject.module.modules())


def test_devices_that_are_not_at_hand_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latencies, "measure_subjects", None)
    target = find_device("a100")
    found = find_zoo(target, {"latency_ms": 5.0}, names="test_vit,resnet18,resnet10t")
    assert {m.origin for m in found.models} == {"estimated"}
    assert {m.key for m in found.models} == {
        *("test_vit@160", "resnet18@224", "resnet18@288", "resnet10t@176", "resnet10t@224")
    }
    table = LatencyTable(target.conditions, {}, {})
    for model in found.models:
        if model.architecture is not None:
            predicted = predict_network(table, model.architecture)
            assert model.latency_ms == pytest.approx(predicted)
            # as timm's own network, which launches much the same
            shape = (1, 3, model.image_size, model.image_size)
            launched, _, _ = trace(
                lambda m=model: deployed(m.name, m.image_size), shape, torch.float16
            )
            other = estimate_operators(target.conditions, launched).latency_ms
            assert other == pytest.approx(predicted, rel=0.35)


def test_a_table_of_another_machine_leaves_out_what_it_lacks(tmp_path: Path) -> None:
    target = replace(elsewhere(tmp_path), conditions=find_device("cpu").conditions)
    with pytest.raises(InfeasibleError, match=r"it is no sum of the table of board; .* lacks"):
        find_zoo(target, names="resnet10t,test_vit")


# The command ------------------------------------------------------------------------------------


def test_the_command_lists_and_writes_json() -> None:
    command = ("zoo", "--device", "a100", "--target-latency", "1ms", "--names", "resnet1*,test_vit")
    answer = nas(*command, "--max", "params=11M")
    assert answer.code == 0, answer.err
    assert "resnet10t.c3_in1k" in answer.out
    assert "resnet18" not in answer.out
    data = json.loads(nas(*command, "--json").out)
    assert {m["name"] for m in data["models"]} >= {"resnet18", "resnet10t", "test_vit"}
    assert all(m["latency_ms"] <= 1 for m in data["models"])
    assert any(m["on_front"] for m in data["models"])


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--device", "a1000"], USAGE, ["unknown device 'a1000'", "Did you mean 'a100"]),
        (["--target-latency", "5"], USAGE, ["'5' has no unit"]),
        (["--names", "convnet_tiny"], USAGE, ["'convnet_tiny'", "convnext_tiny"]),
        (["--max", "params"], USAGE, ["must be NAME=VALUE"]),
        (["--max", "flops=1G"], USAGE, ["unknown metric 'flops'"]),
        (
            ["--device", "a100", "--names", "test_vit,resnet10t", "--target-latency", "1us"],
            INFEASIBLE,
            ["no model of the zoo is within 1.00 µs", "fastest is resnet10t", "µs"],
        ),
        (["--seconds", "0"], INFEASIBLE, ["there was no time for any", "--seconds"]),
    ],
)
def test_wrong_input_is_answered(options: list[str], code: int, expected: list[str]) -> None:
    answer = nas("zoo", *options)
    assert answer.code == code, answer.err
    for text in expected:
        assert text in answer.err


def test_points_come_front_first_and_once_a_design() -> None:
    def model(design: str, top1: float, on_front: bool) -> workflow.ZooModel:
        return workflow.ZooModel(
            design, "in1k", 224, top1, 1, 1, latency_ms=1.0, origin="measured", on_front=on_front
        )

    models = (
        model("resnet50", 80.0, False),
        model("test_vit", 79.0, True),
        model("resnet18", 70.0, True),
        model("resnet18", 69.0, True),
    )
    assert [m.name for m in Zoo(models).points()] == ["resnet18", "resnet50"]
