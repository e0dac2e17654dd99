"""A complete made-up report, and a page's elements, for the tests of the report."""

from __future__ import annotations

import dataclasses
import math
from html.parser import HTMLParser

import numpy as np

from results.pareto import non_dominated
from results.report.data import (
    Baseline,
    Chosen,
    Epoch,
    Export,
    LatencyCheck,
    LatencyPair,
    Network,
    Phase,
    ReportData,
)
from results.report.inheritance import (
    BlockFate,
    Change,
    Inheritance,
    LossPair,
    Step,
    ZooFront,
    ZooNetwork,
)
from results.report.tables import rank_rows
from search_space.architecture import Architecture
from search_space.around import inner_widths
from search_space.blocks import Block, Mixer, metaformer
from search_space.boundary import parse_model
from search_space.components import components
from search_space.files import load_space
from search_space.known import known
from supernet.training.evaluation import Quality

TARGET_MS = 1.6
CONFUSED = Quality(np.array([[850, 40, 10], [30, 60, 10], [12, 3, 5]]), loss=0.21)


def made_up_costs(arch: Architecture, rng: np.random.Generator) -> dict[str, float]:
    """Figures of a plausible shape, for drawing only."""
    params = sum(12 * s.width**2 * s.depth for s in arch.stages)
    macs = sum(9.0 * s.width**2 * s.depth * (8 / 2**i) ** 2 for i, s in enumerate(arch.stages))
    latency = 0.35 + 0.11 * sum(arch.depths) + macs / 9e6
    quality = 0.975 - 0.09 * math.exp(-macs / 4e5) - 0.03 / sum(arch.depths)
    return {
        "accuracy": min(0.995, quality + rng.normal(0, 0.006)),
        "latency_ms": latency,
        "num_params": float(params),
        "macs": macs,
        "activations": macs / 40,
    }


def sample_report(n: int = 240, seed: int = 0) -> ReportData:
    """A complete report about random architectures of the digits space."""
    space = load_space("digits")
    rng = np.random.default_rng(seed)
    archs = list({a.digest: a for a in space.decode(space.sample(rng, n))}.values())
    points = tuple(
        Network(digest=a.digest, predicted=made_up_costs(a, rng), architecture=a.to_dict())
        for a in archs
    )
    mask = non_dominated(
        [[p.predicted["accuracy"], p.predicted["latency_ms"]] for p in points], [True, False]
    )
    front, pairs = [], []
    for point, arch, keep in zip(points, archs, mask, strict=True):
        if not keep:
            continue
        measured = point.predicted["latency_ms"] * rng.normal(1.0, 0.05)
        spread = {"latency_low_ms": measured * 0.98, "latency_high_ms": measured * 1.03}
        front.append(
            Network(
                digest=point.digest,
                architecture=arch.to_dict(),
                predicted=point.predicted,
                measured={"latency_ms": measured, **spread},
            )
        )
    for point in points[:30]:
        latency = point.predicted["latency_ms"]
        pairs.append(
            LatencyPair(
                digest=point.digest,
                predicted_ms=latency,
                measured_ms=latency * rng.normal(1.01, 0.06),
            )
        )
    inside = [m for m in front if m.measured["latency_ms"] <= TARGET_MS]
    best = max(inside, key=lambda m: m.predicted["accuracy"])
    parts = components(Architecture.from_dict(best.architecture), num_classes=10)
    shares = rng.uniform(0.5, 2.0, len(parts))
    shares *= best.predicted["latency_ms"] / shares.sum()
    rows = [p.predicted for p in points]
    return ReportData(
        run="digits-demo",
        created="2025-03-01T10:20:30+00:00",
        targets={"latency_ms": TARGET_MS},
        summary={
            "data": "digits, 10 classes",
            "space": f"digits, {space.size:.2g} architectures",
            "device": "cpu, 2 threads",
            "search": "NSGA-II, 12 generations of 20",
        },
        chosen=Chosen(
            digest=best.digest,
            architecture=best.architecture,
            predicted=best.predicted,
            measured=best.measured,
            test_accuracy_before=0.9512,
            test_accuracy=0.9731,
            quality={"test": CONFUSED.to_dict()},
            class_names=("common", "usual", "rare"),
            reason="The most accurate member of the front whose re-measured latency is within "
            "the limit.",
            component_latency_ms={
                part.path: float(s) for part, s in zip(parts, shares, strict=True)
            },
            exports=(
                Export(
                    format="timm",
                    path=f"export/{best.digest}/",
                    load="import nas.timm\nimport timm\n\nmodel = timm.create_model("
                    f'"local-dir:runs/digits-demo/export/{best.digest}", pretrained=True)',
                    max_difference=2.4e-7,
                    tolerance=1e-5,
                ),
                Export(
                    format="ONNX",
                    path=f"export/{best.digest}/model.onnx",
                    load='import onnxruntime\n\nonnxruntime.InferenceSession("model.onnx")',
                    max_difference=8.1e-6,
                    tolerance=1e-4,
                ),
            ),
        ),
        evaluated=points,
        num_seen=12_480,
        front=tuple(front),
        baselines=(
            Baseline(
                name="largest",
                predicted=made_up_costs(space.largest, rng),
                note="largest subnet of the space, inherited weights",
                architecture=space.largest.to_dict(),
            ),
            Baseline(
                name="smallest",
                predicted=made_up_costs(space.smallest, rng),
                note="smallest subnet of the space, inherited weights",
                architecture=space.smallest.to_dict(),
            ),
            Baseline(
                name="random feasible",
                predicted=points[3].predicted,
                measured={"latency_ms": points[3].predicted["latency_ms"] * 1.02},
                test_accuracy=0.9611,
                note="best of 20 random feasible subnets, fine-tuned alike",
            ),
        ),
        latency=LatencyCheck(
            pairs=tuple(pairs),
            provenance={
                "kind": "block-wise table, end-to-end correction",
                "device": "8-core CPU",
                "runtime": "PyTorch eager 2.9",
                "precision": "float32",
                "batch size": 1,
                "threads": 2,
            },
            repeatability={"mape": 0.031, "share_within_10": 0.98, "kendall_tau": 0.97},
        ),
        ranking=rank_rows(rows, ["latency_ms", "macs", "num_params", "activations"]),
        training=tuple(
            Epoch(
                epoch=e,
                loss_largest=2.3 * math.exp(-e / 8) + 0.12,
                loss_smallest=2.3 * math.exp(-e / 10) + 0.25,
                accuracy_largest=0.97 - 0.85 * math.exp(-e / 5),
                accuracy_smallest=0.93 - 0.83 * math.exp(-e / 6),
            )
            for e in range(1, 31)
        ),
        phases=(
            Phase(name="profile", seconds=41.2),
            Phase(name="train", seconds=171.0),
            Phase(name="search", seconds=46.8),
            Phase(name="fine-tune", seconds=22.1),
            Phase(name="export", seconds=14.9),
        ),
        config={"data": "digits", "space": "digits", "search": {"population": 20, "rate": 0.1}},
        versions={"nas": "0.1.0", "python": "3.11", "torch": "2.9.0", "timm": "1.0.20"},
        device={"name": "8-core CPU", "threads": 2, "memory": "16 GiB"},
        seed=0,
        command="nas search --data digits --target-latency 1.6ms --device cpu",
        notes=("Latencies are for batches of one image; larger batches rank differently.",),
    )


def changed(parent: Architecture) -> Architecture:
    """A network around ConvNeXt-T: in each stage one block narrower, another, and left out."""
    stages = []
    for stage in parent.stages:
        first, second, _, *rest = stage.blocks
        narrow = first.replaced(mlp_ratio=1.0)
        small = metaformer(Mixer.of("depthwise_conv", kernel=3), float(second["mlp_ratio"]))
        blocks = (narrow, small, Block.of("skip"), *rest)
        stages.append(dataclasses.replace(stage, blocks=blocks))
    return dataclasses.replace(parent, stages=tuple(stages), resolution=160)


def with_parent(data: ReportData) -> ReportData:
    """The made-up report as that of a search that began with ConvNeXt-T."""
    parent = known("convnext_t")
    chosen = changed(parent)
    assert data.chosen is not None
    rng = np.random.default_rng(0)
    widths = inner_widths(parent), inner_widths(chosen)
    fates = [
        BlockFate(
            stage=i,
            position=j,
            before=before.to_dict(),
            after=after.to_dict(),
            widths_before=widths[0][f"stages.{i}.blocks.{j}"],
            widths_after=widths[1].get(f"stages.{i}.blocks.{j}", {}),
            change=None
            if before == after
            else Change(loss=0.01 * (i + j), loss_error=0.001, saved_ms=0.02),
        )
        for i, (stage, other) in enumerate(zip(parent.stages, chosen.stages, strict=True))
        for j, (before, after) in enumerate(zip(stage.blocks, other.blocks, strict=True))
    ]
    losses = [
        LossPair(digest=n.digest, predicted=loss, real=loss + 0.1 * rng.random())
        for n, loss in zip(data.evaluated, rng.random(40), strict=False)
    ]
    figures = {"accuracy": 0.991, "latency_ms": 2.5, "num_params": 28e6, "macs": 4.5e9}
    named = Baseline(
        name="parent convnext_tiny",
        digest=parent.digest,
        architecture=parent.to_dict(),
        predicted=figures,
        measured={"latency_ms": 2.4},
        test_accuracy=0.9893,
    )
    zoo = ZooFront(
        networks=(
            ZooNetwork(
                name="resnet10t.c3_in1k",
                image_size=224,
                top1=0.683,
                latency_ms=1.2,
                origin="estimated",
                num_params=5_440_000,
                macs=1_100_000_000,
            ),
        ),
        source="a file of figures",
        note="Latencies of 3 more networks are not known; `nas zoo` finds them.",
    )
    steps = (
        Step(name="as published", validation_accuracy=0.9, test_accuracy=0.89, phases=("profile",)),
        Step(name="trained", validation_accuracy=0.991, test_accuracy=0.9893, phases=("train",)),
        Step(name="chosen", validation_accuracy=0.97, test_accuracy=0.9731, phases=("fine-tune",)),
    )
    digest, architecture = chosen.digest, chosen.to_dict()
    return dataclasses.replace(
        data,
        chosen=dataclasses.replace(
            data.chosen, digest=digest, architecture=architecture, component_latency_ms={}
        ),
        baselines=(named, *data.baselines),
        inherited=Inheritance(
            parent=named.name,
            resolution=Change(loss=0.04, loss_error=0.002, saved_ms=0.5),
            blocks=tuple(fates),
            losses=tuple(losses),
            steps=steps,
            zoo=zoo,
        ),
    )


def parse(data: object) -> ReportData:
    """The data of a report from its plain form."""
    return parse_model(data, ReportData, "the data of a report")


class Page(HTMLParser):
    """Elements of a page, checking on the way that they nest."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def classed(self, name: str) -> list[dict[str, str | None]]:
        return [a for _, a in self.elements if name in (a.get("class") or "").split()]
