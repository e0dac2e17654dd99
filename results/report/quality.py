"""The metric that a run is judged by, in the report's words.

A run with data is judged by ``accuracy``; one without by a closed-form ``score`` of networks that
nobody trained, which must never be taken for an accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

from results.report.data import ReportData
from search_space.metrics import ACCURACY, title_of


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How the report speaks of the metric that a run is judged by.

    Args:
        metric: its name in all metrics.
        noun: how sentences and the front's table call it.
        article: of the noun.
        ranked: the same as the subject of a sentence.
        compared: what the front's members are best in.
        axis: title of the chart's axis.
        full_name: in the table of baselines and, capitalised, on a tile.
        tile_note: what the tile says of the weights.
        treatment: the sentence at a table that says with what weights it was found.
        judged: what was done to an architecture that has it.
        lowest: the architectures that have least of it.
        overtaken: what front members are that a faster one beats once measured.
        verified: what an export was compared with.
        floor, ceiling: between which all its values lie, if any.
    """

    metric: str
    noun: str
    article: str
    ranked: str
    compared: str
    axis: str
    full_name: str
    tile_note: str
    treatment: str
    judged: str
    lowest: str
    overtaken: str
    verified: str
    floor: float | None = None
    ceiling: float | None = None


def quality_of(data: ReportData) -> Quality:
    """The words for what ``data`` is judged by."""
    if data.quality == ACCURACY:
        return Quality(
            metric=ACCURACY,
            noun="accuracy",
            article="an",
            ranked=ACCURACY,
            compared=f"validation {data.config.get('search', {}).get('objective', 'accuracy')}",
            axis=data.quality_title or "validation accuracy, inherited weights",
            full_name="validation accuracy",
            tile_note="inherited weights; not tested",
            treatment="Validation accuracy is with inherited weights",
            judged="evaluated",
            lowest="the least accurate",
            overtaken="less accurate than a faster one, by measured latency or by a few images",
            verified="the supernet's subnet",
            floor=0.0,
            ceiling=1.0,
        )
    noun = title_of(data.quality)
    return Quality(
        metric=data.quality,
        noun=noun,
        article="an" if noun.startswith(("a", "e", "i", "o", "u")) else "a",
        ranked=f"the {noun}",
        compared=noun,
        axis=data.quality_title or noun,
        full_name=noun,
        tile_note="untrained network",
        treatment=f"The {noun} is of untrained networks",
        judged="scored",
        lowest=f"those of the lowest {noun}",
        overtaken=f"of a lower {noun} than a faster one, by measured latency",
        verified="the untrained network",
    )
