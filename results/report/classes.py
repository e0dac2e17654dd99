"""Quality of the chosen network on each class: accuracy alone hides that a rare class is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from results.report.charts import thousands
from results.report.data import ReportData, SplitQuality, value
from results.report.tables import Cell, table_of
from search_space.metrics import ACCURACY, BALANCED_ACCURACY, LOSS, SHARE, format_metric, title_of

UNBALANCED = 2.0  # times as many images of a class as of another one
MATRIX = 20  # classes that a confusion matrix is drawn for
SPLIT = "test"
_FIGURES = {
    ACCURACY: title_of(ACCURACY),
    BALANCED_ACCURACY: title_of(BALANCED_ACCURACY),
    "macro_f1": "macro F1",
    "auc": "AUC",
    LOSS: title_of(LOSS),
}


def class_view(data: ReportData) -> dict[str, Any] | None:
    """Figures by split, classes with their recall, and the confusion matrix on the test images."""
    chosen = data.chosen
    if chosen is None or not chosen.quality:
        return None
    split = SPLIT if SPLIT in chosen.quality else next(iter(chosen.quality))
    quality = chosen.quality[split]
    names = class_names(chosen.class_names, len(quality["recalls"]))
    confusion = quality.get("confusion")
    return {
        "split": split,
        "figures": _figures(chosen.quality),
        "note": unbalanced_note(data),
        "table": _class_table(names, quality["recalls"], confusion),
        "names": names,
        "confusion": confusion if len(names) <= MATRIX else None,
    }


def class_names(names: Sequence[str], count: int) -> list[str]:
    """A name for each class, its number where it has none."""
    return [*names, *map(str, range(len(names), count))][:count]


def unbalanced_note(data: ReportData) -> str | None:
    """A note that classes are unbalanced, and what that does to the accuracy; None where not."""
    quality: SplitQuality = {} if data.chosen is None else data.chosen.quality.get(SPLIT, {})
    confusion = quality.get("confusion")
    if data.chosen is None or not confusion:
        return None
    counts = [sum(row) for row in confusion]
    present = [count for count in counts if count]
    if not present or max(present) < UNBALANCED * min(present):
        return None
    names = class_names(data.chosen.class_names, len(counts))
    rare, frequent = counts.index(min(present)), counts.index(max(present))
    balanced = format_metric(BALANCED_ACCURACY, quality[BALANCED_ACCURACY])
    return (
        f"Classes are unbalanced: {names[rare]} has {thousands(counts[rare])} of "
        f"{thousands(sum(counts))} test images, {names[frequent]} has "
        f"{thousands(counts[frequent])}. The accuracy of "
        f"{format_metric(ACCURACY, quality[ACCURACY])} is mostly that of frequent classes; with "
        f"all classes counted alike it is {balanced}."
    )


def _figures(quality: Mapping[str, SplitQuality]) -> dict[str, Any]:
    """A row a split."""
    rows = []
    for split, figures in quality.items():
        cells = [Cell("images", figures.get("images"), thousands(figures.get("images") or 0))]
        for name, title in _FIGURES.items():
            number = value(figures, name)
            shown = name if name in (ACCURACY, BALANCED_ACCURACY, LOSS) else "value"
            cells.append(Cell(title, number, format_metric(shown, number)))
        rows.append({"name": split, "cells": cells})
    caption = "The network on images that it was not trained with; balanced accuracy and macro F1 "
    caption += "count every class alike, however rare."
    return {**table_of("split", rows), "caption": caption}


def _class_table(
    names: Sequence[str], recalls: Sequence[float | None], confusion: Sequence[Sequence[int]] | None
) -> dict[str, Any]:
    """A row a class, the least recognised first."""
    rows = []
    for i, (name, recall) in enumerate(zip(names, recalls, strict=True)):
        cells = [Cell("recall", recall, SHARE.format(recall) if recall is not None else "–")]
        if confusion is not None:
            row = confusion[i]
            wrong = max((j for j in range(len(row)) if j != i), key=row.__getitem__, default=i)
            mistaken = f"{names[wrong]} ({thousands(row[wrong])})" if row[wrong] else "–"
            cells.insert(0, Cell("images", sum(row), thousands(sum(row))))
            cells.append(Cell("most often taken for", row[wrong], mistaken if wrong != i else "–"))
        rows.append({"name": name, "cells": cells})
    rows = [
        rows[i] for i in sorted(range(len(rows)), key=lambda i: (recalls[i] is None, recalls[i]))
    ]
    caption = "Recall: the share of a class's images that are recognised as it."
    return {**table_of("class", rows), "caption": caption}
