"""The page of ``designs.py``: its figures, and the judgements of ``data/designs_judged.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from designs_cases import BUDGET_DEVICE, DEVICES, REFERENCES
from designs_page import (
    Aside,
    Case,
    Design,
    DesignsPage,
    Finding,
    TextTable,
    shape_text,
)

from results.report.charts import format_metric, thousands
from search_space.metrics import title_of

JUDGED = yaml.safe_load((Path(__file__).parent / "data" / "designs_judged.yaml").read_text("utf-8"))
NOT_JUDGED = {"digest": "", "text": ""}


def page(stored: dict[str, Any]) -> DesignsPage:
    """Figures and judgements together."""
    titles = {reference.name: reference.title for reference in REFERENCES}
    conditions = stored["conditions"]
    return DesignsPage(
        title="What the training-free methods design",
        question="At Swin-T’s and ConvNeXt-T’s counts or latency, what do the training-free "
        "methods design, and what does each cost on the devices known?",
        findings=[Finding(**finding) for finding in JUDGED["findings"]],
        judged_on=JUDGED["judged_on"],
        notes=tuple(JUDGED["notes"]),
        cases=[_case(stored, case, titles[case["reference"]]) for case in stored["cases"]],
        devices=DEVICES,
        budget_device=BUDGET_DEVICE,
        yardsticks=[_known_table(stored), _mixer_table(stored), _agreement_table(stored, titles)],
        summary={
            "references": ", ".join(titles.values()),
            "classes": conditions["num_classes"],
            "latencies": f"estimated, {conditions['runtime']} {conditions['precision']}, batch "
            f"{conditions['batch_size']}, ±{conditions['expected_error']:.0%}",
        },
        facts={
            "took": f"{stored['seconds']} s on two shared CPU cores",
            "latency of a launch": f"{1e3 * conditions['overhead_ms']:.1f} µs in every estimate",
            **{
                f"seed of {titles[name]}": f"{figures['digest']}, {shape_text(figures)}, "
                f"{format_metric('num_params', figures['num_params'])} parameters"
                for name, figures in stored["seeds"].items()
            },
        },
        command="python benchmarks/designs.py",
        created=stored["created"],
    )


def _case(stored: dict[str, Any], case: dict[str, Any], title: str) -> Case:
    reference = next(r for r in REFERENCES if r.name == case["reference"])
    words = {
        "counts": f"{title}, by counts",
        "latency": f"{title}, by latency on {BUDGET_DEVICE}",
    }
    limits = " and ".join(
        f"{format_metric(metric.partition('@')[0], limit)} "
        f"{'on ' + BUDGET_DEVICE if '@' in metric else title_of(metric)}"
        for metric, limit in case["limits"].items()
    )
    grown = "parameters alone" if case["variant"] == "counts" else "that latency"
    seed = stored["seeds"][reference.name]
    judged = JUDGED["judgements"][case["key"]]
    return Case(
        key=case["key"],
        title=words[case["variant"]],
        lead=f"The budget is {title}’s own: {limits}. Searches are over the preset "
        f"{case['space']}, the smaller one that has {title}’s widths and depths. Families grow to "
        f"{grown} from a seed with {reference.seed_words} "
        f"({format_metric('num_params', seed['num_params'])} parameters), or shrink from "
        f"{reference.larger}.",
        limits=case["limits"],
        designs=[
            Design(
                key=row["key"],
                title=row["title"],
                how=row["how"],
                architecture=row["architecture"],
                figures=row["figures"],
                component_latency_ms=row["component_latency_ms"],
                judged=judged.get(row["key"], NOT_JUDGED)["digest"],
                judgement=judged.get(row["key"], NOT_JUDGED)["text"],
            )
            for row in case["designs"]
        ],
        asides=[
            Aside(score=aside["score"], changed=aside["changed"], figures=aside["figures"])
            for aside in case["asides"]
        ],
        asides_note=JUDGED["asides"][case["key"]],
    )


def _score_cells(figures: dict[str, Any]) -> list[str]:
    return [
        format_metric("score", figures["combined"]),
        thousands(round(figures["deepmad"])),
        " ".join(f"{rho:.2f}" for rho in figures["effectiveness_by_stage"]),
        format_metric("latency_ms", figures["latency_ms"][BUDGET_DEVICE]),
    ]


def _known_table(stored: dict[str, Any]) -> TextTable:
    counted = ("num_params", "macs", "activations")
    rows = [
        [
            name,
            *(format_metric(metric, figures[metric]) for metric in counted),
            *_score_cells(figures),
            f"{stored['top1'][name]:.1f}\u00a0%" if name in stored["top1"] else "–",
        ]
        for name, figures in stored["known"].items()
    ]
    return TextTable(
        caption="Known designs by the same scores, with their top-1 accuracy on ImageNet as "
        "published with timm.",
        columns=[
            "design",
            *(title_of(metric) for metric in counted),
            "combined",
            "DeepMAD",
            "ρ after each stage",
            f"latency, {BUDGET_DEVICE}",
            "top-1",
        ],
        rows=rows,
    )


def _mixer_table(stored: dict[str, Any]) -> TextTable:
    rows = []
    for row in stored["mixers"]:
        figures = row["figures"]
        settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in row["params"].items())
        rows.append(
            [
                f"{row['mixer'].replace('_', ' ')} ({settings})",
                format_metric("macs", figures["macs"]),
                format_metric("activations", figures["activations"]),
                str(figures["layers"]),
                str(figures["launches"]),
                *_score_cells(figures),
            ]
        )
    return TextTable(
        caption="What a mixer counts for: Swin-T’s widths and depths with one mixer in all blocks. "
        "Layers are those on the longest path, where a depthwise convolution counts as one that "
        "is only k² wide.",
        columns=[
            "mixer",
            "MACs",
            "activations",
            "layers",
            "kernels launched",
            "combined",
            "DeepMAD",
            "ρ after each stage",
            f"latency, {BUDGET_DEVICE}",
        ],
        rows=rows,
    )


def _agreement_table(stored: dict[str, Any], titles: dict[str, str]) -> TextTable:
    """Only by counts: where a latency is the budget, many designs are equally fast there."""
    names = {
        case["key"]: titles[case["reference"]]
        for case in stored["cases"]
        if case["variant"] == "counts"
    }
    return TextTable(
        caption="Do the devices order the nine designs by counts alike? Kendall’s τ with the "
        f"order on {BUDGET_DEVICE}.",
        columns=["counts of", *DEVICES],
        rows=[
            [name, *(f"{stored['device_agreement'][key][device]:.2f}" for device in DEVICES)]
            for key, name in names.items()
        ],
    )
