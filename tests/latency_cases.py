"""What tests of latencies share: short measurements, small spaces, a table of known numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tiny_job import known_table

from predictors.measuring.bench import Limits
from predictors.tables.conditions import Conditions, DeviceIdentity
from predictors.tables.folder import table_path
from predictors.tables.latency_table import LatencyTable
from search_space import Block, Macro, Mixer, SearchSpace, StageSpace, metaformer

QUICK = Limits(min_rounds=3, max_rounds=4, min_seconds=0.0)
CLASSES = 5
MACRO = Macro(stem_kernel=2, stem_stride=2)
POOLING = metaformer(Mixer.of("pooling"), 2.0)
ATTENTION = metaformer(Mixer.of("window_attention", window=4, head_dim=8), 2.0)
PHONE = DeviceIdentity("cpu", "Phone 9", 8, "NEON")


def small_space(
    later_widths: Sequence[int] = (8, 16),
    depths: Sequence[int] = (1, 2),
    blocks: Sequence[Block] = (POOLING, ATTENTION),
) -> SearchSpace:
    """Images of 16 pixels; widths 8 and 16 in the first of four stages."""
    widths = [(8, 16), *[tuple(later_widths)] * 3]
    stages = tuple(StageSpace(each, tuple(depths), tuple(blocks)) for each in widths)
    return SearchSpace("small", MACRO, (16,), stages)


def made_up_table(space: SearchSpace, conditions: Conditions) -> LatencyTable:
    """Known numbers instead of measured ones, corrected by 0.5 ms + 1.25 × sum."""
    return replace(known_table(space, CLASSES), conditions=conditions)


def phone_table(space: SearchSpace, batch_size: int = 1, name: str = "phone") -> LatencyTable:
    """Another machine's table, on disk."""
    table = known_table(space)
    conditions = replace(table.conditions, device=PHONE, batch_size=batch_size)
    table = replace(table, conditions=conditions, name=name)
    table.save(table_path(conditions))
    return table
