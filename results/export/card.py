"""The README of an export: what it is, how it is loaded, what it was judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results.export.formats import FORMATS, load_line
from results.report.data import Export
from search_space.preprocessing import Preprocessing
from supernet.network.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Content of an export's README besides how to load it.

    Example:
        >>> ModelCard(title="Flowers", metrics={"test accuracy": "91 %"}, class_names=names)
    """

    title: str
    metrics: Mapping[str, str] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    trained_on: str = "nothing: the weights are random"
    notes: Sequence[str] = ()


def model_card(
    network: Backbone, exported: Sequence[Export], preprocessing: Preprocessing, card: ModelCard
) -> str:
    """The README of an export, in Markdown."""
    side = preprocessing.resolution
    lines = [
        f"# {card.title}",
        "",
        f"Architecture `{network.architecture.digest}`: {network.architecture}.",
        f"Trained on: {card.trained_on}.",
        "",
    ]
    if card.metrics:
        lines += ["| metric | value |", "| --- | --- |"]
        lines += [f"| {key} | {value} |" for key, value in card.metrics.items()]
        lines.append("")
    lines += [
        "## Input and output",
        "",
        f"`images`: float32, (batch, 3, {side}, {side}), any batch size. {preprocessing} "
        f"`logits`: float32, (batch, {network.num_classes}).",
        "",
        "## Loading",
        "",
    ]
    for item in exported:
        kind = FORMATS[item.format]
        lines += [
            f"{kind.file}, {kind.needs}; checked on export, logits within "
            f"{item.max_difference:.1e} of the network's:",
            "",
            "```python",
            load_line(item.format, Path(".")),
            "```",
            "",
            kind.hint.format(side=side),
            "",
        ]
    if card.class_names:
        shown = ", ".join(map(str, card.class_names[:100]))
        lines += ["## Classes", "", f"In the order of the logits: {shown}.", ""]
    if card.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in card.notes), ""]
    return "\n".join(lines)
