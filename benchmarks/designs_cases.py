"""What the designs of ``designs.py`` are compared with, and by what: references and a yardstick."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from predictors.devices import find_device
from predictors.estimates.estimate import estimate_entry
from predictors.operators import operators
from predictors.proxies.deepmad import effectiveness_of_ends
from predictors.proxies.space_tables import architecture_ends, score_architecture
from search.scaling.cost import NetworkCosts
from search_space import Architecture, Stage, components, known
from search_space.metrics import LATENCY, on_device

BUDGET_DEVICE = "a100"
DEVICES = ("h200", "h100", "a100", "rtx4090", "rtx3090", "t4", "l4", "orin")  # fastest first


@dataclass(frozen=True)
class Reference:
    """A known design, and what is needed to arrive at its size.

    Args:
        name, title: of the design.
        space: the smaller preset that has its widths and depths; ``other`` is the other one.
        seed_widths, seed_depths: of the small seed, made by hand; seed_words says how.
        larger: the next larger design of the family.
    """

    name: str
    title: str
    space: str
    other: str
    seed_widths: tuple[int, ...]
    seed_depths: tuple[int, ...]
    seed_words: str
    larger: str

    def seed(self) -> Architecture:
        design = known(self.name)
        stages = zip(design.stages, self.seed_widths, self.seed_depths, strict=True)
        return replace(
            design, stages=tuple(Stage(w, stage.blocks[:depth]) for stage, w, depth in stages)
        )


REFERENCES = (
    Reference(
        name="swin_t",
        title="Swin-T",
        space="tiny",
        other="base",
        seed_widths=(64, 128, 256, 512),
        seed_depths=(1, 1, 3, 1),
        seed_words="two thirds of its widths, half of its blocks",
        larger="swin_s",
    ),
    Reference(
        name="convnext_t",
        title="ConvNeXt-T",
        space="base",
        other="tiny",
        seed_widths=(72, 144, 288, 576),
        seed_depths=(1, 1, 3, 1),
        seed_words="three quarters of its widths, a third of its blocks",
        larger="convnext_s",
    ),
)


class Yardstick:
    """Everything that is known of an architecture without training, from datasheets alone."""

    def __init__(self) -> None:
        # an empty folder: neither tables nor calibrations of this machine change the figures
        folder = Path(tempfile.mkdtemp(prefix="designs-"))
        self.targets = {name: find_device(name, folder=folder) for name in DEVICES}
        self.costs = NetworkCosts(list(self.targets.values()))

    def figures(self, architecture: Architecture) -> dict[str, Any]:
        """Counts, scores, ρ by stage and latencies, in plain form."""
        costs = self.costs(architecture)
        ends = architecture_ends(architecture)
        conditions = self.targets[BUDGET_DEVICE].conditions
        launched = sum(
            len(operators(p.spec, p.in_size, conditions.batch_size, conditions.precision))
            for p in components(architecture, self.costs.num_classes)
        )
        return {
            "digest": architecture.digest,
            "resolution": architecture.resolution,
            "widths": list(architecture.widths),
            "depths": list(architecture.depths),
            "num_params": costs["num_params"],
            "macs": costs["macs"],
            "activations": costs["activations"],
            "launches": launched,
            "layers": ends[-1].layers,
            "combined": score_architecture("combined", architecture),
            "deepmad": score_architecture("deepmad", architecture),
            "effectiveness": effectiveness_of_ends(ends),
            "effectiveness_by_stage": [effectiveness_of_ends([end]) for end in ends],
            "latency_ms": {name: costs[on_device(LATENCY, name)] for name in DEVICES},
        }

    def by_component(self, architecture: Architecture) -> dict[str, float]:
        """Milliseconds of each component on the budget's device."""
        conditions = self.targets[BUDGET_DEVICE].conditions
        return {
            part.path: estimate_entry(conditions, (part.spec, part.in_size)).latency_ms
            for part in components(architecture, self.costs.num_classes)
        }
