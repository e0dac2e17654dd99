"""What is int8 worth to a search? The same budgets in float, in int8 and in both, block by block.

The parent is that of ``pretrained.py``: EfficientNet-Lite0 with ImageNet weights, trained on a part
of CIFAR-10. Its blocks are cut and folded, each alternative is judged in float and in int8, and the
integer programme finds the best network within each budget, given as parts of what the parent takes
in float on ONNX Runtime with one thread. Networks are judged as they are put together, before any
training, and measured in turn in one run, beside the parent by onnxruntime's own quantiser.

    python benchmarks/pretrained.py --data CIFAR10 --out RUN --parts images parent
    python benchmarks/int8_search.py --out RUN [--budgets 0.4 0.3 0.2]
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pretrained_setup as setup
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from predictors.measuring.bench import Limits
from predictors.measuring.profile import profile
from predictors.measuring.quality import measure_quality
from predictors.measuring.runtimes.onnx_graph import INPUT, to_onnx
from predictors.measuring.this_machine import local_conditions
from predictors.tables.quality import QualityTable
from search.exact.front import sweep
from search_space import Architecture, SearchSpace
from search_space.precision import in_precision, with_precisions
from supernet import Backbone
from supernet.data.evaluation_batches import EvalBatches, eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.quantised import quantise_alternatives
from supernet.network.layers import fold_batch_norms
from supernet.training.evaluation import evaluate
from supernet.training.recalibration import (
    calibration_batches,
    extract,
    in_own_precision,
    range_images,
)

RESULTS = Path(__file__).parent / "results" / "int8_search.json"
TRIED = 3  # of each front within a budget, of which validation images choose
POINTS = 30


class Images(CalibrationDataReader):
    """Images for onnxruntime's quantiser, one by one."""

    def __init__(self, batches: EvalBatches) -> None:
        self.left = iter([{INPUT: x[None].numpy()} for images, _ in batches for x in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def quantised_by_others(
    parent: Backbone, example: torch.Tensor, images: EvalBatches, folder: Path
) -> dict[str, bytes]:
    """The parent as onnxruntime quantises it: by its defaults, and by settings like ours."""
    graph = to_onnx(fold_batch_norms(copy.deepcopy(parent)), example)
    onnx.save(graph, folder / "float.onnx")
    quant_pre_process(folder / "float.onnx", folder / "pre.onnx", skip_symbolic_shape=True)
    result = {"parent, float": graph.SerializeToString()}
    for name, how in {
        "parent, quantize_static": {},
        "parent, quantize_static per channel": {
            "per_channel": True,
            "activation_type": QuantType.QUInt8,
        },
    }.items():
        quantize_static(folder / "pre.onnx", folder / "int8.onnx", Images(images), **how)
        result[name] = (folder / "int8.onnx").read_bytes()
    return result


def session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def latencies(
    graphs: dict[str, bytes], examples: dict[str, torch.Tensor], rounds: int
) -> dict[str, float]:
    """Milliseconds of each graph with an image of its side, all in turn: the 25th percentile."""
    sessions = {name: session(graph) for name, graph in graphs.items()}
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    rng, names = np.random.default_rng(0), list(sessions)
    for _ in range(rounds):
        for i in rng.permutation(len(names)):
            name = names[i]
            feed = {INPUT: examples[name].numpy()}
            sessions[name].run(None, feed)
            begin = time.perf_counter()
            sessions[name].run(None, feed)
            samples[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.percentile(values, 25)) for name, values in samples.items()}


def accuracy(graph: bytes, batches: EvalBatches) -> float:
    """Accuracy of a graph for one image at a time."""
    run, right, seen = session(graph), 0, 0
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            (logits,) = run.run(None, {INPUT: image[None].numpy()})
            right += int(np.argmax(logits) == int(label))
            seen += 1
    return right / seen


def best(
    space: SearchSpace, quality: QualityTable, cost: Any, budget_ms: float
) -> list[Architecture]:
    """The networks of the proven front that are predicted best within a budget."""
    front = sweep(space, quality.compile(space), cost, maximise=(False, False), points=POINTS)
    within = np.flatnonzero(front.cost <= budget_ms)
    chosen = within[np.argsort(front.quality[within])][:TRIED]
    return list(space.decode(front.genes[chosen]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of pretrained.py")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.3, 0.2])
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    options.device, options.adapt_epochs = "cpu", 4
    torch.set_num_threads(2)
    data = setup.data_of(options, options.seed)
    parent = setup.adapted(options, options.seed)
    plain = setup.space_of(options)
    spaces = {
        "fp32": plain,
        "int8": with_precisions(plain, "int8"),
        "mixed": with_precisions(plain, "mixed"),
    }
    conditions = local_conditions(runtime="onnxruntime", threads=1)
    folder = options.out / "int8"
    folder.mkdir(exist_ok=True)
    tables = {
        name: profile(space, setup.CLASSES, conditions, folder, limits=Limits(min_seconds=20))
        for name, space in spaces.items()
    }
    costs = {name: tables[name].compile(space, setup.CLASSES) for name, space in spaces.items()}
    bank = WeightBank(spaces["mixed"], parent).eval()
    fitting = calibration_batches(data, setup.FITTED, options.seed)
    begin = time.perf_counter()
    cut_alternatives(bank, fitting, seed=options.seed)
    found = range_images(data, options.seed)
    quantise_alternatives(bank, [images for images, _ in found])
    quality = measure_quality(
        bank,
        lambda side: eval_batches(data.at(side).validation, limit=options.held_out),
        lambda side: calibration_batches(data.at(side), 256, options.seed),
        file=folder / "quality.parquet",
    )
    prepared = time.perf_counter() - begin
    # losses of float blocks are those beside a stem and a head in int8, in all three spaces
    in_float = replace(quality, source=replace(quality.source, parent=parent.architecture))
    example = next(iter(found))[0][:1]
    whole = float(costs["fp32"].predict(plain.encode([parent.architecture]))[0])
    networks = {
        "parent, ours in int8": in_own_precision(
            parent, in_precision(parent.architecture, "int8"), found
        )
    }
    for budget in options.budgets:
        for name, space in spaces.items():
            known = in_float if name == "fp32" else quality
            tried = []
            for architecture in best(space, known, costs[name], budget * whole):
                images = calibration_batches(
                    data.at(architecture.resolution), setup.FITTED, options.seed
                )
                network = extract(bank, architecture, images).eval()
                held = eval_batches(data.at(architecture.resolution).validation)
                tried.append((evaluate(network, held).loss, network))
            if tried:
                networks[f"{budget:.0%} {name}"] = min(tried, key=lambda item: item[0])[1]
    rows: dict[str, dict[str, Any]] = {}
    graphs: dict[str, bytes] = {}
    sides: dict[str, torch.Tensor] = {}
    for name, network in networks.items():
        side = network.architecture.resolution
        judged = evaluate(network, eval_batches(data.at(side).test, 500))
        folded = fold_batch_norms(copy.deepcopy(network))
        sides[name] = example if side == options.side else torch.zeros(1, 3, side, side)
        graphs[name] = to_onnx(folded, sides[name]).SerializeToString()
        rows[name] = {"accuracy": judged.accuracy, "loss": judged.loss, "side": side}
    with tempfile.TemporaryDirectory() as temporary:
        few = calibration_batches(data, 128, options.seed)
        others = quantised_by_others(parent, example, few, Path(temporary))
    for name, graph in others.items():
        rows[name] = {"accuracy": accuracy(graph, eval_batches(data.test, 500))}
        sides[name] = example
    graphs |= others
    rows["parent, ours in int8"]["accuracy_of_integers"] = accuracy(
        graphs["parent, ours in int8"], eval_batches(data.test, 500)
    )
    measured = latencies(graphs, sides, options.rounds)
    for name, row in rows.items():
        row["latency_ms"] = round(measured[name], 4)
        row["of_parent"] = round(measured[name] / measured["parent, float"], 3)
        print(name, row, flush=True)
    result = {
        "conditions": conditions.to_dict(),
        "changes": len(quality.changes),
        "seconds_of_alternatives_and_table": round(prepared, 1),
        "errors": {
            name: table.correction(spaces[name]).expected_error for name, table in tables.items()
        },
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
