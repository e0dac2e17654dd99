"""What became of each block of a parent, as a picture with a row a stage, and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from results.report.charts import format_metric, signed
from results.report.inheritance import BlockFate, Change
from results.report.tables import Cell, table_of
from results.report.words import block_colours, block_title
from search_space.blocks import Block
from search_space.metrics import LATENCY

PICTURE_WIDTH, LEFT = 760.0, 84.0
MOST_IN_ROW, WIDEST = 12, 108.0
CELL, GAP = 44.0, 6.0
LETTER = 6.3  # width of one in a cell


@dataclass(frozen=True)
class Fate:
    """What a block became.

    Args:
        block: The one that is there now.
        share: Of the channels inside the parent's block, those that are left.
        changes: What else is another, in words.
    """

    block: Block
    share: float
    changes: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether it is the parent's block as it was."""
        return not self.block.skipped and self.share == 1 and not self.changes

    @property
    def resized(self) -> bool:
        """Whether it has more or fewer channels inside than the parent's block, and some."""
        return self.share not in (0, 1)

    @property
    def words(self) -> str:
        """All of it in a few words."""
        if self.kept or self.block.skipped:
            return "skipped" if self.block.skipped else "kept"
        width = "cut" if self.share < 1 else "widened"
        cut = [f"{width} to {percent(self.share)}"] if self.resized else []
        return ", ".join([*cut, *self.changes])


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f}\u00a0%"


def fate_of(fate: BlockFate) -> Fate:
    """Compares the block at a place with the parent's.

    Raises:
        InvalidArchitectureError, UnknownNameError: One of the two is no block.
    """
    before, after = Block.from_dict(dict(fate.before)), Block.from_dict(dict(fate.after))
    if after.skipped:
        return Fate(after, 0.0, ())
    both = [key for key in fate.widths_before if key in fate.widths_after]
    whole = sum(fate.widths_before[key] for key in both)
    share = sum(fate.widths_after[key] for key in both) / whole if whole else 1.0
    if fate.widths_before and not fate.widths_after:
        share = 0.0  # such as a linear map, which has nothing inside
    if before.label != after.label:
        return Fate(after, share, (f"{block_title(after.label).lower()} instead",))
    changes = (
        f"{key.replace('_', ' ')} {before.values[key]} → {value}"
        for key, value in after.values.items()
        if key not in fate.widths_before and before.values.get(key, value) != value
    )
    return Fate(after, share, tuple(changes))


def fates_picture(blocks: Sequence[BlockFate]) -> dict[str, Any] | None:
    """Cells by stage, filled as far as channels inside are left; None without blocks."""
    if not blocks:
        return None
    fates = {(b.stage, b.position): fate_of(b) for b in blocks}
    labels = [fate.block.label for fate in fates.values() if not fate.block.skipped]
    colours = block_colours(labels)
    stages = [list(group) for _, group in groupby(blocks, key=lambda b: b.stage)]
    columns = min(MOST_IN_ROW, max(map(len, stages)))
    width = min(WIDEST, (PICTURE_WIDTH - LEFT) / columns - GAP)
    rows, cells, y = [], [], 0.0
    for group in stages:
        rows.append({"y": y + 0.4 * CELL, "number": group[0].stage + 1, "blocks": len(group)})
        for i, block in enumerate(group):
            row, column = divmod(i, columns)
            fate = fates[block.stage, block.position]
            top, height = y + row * (CELL + GAP), round(CELL * min(fate.share, 1.0), 2)
            cells.append(
                {
                    "x": round(LEFT + column * (width + GAP), 2),
                    "y": top,
                    "filled_y": round(top + CELL - height, 2),
                    "filled": height,
                    "colour": colours.get(fate.block.label),
                    "lines": list(_lines(fate, width)),
                    "title": f"{_path(block)}: {fate.words}{_said(block.change)}",
                }
            )
        y += ((len(group) - 1) // columns + 1) * (CELL + GAP) + GAP
    return {
        "width": PICTURE_WIDTH,
        "height": y - 2 * GAP,
        "cell": {"width": round(width, 2), "height": CELL},
        "rows": rows,
        "cells": cells,
        "legend": [(block_title(name), colours[name], labels.count(name)) for name in colours],
        "summary": _summary(list(fates.values())),
    }


def _lines(fate: Fate, width: float) -> Iterator[str]:
    """The text in a cell, short enough for it."""
    if fate.kept or fate.block.skipped:
        yield fate.words
        return
    if fate.resized:
        yield percent(fate.share)
    for change in fate.changes[:1]:
        name, _, value = change.partition(" → ")
        short = f"{name.rpartition(' ')[0]} {value}" if value else change.removesuffix(" instead")
        yield short if LETTER * len(short) < width else "other"


def _summary(fates: Sequence[Fate]) -> str:
    """A sentence on how many blocks became what."""
    left = [fate for fate in fates if not fate.block.skipped]
    counts = {
        "kept": sum(fate.kept for fate in fates),
        "narrower inside": sum(0 < fate.share < 1 for fate in left),
        "changed in kernel, mixer or kind": sum(bool(fate.changes) for fate in left),
        "skipped": len(fates) - len(left),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"Of the parent's {len(fates)} blocks: {said}."


def _path(block: BlockFate) -> str:
    return f"stages.{block.stage}.blocks.{block.position}"


def _said(change: Change | None) -> str:
    if change is None or change.loss is None:
        return ""
    return f"; the loss alone grows by {signed(change.loss, 4)}"


def fates_table(
    blocks: Sequence[BlockFate], resolution: Change | None, sides: tuple[int, int]
) -> dict[str, Any] | None:
    """Each block with its channels inside, and what its change loses and saves.

    Args:
        blocks: Of the parent; without any there is no table.
        resolution: What another resolution does, if there is another.
        sides: Resolutions of the parent and of the chosen network.
    """
    rows = []
    for block in blocks:
        fate = fate_of(block)
        before = sum(block.widths_before.values())
        after = sum(block.widths_after.values())
        text = f"{after} of {before}" if before else ""
        inside = Cell("channels inside", after if before else None, text)
        rows.append(_row(_path(block), fate.words, inside, block.change))
    if rows and resolution is not None:
        nothing = Cell("channels inside", None, "")
        rows.append(_row("resolution", f"{sides[0]} → {sides[1]} px", nothing, resolution))
    return table_of("block", rows) if rows else None


def _row(name: str, note: str, inside: Cell, change: Change | None) -> dict[str, Any]:
    loss = error = saved = None
    if change is not None:
        loss, error, saved = change.loss, change.loss_error, change.saved_ms
    cells = [
        inside,
        Cell(
            "loss, by the table",
            loss,
            "" if loss is None else signed(loss, 4),
            "" if error is None else f"± {error:.4f}",
        ),
        Cell("latency saved", saved, "" if saved is None else format_metric(LATENCY, saved)),
    ]
    return {"name": name, "note": note, "cells": cells}
