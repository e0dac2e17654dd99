"""Runtimes: equal outputs, clear refusals, and the cost of a call taken out of entries."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from latency_cases import ATTENTION, CLASSES, MACRO, POOLING, QUICK, made_up_table, small_space
from mixer_sizes import narrow
from torch import nn

from predictors.measuring import entry_plan
from predictors.measuring import profile as profiling
from predictors.measuring import runtimes as registry
from predictors.measuring.bench import (
    Bench,
    Subject,
    WeightPool,
    entry_subject,
    network_subject,
    statistic,
    steady,
)
from predictors.measuring.entry_plan import (
    Copies,
    EntryPlan,
    copies_subject,
    first_portion,
    without_cost,
)
from predictors.measuring.profile import profile
from predictors.measuring.remeasure import measure_networks
from predictors.measuring.runtimes import find_runtime, inductor, onnx_runtime, runtime_names
from predictors.measuring.runtimes.eager import CudaGraph
from predictors.measuring.runtimes.onnx_graph import to_onnx
from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import Entry, entries
from predictors.tables.conditions import Conditions
from predictors.tables.latency_table import LatencyTable
from search_space import ModuleSpec, SearchSpace, metaformer
from search_space.components import block_spec, head_spec, stem_spec, transition_spec
from search_space.errors import UnknownNameError, UsageError
from search_space.mixers import MIXERS


def usable(kind: str) -> list[str]:
    """Runtimes that serve a device of this kind and are installed here."""
    found = []
    for name in runtime_names():
        try:
            find_runtime(name).require(kind)
        except UsageError:
            continue
        found.append(name)
    return found


ON_CPU = usable("cpu")
NEEDS_COMPILER = pytest.mark.skipif("inductor" not in ON_CPU, reason="needs a C++ compiler")
NEEDS_OPENVINO = pytest.mark.skipif("openvino" not in ON_CPU, reason="needs openvino")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OTHER_MIXERS = [narrow(name) for name in MIXERS.names() if name != ATTENTION.mixer.name]
OTHERS: list[Entry] = [  # all in one network through runtimes: test_export.py
    (block_spec(MACRO, 16, metaformer(mixer, 2.0), 0), 8) for mixer in OTHER_MIXERS
]
ENTRIES: list[Entry] = [
    *OTHERS,
    (block_spec(MACRO, 16, ATTENTION, 0), 8),
    (block_spec(MACRO, 16, ATTENTION, 1), 8),  # shifted, masked
    (block_spec(MACRO, 16, ATTENTION, 0), 6),  # padded
    (stem_spec(MACRO, 16), 16),
    (transition_spec(MACRO, 16, 24, 2), 8),
    (head_spec(MACRO, 16, CLASSES), 4),
]


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space((8,), (1,), (POOLING,))


@pytest.fixture(scope="module")
def pool() -> WeightPool:
    return WeightPool(settings())


def settings(runtime: str = "eager", **options: Any) -> Conditions:
    return local_conditions(threads=1, runtime=runtime, **options)


# Registry and refusals ------------------------------------------------------------------------


def test_runtimes_that_every_installation_has() -> None:
    assert {"eager", "onnxruntime"} <= set(ON_CPU)


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with an entry point for each of two runtimes."""
    (tmp_path / "fast_runtime.py").write_text(
        "from functools import partial\n"
        "from predictors.measuring.runtimes import Runtime\n"
        "class Fast(Runtime):\n"
        "    method = 'direct'\n"
        "    def version(self): return 'fast 1.0'\n"
        "    def prepare(self, module, images, conditions): return partial(module, images)\n"
        "class Odd(Fast):\n"
        "    method = 'straight'\n"
        "class Bare(Runtime):\n"
        "    method = 'direct'\n"
    )
    info = tmp_path / "fast_runtime-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fast-runtime\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[nas.runtimes]\nfast = fast_runtime:Fast\nbroken = no_such_module:Fast\n"
        "eager = fast_runtime:Fast\nodd = fast_runtime:Odd\nbare = fast_runtime:Bare\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (registry._known, registry.find_runtime):
        cached.cache_clear()
    yield tmp_path
    for cached in (registry._known, registry.find_runtime):
        cached.cache_clear()


def test_a_package_adds_a_runtime(other_package: Path, space: SearchSpace) -> None:
    assert {"fast", "eager"} <= set(runtime_names())
    assert find_runtime("eager").version().startswith("torch")  # nothing of ours is replaced
    conditions = settings("fast")
    assert (conditions.runtime, conditions.runtime_version) == ("fast", "fast 1.0")
    table = profile(space, CLASSES, conditions, other_package, limits=QUICK)
    assert table.complete(space, CLASSES)
    (path,) = other_package.glob("*.parquet")
    assert LatencyTable.load(path) == table


def test_a_runtime_that_cannot_be_imported_names_its_package(other_package: Path) -> None:
    with pytest.raises(UsageError, match=r"'broken' of the package 'fast-runtime'.*no_such_module"):
        settings("broken")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'fast'.*Known: bare, broken, cuda"):
        settings("fasd")


def test_an_incomplete_runtime_says_what_it_lacks(other_package: Path) -> None:
    with pytest.raises(UsageError, match=r"'odd' .*method must be one of direct, constant, slope"):
        settings("odd")
    with pytest.raises(UsageError, match=r"'bare' of the package 'fast-runtime'.*abstract.*"):
        settings("bare")


def test_tables_of_a_runtime_that_is_not_installed_can_be_read(
    space: SearchSpace, tmp_path: Path
) -> None:
    table = made_up_table(space, replace(settings(), runtime="elsewhere"))
    table.save(tmp_path / "table.parquet")
    assert LatencyTable.load(tmp_path / "table.parquet") == table


@pytest.mark.parametrize("name", ON_CPU)
def test_conditions_carry_the_runtimes_own_version(name: str) -> None:
    version = find_runtime(name).version()
    assert settings(name).runtime_version == version
    library = importlib.import_module(find_runtime(name).library)
    assert library.__version__.split("-")[0] in version


def test_unknown_runtime_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'onnxruntime'\?"):
        local_conditions(runtime="onnxrt")


@pytest.mark.parametrize("name", ["cudagraph", "tensorrt"])
def test_gpu_runtimes_refuse_the_cpu_and_name_those_that_serve_it(name: str) -> None:
    with pytest.raises(UsageError, match=r"needs a device of kind cuda, not 'cpu'.*onnxruntime"):
        local_conditions(runtime=name)


def test_missing_libraries_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'onnxruntime', which is not installed.*pip install"):
        local_conditions(runtime="onnxruntime")
    with pytest.raises(UsageError, match=r'pip install "nas\[openvino\]"'):
        local_conditions(runtime="openvino")
    with pytest.raises(UsageError, match=r'pip install "nas\[tensorrt\]"'):
        find_runtime("tensorrt").require("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or None)
    with pytest.raises(UsageError, match="pip install triton"):
        find_runtime("inductor").require("cuda")


def test_inductor_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler.*apt install"):
        local_conditions(runtime="inductor")


def test_onnxruntime_refuses_what_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"precision 'bf16'.*Use fp32 or fp16"):
        local_conditions(runtime="onnxruntime", precision="bf16")
    monkeypatch.setattr(onnx_runtime, "_available", lambda: ("CPUExecutionProvider",))
    with pytest.raises(UsageError, match="pip install onnxruntime-gpu"):
        find_runtime("onnxruntime").require("cuda")


@NEEDS_OPENVINO
def test_openvino_refuses_what_it_cannot_run() -> None:
    with pytest.raises(UsageError, match=r"precision 'fp16'.*Use fp32"):
        local_conditions(runtime="openvino", precision="fp16")


@NEEDS_OPENVINO
def test_openvino_computes_in_float32_on_as_many_threads_as_asked() -> None:
    from predictors.measuring.runtimes.open_vino import _core, _settings

    graph = to_onnx(nn.Linear(8, 8), torch.zeros(1, 8)).SerializeToString()
    for threads in (1, 2):
        said = _settings(replace(settings("openvino"), threads=threads))
        compiled = _core().compile_model(_core().read_model(graph), "CPU", said)
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert compiled.get_property("NUM_STREAMS") == threads - 1
        assert compiled.get_property("INFERENCE_NUM_THREADS") in (0, threads)
        assert not compiled.get_property("ENABLE_CPU_PINNING")


@NEEDS_OPENVINO
def test_openvino_names_what_it_cannot_compile() -> None:
    with pytest.raises(UsageError, match=r"OpenVINO cannot compile .*Use another runtime"):
        find_runtime("openvino").prepare(Odd(), torch.ones(1, 3), settings("openvino"))


class Odd(nn.Module):
    """An operator of ONNX that OpenVINO does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(x.view(1, 3, 1) * x.view(1, 1, 3))


# Outputs --------------------------------------------------------------------------------------


def outputs_agree(name: str, subject: Subject, conditions: Conditions) -> None:
    with steady(conditions):
        expected = subject.module(subject.images)
        run = find_runtime(name).prepare(subject.module, subject.images, conditions)
        first, again = run(), run()
    for actual in (first, again):
        assert isinstance(actual, torch.Tensor)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "in_size"),
    [pytest.param(*e, marks=pytest.mark.slow if e in OTHERS else ()) for e in ENTRIES],
    ids=lambda value: str(value)[:60],
)
@pytest.mark.parametrize(
    "name",
    [
        "onnxruntime",
        pytest.param("openvino", marks=NEEDS_OPENVINO),
        pytest.param("inductor", marks=[pytest.mark.slow, NEEDS_COMPILER]),
    ],
)
def test_runtimes_compute_what_eager_computes(
    name: str, spec: ModuleSpec, in_size: int, pool: WeightPool
) -> None:
    conditions = settings(name, batch_size=2)
    outputs_agree(name, lively(entry_subject(spec, in_size, conditions, pool)), conditions)


@NEEDS_COMPILER
def test_inductor_compiles_many_modules_of_one_class_without_falling_back() -> None:
    conditions = settings("inductor")
    runtime = find_runtime("inductor")
    # other code of the process may have raised the limit, exporters do
    with steady(conditions), torch._dynamo.config.patch(recompile_limit=2):
        for features in range(1, 6):
            layer, x = nn.Linear(features, 3), torch.randn(2, features)
            actual = runtime.prepare(layer, x, conditions)()
            assert isinstance(actual, torch.Tensor)
            torch.testing.assert_close(actual, layer(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "inductor"])
def test_whole_networks_go_through_the_runtime(name: str, space: SearchSpace) -> None:
    conditions = settings(name)
    pool = WeightPool(conditions)
    subject = network_subject(space.largest, CLASSES, conditions, pool)
    assert subject.settle == find_runtime(name).settle
    outputs_agree(name, lively(subject), conditions)
    (measured,) = measure_networks([space.smallest], CLASSES, conditions, limits=QUICK)
    assert measured.latency_ms > 0


def lively(subject: Subject) -> Subject:
    """Weights and images that leave a mark on the output, unlike those of the pool."""
    generator = torch.Generator().manual_seed(1)
    for parameter in subject.module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    subject.images = torch.randn(subject.images.shape, generator=generator)
    return subject


class Into(nn.Module):
    """Leaves what a module computes in a tensor that lives on."""

    def __init__(self, module: nn.Module, output: torch.Tensor) -> None:
        super().__init__()
        self.module, self.output = module, output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output.copy_(self.module(images))


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("name", runtime_names())
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_runtimes_on_a_gpu_compute_what_eager_computes(name: str, precision: str) -> None:
    if name not in usable("cuda"):
        pytest.skip(f"{name} is not installed for GPUs")
    conditions = local_conditions("cuda", runtime=name, precision=precision)
    pool = WeightPool(conditions)
    for spec, in_size in ENTRIES:
        subject = entry_subject(spec, in_size, conditions, pool)
        with steady(conditions):
            expected = subject.module(subject.images)
            into = Into(subject.module, torch.zeros_like(expected))
            module = into if name == "cudagraph" else subject.module
            run = find_runtime(name).prepare(module, subject.images, conditions)
            into.output.zero_()
            actual = run()
            actual = into.output if name == "cudagraph" else actual
        torch.cuda.synchronize()
        assert isinstance(actual, torch.Tensor)
        torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@NEEDS_CUDA
def test_profile_by_cuda_graphs(space: SearchSpace, tmp_path: Path) -> None:
    conditions = local_conditions("cuda", runtime="cudagraph", precision="fp16")
    table = profile(space, CLASSES, conditions, tmp_path, limits=QUICK)
    assert table.complete(space, CLASSES)


class FakeGraph:
    """A CUDA graph that computes at once and counts its replays."""

    begun: ClassVar[list[object]] = []

    def __init__(self) -> None:
        self.replays = 0

    def capture_begin(self, pool: object) -> None:
        FakeGraph.begun.append(pool)

    def capture_end(self) -> None:
        pass

    def pool(self) -> object:
        return "shared"

    def replay(self) -> None:
        self.replays += 1


def test_living_cuda_graphs_share_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: MagicMock())
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda which: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "begun", [])
    runtime, layer = CudaGraph(), MagicMock(spec=nn.Linear(2, 3))
    conditions, images = settings(), torch.zeros(1, 2)
    runs = [runtime.prepare(layer, images, conditions) for _ in range(3)]
    assert FakeGraph.begun == [None, "shared", "shared"]
    calls = layer.call_count  # warm-up and capture; replays call no module
    assert calls > 3
    assert runs[0]() is None
    assert layer.call_count == calls
    del runs
    gc.collect()
    runtime.prepare(layer, images, conditions)
    assert FakeGraph.begun[-1] is None  # a pool that no graph uses may be gone


# The cost of a call ---------------------------------------------------------------------------


def test_methods_take_the_cost_of_a_call_out(space: SearchSpace) -> None:
    asked = entries(space, CLASSES)[:2]
    direct = EntryPlan(asked, settings())
    assert len(direct) == len(direct.names()) == 2
    assert direct.latencies([[1.0, 2.0], [3.0, 4.0]]) == [[1.0, 2.0], [3.0, 4.0]]
    constant = EntryPlan(asked, settings("onnxruntime"))
    assert len(constant) == len(constant.names()) == 3
    found = constant.latencies([[1.0, 2.0], [0.5, 4.0], [0.25, 0.25]])
    assert found == [[0.75, 1.75], [0.25, 3.75]]
    assert len(constant.subjects(WeightPool(constant.conditions))) == 3


def test_slopes_are_differences_of_statistics(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = entries(space, CLASSES)[:2]
    plan = EntryPlan(asked, replace(settings(), runtime="cudagraph"))
    assert len(plan) == len(plan.names()) == len(set(plan.names())) == 4
    rng = np.random.default_rng(0)
    once, twice = rng.uniform(1, 2, (2, 9)).tolist(), rng.uniform(3, 4, (2, 9)).tolist()
    for n in (1, 3):
        monkeypatch.setattr(plan.runtime, "copies", n)
        for values, one, two in zip(plan.latencies(once + twice), once, twice, strict=True):
            assert statistic(values) == pytest.approx((statistic(two) - statistic(one)) / n)


def test_nothing_is_measured_for_no_entries() -> None:
    assert len(EntryPlan([], settings("onnxruntime"))) == 0


def test_what_is_left_of_an_entry_is_positive() -> None:
    assert all(value > 0 for value in without_cost([0.5, 1.0, 2.0], 1.0))


def test_copies_have_weights_and_work_of_their_own() -> None:
    conditions = settings()
    pool = WeightPool(conditions)
    for spec, in_size in ENTRIES:
        subject = copies_subject(spec, in_size, 3, conditions, pool)
        assert isinstance(subject.module, Copies)
        one = entry_subject(spec, in_size, conditions, pool)
        number = len(list(one.module.parameters()))
        addresses = {parameter.data_ptr() for parameter in subject.module.parameters()}
        assert len(addresses) == 3 * number
        with torch.inference_mode():
            output, single = subject.module(subject.images), one.module(one.images)
        if spec.kind == "block":
            assert output.shape == single.shape
        else:
            assert [part.shape for part in output] == [single.shape] * 3


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=NEEDS_OPENVINO)])
def test_profile_through_a_runtime_that_reads_onnx(
    name: str, space: SearchSpace, tmp_path: Path
) -> None:
    conditions = settings(name)
    table = profile(space, CLASSES, conditions, tmp_path, limits=QUICK)
    assert set(table.entries) == set(entries(space, CLASSES))
    assert table.complete(space, CLASSES)
    assert all(value.latency_ms > 0 for value in table.entries.values())


def test_entries_that_do_not_fit_into_memory_are_measured_in_portions(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions, asked = settings("onnxruntime"), entries(space, CLASSES)
    monkeypatch.setattr(entry_plan, "_MOST_BYTES", 4.5 * entry_plan._BYTES_BESIDES)
    assert first_portion(asked, settings()) == asked  # eager entries share all memory
    assert first_portion(asked, conditions) == asked[:4]
    assert len(first_portion(asked, replace(conditions, batch_size=4096))) == 1
    portions: list[int] = []
    monkeypatch.setattr(
        profiling, "EntryPlan", lambda e, c: portions.append(len(e)) or EntryPlan(e, c)
    )
    table = profile(space, CLASSES, conditions, tmp_path, limits=QUICK)
    assert table.complete(space, CLASSES)
    assert sum(portions) == len(asked)
    assert max(portions) == 4
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]


def test_onnxruntime_reads_weights_where_they_lie(pool: WeightPool) -> None:
    subject = entry_subject(*ENTRIES[0], settings("onnxruntime"), pool)
    model = to_onnx(subject.module, subject.images)
    weights = onnx_runtime._take_weights(model, subject.module)
    for name, parameter in subject.module.named_parameters():
        assert weights[name].ctypes.data == parameter.data_ptr()
    assert model.ByteSize() < sum(values.nbytes for values in weights.values())


@pytest.mark.slow
@NEEDS_COMPILER
def test_profile_through_inductor(space: SearchSpace, tmp_path: Path) -> None:
    table = profile(space, CLASSES, settings("inductor"), tmp_path, limits=QUICK)
    assert table.complete(space, CLASSES)


def test_preparing_is_reported(space: SearchSpace) -> None:
    conditions = settings("onnxruntime")
    pool = WeightPool(conditions)
    subjects = [network_subject(space.smallest, CLASSES, conditions, pool) for _ in range(3)]
    heard: list[tuple[int, int, float]] = []
    bench = Bench(subjects, conditions)
    with steady(conditions):
        bench.warm_up(lambda *values: heard.append(values))
    assert [(done, total) for done, total, _ in heard] == [(1, 3), (2, 3), (3, 3)]
    assert heard[-1][2] == 0
