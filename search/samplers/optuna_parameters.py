"""Rows of genes as Optuna parameters, suggested as the architecture takes shape.

A block beyond the depth is not a parameter of the trial. Resolution, widths and depths are
ordered, hence integers that count the choices; blocks are categories. Names read like the
architecture: ``stages.1.width``, ``stages.1.blocks.0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.trial import BaseTrial, FixedTrial

from search_space import Block, SearchSpace
from search_space.stage_space import INACTIVE, Genes


def suggest_row(space: SearchSpace, trial: BaseTrial) -> Genes:
    """Row of the architecture that a trial suggests, shape (genes,)."""
    row = np.full(space.num_genes, INACTIVE, dtype=np.int64)
    row[0] = trial.suggest_int("resolution", 0, len(space.resolutions) - 1)
    for i, stage in enumerate(space.stages):
        column = int(space.width_columns[i])
        row[column] = trial.suggest_int(f"stages.{i}.width", 0, len(stage.widths) - 1)
        row[column + 1] = trial.suggest_int(f"stages.{i}.depth", 0, len(stage.depths) - 1)
        start = space.block_columns(i).start
        for j in range(stage.depths[row[column + 1]]):
            names = block_names(stage.positions[j])
            chosen = trial.suggest_categorical(f"stages.{i}.blocks.{j}", names)
            row[start + j] = names.index(chosen)
    return row


def parameters_of(space: SearchSpace, row: Genes) -> dict[str, Any]:
    """Parameters of the trial that suggests ``row``, of shape (genes,)."""
    result: dict[str, Any] = {"resolution": int(row[0])}
    for i, stage in enumerate(space.stages):
        column = int(space.width_columns[i])
        result[f"stages.{i}.width"] = int(row[column])
        result[f"stages.{i}.depth"] = int(row[column + 1])
        for j, choice in enumerate(row[space.block_columns(i)]):
            if choice != INACTIVE:
                result[f"stages.{i}.blocks.{j}"] = block_names(stage.positions[j])[choice]
    return result


def row_of(space: SearchSpace, parameters: Mapping[str, Any]) -> Genes | None:
    """Row of a stored trial's parameters, shape (genes,); None where they are not complete."""
    try:
        return suggest_row(space, FixedTrial(dict(parameters)))
    except ValueError:  # the process died while they were suggested
        return None


def block_names(blocks: tuple[Block, ...]) -> list[str]:
    """One name a choice, as ``depthwise_conv(kernel=3,mlp_ratio=2.0)``."""
    result = []
    for block in blocks:
        params = ",".join(f"{key}={value}" for key, value in block.traits.items())
        result.append(f"{block.label}({params})")
    return result
