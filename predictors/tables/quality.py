"""The quality table: how much a trained network loses by another block at one of its places.

What replacing single blocks costs is taken to add up (LANA, Molchanov et al. 2021; Puzzle,
Bercovich et al. 2024), as latencies of components do, so the table of a parent is an additive
table, and whatever finds fronts of those finds the best networks around the parent. One Parquet
file holds it, with all provenance in the schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    InstanceOf,
    StringConstraints,
    model_validator,
)

from predictors.tables.additive import AdditiveTable, Values
from predictors.tables.correction import NotNegative
from predictors.tables.latency_table import MOST_PIXELS
from predictors.tables.parquet import LONGEST_TEXT, read_parquet, write_parquet
from search_space import Architecture, Block, Genes, SearchSpace
from search_space.boundary import parse_model
from search_space.errors import CorruptFileError, NasError, UsageError
from search_space.names import Digest
from search_space.parsing import parse_json

SCHEMA_VERSION = 1
_METADATA_KEY = b"nas.quality_table"
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("block", pa.string()),
        ("resolution", pa.int64()),
        ("loss", pa.float64()),
        ("loss_error", pa.float64()),
        ("kl", pa.float64()),
        ("kl_error", pa.float64()),
        ("accuracy", pa.float64()),
        ("accuracy_error", pa.float64()),
        ("images", pa.int64()),
        ("weights", pa.string()),
    ]
)
MEASURE_AGAIN = "Delete the file to measure the quality again."
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
Measure = Literal["loss", "kl", "blend"]


def _architecture(data: object) -> Architecture:
    try:
        return data if isinstance(data, Architecture) else Architecture.from_dict(data)
    except CorruptFileError as error:
        raise ValueError(str(error)) from None


_Parent = Annotated[Architecture, InstanceOf, BeforeValidator(_architecture)]


class MissingQualityError(NasError, LookupError):
    """Raised where a table lacks what a space asks for; the message names it."""


@dataclass(frozen=True)
class Change:
    """What one change of a parent does to its predictions of held-out images.

    Each standard error is that of the mean of differences, image by image.

    Attributes:
        loss: The increase of the mean cross entropy, in nats; negative where the change helps.
        kl: The mean divergence KL(parent ‖ changed) of the predicted probabilities, in nats.
        accuracy: The increase of the top-1 accuracy, a share.
        images: How many were seen.
        weights: Digest of the weights that the change brings, empty where it brings none.
    """

    loss: _Finite
    loss_error: NotNegative
    kl: NotNegative
    kl_error: NotNegative
    accuracy: _Finite
    accuracy_error: NotNegative
    images: _Count
    weights: Digest | Literal[""] = ""


Key = tuple[str, Block | None, int]
"""A change: a block's path, the block that stands there instead, and the parent's resolution. With
an empty path and no block, the change is that of the resolution alone."""


@dataclass(frozen=True)
class Source:
    """What a quality table was measured with; equal sources make equal tables.

    Attributes:
        parent: The architecture of the network that is changed.
        num_classes: Its outputs.
        weights: Digest of its weights.
        data: Digest of the held-out images and labels.
        calibration: Digest of the images that made the averages of batch norms, empty for none.
    """

    parent: _Parent
    num_classes: _Count
    weights: Digest
    data: Digest
    calibration: Digest | Literal[""]


@dataclass(frozen=True)
class QualityTable:
    """Changes of a parent, one at a time.

    Example:
        The front of predicted loss and latency, and how sure each prediction is::

            table = QualityTable.load(path)
            front = sweep(space, table.compile(space), latency, maximise=(False, False))
            errors = table.standard_error(space, front.genes)

    Args:
        source: What it was measured with.
        loss: The parent's mean cross entropy at its own resolution, in nats.
        accuracy: Its top-1 accuracy, a share.
        changes: By block and place, and by resolution.
        space: Digest of the space whose alternatives were measured last.
        versions: Of the packages that measured.
        created: When the last change was measured, UTC, ISO 8601.
    """

    source: Source
    loss: float
    accuracy: float
    changes: Mapping[Key, Change]
    space: str
    versions: Mapping[str, str]
    created: str

    def missing(self, space: SearchSpace) -> list[Key]:
        """Lists changes that ``space`` asks for and this table lacks.

        Raises:
            UsageError: The space is none around the parent, as ``asked`` says.
        """
        return [key for key in asked(space, self.source.parent) if key not in self.changes]

    def compile(self, space: SearchSpace, measure: Measure = "blend") -> AdditiveTable:
        """Builds the additive table that predicts what networks of ``space`` lose.

        Args:
            space: Around the parent: its macro style and widths, one depth in each stage.
            measure: ``loss`` predicts the mean cross entropy, as it was measured. ``kl`` predicts
                the divergence from the parent at its own resolution, which fewer images tell
                apart, but which counts against a change that it corrects the parent. ``blend``
                predicts the cross entropy by the mean of the measured increase and of the one that
                goes with the divergence, by least squares over all changes (none where it falls
                with it): the second errs less where images are few. What blocks lose is taken to
                be the same at all resolutions.

        Raises:
            MissingQualityError: A change is missing; the message names it.
            UsageError: The space is none around the parent.
        """
        loss, kl = self._shares(measure)
        base = 0.0 if measure == "kl" else self.loss
        return self._compile(space, lambda change: loss * change.loss + kl * change.kl, base)

    def standard_error(
        self, space: SearchSpace, genes: Genes, measure: Measure = "blend"
    ) -> Values:
        """Computes standard errors of predictions, shape (n, genes) to (n,).

        They are those of the sums as if the images of each change were drawn anew. What the sum
        itself misses is no part of them.

        Raises:
            MissingQualityError: A change is missing.
            UsageError: The space is none around the parent.
        """
        loss, kl = self._shares(measure)
        squares = self._compile(
            space,
            lambda change: (loss * change.loss_error) ** 2 + (kl * change.kl_error) ** 2,
            0.0,
        )
        return np.sqrt(squares.predict(genes))

    def _shares(self, measure: Measure) -> tuple[float, float]:
        """Factors of the increase of the loss and of the divergence."""
        if measure != "blend":
            return float(measure == "loss"), float(measure == "kl")
        loss = np.array([change.loss for change in self.changes.values()])
        kl = np.array([change.kl for change in self.changes.values()])
        slope = float(loss @ kl) / max(float(kl @ kl), 1e-300)
        return 0.5, 0.5 * max(slope, 0.0)

    def _compile(
        self, space: SearchSpace, value: Callable[[Change], float], base: float
    ) -> AdditiveTable:
        missing = self.missing(space)
        if missing:
            (path, block, side), more = missing[0], len(missing) - 1
            what = f"{block.to_dict()} at {path}" if block else f"resolution {side}"
            raise MissingQualityError(
                f"the quality table lacks {what}{f' and {more} more' if more else ''} of space "
                f"{space.name!r}; give these weights in the bank and measure the quality again."
            )
        parent, num = self.source.parent, len(space.resolutions)

        def of(path: str, block: Block | None, own: Block | None, side: int) -> float:
            same = block == own and side == parent.resolution
            return 0.0 if same else value(self.changes[path, block, side])

        blocks, transitions = [], []
        for i, (stage, own) in enumerate(zip(space.stages, parent.stages, strict=True)):
            values = np.zeros((stage.max_depth, 1, max(map(len, stage.positions))))
            for j, choices in enumerate(stage.positions):
                for c, block in enumerate(choices):
                    path = f"stages.{i}.blocks.{j}"
                    values[j, 0, c] = of(path, block, own.blocks[j], parent.resolution)
            entry = np.zeros((1, 1, 1))
            if space.enters_by_block:
                entry = values[:1, :, : len(stage.positions[0])].copy()
                values[0] = 0.0
            blocks.append(np.repeat(values[None], num, axis=0))
            transitions.append(np.repeat(entry[None], num, axis=0))
        stem = [[base + of("", None, None, side)] for side in space.resolutions]
        return AdditiveTable(
            space, np.array(stem), tuple(blocks), tuple(transitions), np.zeros((num, 1))
        )

    def with_changes(self, changes: Mapping[Key, Change], created: str) -> QualityTable:
        """Adds changes, in place of those of the same keys, measured at the time ``created``."""
        return replace(self, changes={**self.changes, **changes}, created=created)

    # Files ------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Replaces ``path`` atomically by this table."""
        columns: dict[str, list[Any]] = {
            "path": [place for place, _, _ in self.changes],
            "block": [_to_json(block) for _, block, _ in self.changes],
            "resolution": [side for _, _, side in self.changes],
        }
        for field in fields(Change):
            columns[field.name] = [getattr(change, field.name) for change in self.changes.values()]
        parent = self.source.parent
        plain = {"parent": {**parent.to_dict(), "digest": parent.digest}}
        metadata = {**vars(self), "source": {**vars(self.source), **plain}}
        del metadata["changes"]
        metadata["schema_version"] = SCHEMA_VERSION
        write_parquet(path, pa.table(columns, schema=_SCHEMA), _METADATA_KEY, metadata)

    @classmethod
    def load(cls, path: Path) -> QualityTable:
        """Loads a table that ``save`` wrote.

        Raises:
            CorruptFileError: The file is missing, cut short, of another schema version, larger than
                any table, or holds what no measurement gives.
        """
        try:
            cells, metadata = read_parquet(path, _METADATA_KEY, _SCHEMA, SCHEMA_VERSION)
            stated = parse_model(metadata, _Stated, path)
            rows = parse_model(cells, list[_Row], path)
            values = parse_model(cells, list[Change], path)
        except CorruptFileError as error:
            raise CorruptFileError(f"{error} {MEASURE_AGAIN}") from None
        changes = {row.key: change for row, change in zip(rows, values, strict=True)}
        if len(changes) < len(rows):
            raise CorruptFileError(f"{path}: changes are there twice. {MEASURE_AGAIN}")
        return cls(changes=changes, **dict(stated))


def asked(space: SearchSpace, parent: Architecture) -> list[Key]:
    """Lists the changes that lead from a parent to the networks of ``space``, one at a time.

    Raises:
        UsageError: The space is none around the parent: its macro style, strides or widths are
            others, or a stage has several widths or depths.
    """
    for name, own, choices in [
        ("macro style", parent.macro, space.macro),
        ("strides", parent.strides, space.strides),
        ("widths", [(width,) for width in parent.widths], [stage.widths for stage in space.stages]),
        ("depths", [(depth,) for depth in parent.depths], [stage.depths for stage in space.stages]),
    ]:
        if own != choices:
            raise UsageError(
                f"the {name} of space {space.name!r} ({choices}) are not those of the parent "
                f"({own}): a quality table holds changes of single blocks. Take a space with the "
                "parent's own, and 'skip' among the blocks for less depth."
            )
    sides = (side for side in space.resolutions if side != parent.resolution)
    keys: list[Key] = [("", None, side) for side in sides]
    for i, (stage, own) in enumerate(zip(space.stages, parent.stages, strict=True)):
        for j, choices in enumerate(stage.positions):
            others = (block for block in choices if block != own.blocks[j])
            keys += [(f"stages.{i}.blocks.{j}", block, parent.resolution) for block in others]
    return keys


def _to_json(block: Block | None) -> str:
    return "" if block is None else json.dumps(block.to_dict(), sort_keys=True)


def _block(text: object) -> Block | None:
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise ValueError("this is no block")
    return Block.from_dict(parse_json(text)) if text else None


class _Row(BaseModel):
    path: Annotated[str, StringConstraints(pattern=r"^(stages\.\d{1,3}\.blocks\.\d{1,3})?$")]
    block: Annotated[InstanceOf[Block] | None, BeforeValidator(_block)]
    resolution: Annotated[int, Field(ge=1, le=MOST_PIXELS)]

    @model_validator(mode="after")
    def _of_one_sort(self) -> Self:
        if (self.path == "") != (self.block is None):
            raise ValueError("a block has a path, and a resolution has none")
        return self

    @property
    def key(self) -> Key:
        return self.path, self.block, self.resolution


class _Stated(BaseModel):
    source: Source
    loss: NotNegative
    accuracy: Annotated[float, Field(ge=0, le=1)]
    space: Digest
    versions: dict[str, str]
    created: str
