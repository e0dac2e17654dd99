"""What operators ask of a GPU, kernel by kernel: times at full speed, before any fitted constant.

Matrix products are charged by tiles and waves: a multiprocessor computes one tile at a time, so a
product takes as many rounds as the fullest multiprocessor has tiles, at the rate that the tile's
shape allows, for the best of the usual tiles and splits of the inner dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from predictors.estimates.datasheets import Datasheet
from predictors.operators import Operator, operators
from predictors.tables.additive import Entry, Values
from predictors.tables.conditions import Conditions
from search_space.errors import UsageError

KINDS = (
    *("linear", "pointwise", "convolution", "grouped", "batched", "attention"),
    *("norm", "elementwise", "copy", "pooling", "reduction"),
)
"""Kinds of kernels that have constants of their own; the first six multiply matrices."""

_COPIES = {
    *("clone", "copy_", "to", "_to_copy", "contiguous", "reshape", "cat", "stack", "roll", "flip"),
    *("index", "_unsafe_index", "constant_pad_nd", "reflection_pad2d", "repeat", "flatten"),
    *("im2col", "col2im", "as_strided_"),
}
_POOLS = {"avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d"}
_REDUCTIONS = {"mean", "sum", "var", "amax", "max", "softmax", "linalg_vector_norm"}
_NORMS = {"layer_norm", "group_norm", "native_layer_norm", "native_group_norm"}
_TILES = np.array(
    [(256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (16, 64)]
)
_SPLITS = np.array([1, 2, 4, 8, 16])


@dataclass(frozen=True, eq=False)
class Kernels:
    """Kernels as columns, all of shape (n,).

    ``kind`` is an index of ``KINDS``; ``count`` products of (m, k) by (k, n) are one launch;
    ``bytes`` are moved, ``elements`` the larger of what is read first and what is written.
    """

    kind: Values
    count: Values
    m: Values
    n: Values
    k: Values
    bytes: Values
    elements: Values

    @classmethod
    def of(cls, launched: Iterable[Operator]) -> Kernels:
        """Sorts operators into kinds of kernels."""
        rows = [_row(op) for op in launched]
        return cls(*np.array(rows, dtype=np.float64).reshape(-1, 7).T)


@lru_cache(maxsize=65536)
def _row(op: Operator) -> tuple[float, ...]:
    kind, count, m, n, k = _shape(op)
    elements = max(
        math.prod(op.writes[0].shape) if op.writes else 0,
        math.prod(op.reads[0].shape) if op.reads else 0,
    )
    return KINDS.index(kind), count, m, n, k, op.bytes, elements


def _shape(op: Operator) -> tuple[str, int, int, int, int]:
    """Returns the kind, and how many products of which sizes it multiplies."""
    if op.activations and op.name == "scaled_dot_product_attention":
        (*many, queries, channels), keys = op.reads[0].shape, op.reads[1].shape[-2]
        return "attention", math.prod(many), queries, keys, 2 * channels
    if op.activations and op.layer:
        weight, written = op.reads[1].shape, op.writes[0].shape
        inner = math.prod(weight[1:])
        if op.name == "linear":
            return "linear", 1, math.prod(written[:-1]), weight[0], inner
        groups = max(1, op.reads[0].shape[1] // weight[1])
        rows = written[0] * math.prod(written[2:])
        if groups > 1:
            return "grouped", groups, rows, weight[0] // groups, inner
        return ("pointwise" if inner == weight[1] else "convolution"), 1, rows, weight[0], inner
    if op.activations and len(op.reads) > 1:
        first, second = op.reads[0].shape, op.reads[1].shape
        return "batched", math.prod(first[:-2]), first[-2], second[-1], first[-1]
    for kind, names in (
        ("norm", _NORMS),
        ("copy", _COPIES),
        ("pooling", _POOLS),
        ("reduction", _REDUCTIONS),
    ):
        if op.name in names:
            return kind, 0, 0, 0, 0
    return "elementwise", 0, 0, 0, 0


def product_us(kernels: Kernels, sheet: Datasheet, number_format: str) -> Values:
    """Computes microseconds of matrix products, shape (n,), 0 for what multiplies nothing.

    For tiles of h = t_m · t_n / (t_m + t_n) multiply-adds per element loaded, at a share
    2.23 h / (h + 112) of the peak, with 90 steps to fill the pipeline and some cycles a wave; and
    never faster than the share of the peak that power allows to be sustained.
    """
    clock, many = sheet.clock_ghz, sheet.multiprocessors
    peak = sheet.peak(number_format) * 1e6 / many  # operations per µs of one
    shape = (len(kernels.m), len(_TILES), len(_SPLITS))
    m, n, k, count = (x[:, None, None] for x in (kernels.m, kernels.n, kernels.k, kernels.count))
    rows, columns = (_TILES[:, i][None, :, None] for i in (0, 1))
    splits = np.broadcast_to(_SPLITS, shape)
    height = rows * columns / (rows + columns)
    rate = peak * 2.23 * height / (height + 112)
    waves = np.ceil(count * np.ceil(m / rows) * np.ceil(n / columns) * splits / many)
    each = 2 * rows * columns * (k / splits + 90) / rate + 3.6 / clock
    split = splits > 1
    partial = 8 * count * m * n * splits / (25 * many * clock * 1e3)  # through the second cache
    total = waves * each + 1.6 / clock + split * (partial + 2 / clock)
    flops = 2 * kernels.count * kernels.m * kernels.n * kernels.k
    sustained = flops / (peak * many * sheet.sustained_share(number_format))
    return np.where(kernels.count > 0, np.maximum(total.min(axis=(1, 2)), sustained), 0.0)


@dataclass(frozen=True, eq=False)
class Demand:
    """Milliseconds of kernels at full speed: computing and moving, each of shape (n,)."""

    kind: Values
    compute_ms: Values
    memory_ms: Values
    clock_ghz: float

    @classmethod
    def of(cls, launched: Sequence[Operator], sheet: Datasheet, number_format: str) -> Demand:
        """Computes what a device needs; products on tensor cores have ``number_format``.

        Grouped convolutions are charged to the plain cores, kernels without products one element
        a clock and multiprocessor.
        """
        kernels = Kernels.of(launched)
        compute = product_us(kernels, sheet, number_format)
        grouped = kernels.kind == KINDS.index("grouped")
        flops = 2 * kernels.count * kernels.m * kernels.n * kernels.k
        compute = np.where(grouped, flops / (sheet.peak("fp32") * 1e6), compute)
        per_us = sheet.multiprocessors * sheet.clock_ghz * 1e3
        compute = np.where(kernels.count > 0, compute, kernels.elements / per_us)
        memory = kernels.bytes / (sheet.bandwidth_gb_s * 1e3)
        return cls(kernels.kind.astype(int), compute / 1e3, memory / 1e3, sheet.clock_ghz)

    @classmethod
    def of_entry(cls, entry: Entry, conditions: Conditions, sheet: Datasheet) -> Demand:
        """Computes the demand of an entry under ``conditions``, but on the device of ``sheet``.

        Raises:
            UsageError: The entry is in int8, of which no estimate knows anything.
        """
        if entry[0].quantised:
            raise UsageError(
                f"{entry[0].label} in int8: its latency cannot be estimated. Measure it on the "
                "device (`nas profile`), or take precision fp32 or fp16."
            )
        launched = operators(*entry, conditions.batch_size, conditions.precision)
        return cls.of(
            launched, sheet, sheet.number_format(conditions.precision, conditions.runtime)
        )
