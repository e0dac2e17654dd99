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
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = [(FORMATS[e.format], e, load_line(e.format, Path("."))) for e in exported]
    return environment.get_template("card.md.j2").render(
        card=card,
        network=network,
        preprocessing=preprocessing,
        side=preprocessing.resolution,
        exported=formats,
    )
