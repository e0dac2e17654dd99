"""Performance-aware sampling (Tang et al., "ElasticViT", ICCV 2023): more of what does well.

On top of complexity-aware sampling each bank remembers its best subnets. As training goes on,
more of the subnets are drawn from what is remembered, and the rest prefers wide to deep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from search_space.errors import RunError
from search_space.space import SearchSpace
from search_space.stage_space import Genes
from supernet.training.strategies.base import Observation
from supernet.training.strategies.complexity import ComplexitySampler

FIRST_SHARE, MORE_SHARE, PARTS = 0.2, 0.15, 6


@dataclass(eq=False)
class PerformanceSampler(ComplexitySampler):
    """Samples as ``ComplexitySampler``, with a memory of (row, relative loss) for each bank.

    A bank remembers ``capacity`` rows, the heaviest ``heaviest_capacity``; a row seen again has its
    new loss, and where the memory is full a better row takes the place of the worst. Once it is
    half full, each subnet of the bank is drawn from memory with probability ``exploitation``, by
    softmax of −loss (nats). Otherwise, of ``candidates`` rows of the bank, which therefore cost
    about the same, that with the largest mean over stages of ln(width / depth) is taken.

    Losses are relative to the step's first subnet, that is the largest, or with a fixed teacher
    to the step's smallest: it is much the same for all steps of a bank, the first is not.
    """

    total_steps: int = field(kw_only=True)
    capacity: int = field(default=150, kw_only=True)
    heaviest_capacity: int = field(default=50, kw_only=True)
    candidates: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.capacities = [self.capacity] * (len(self.banks) - 1) + [self.heaviest_capacity]
        self.memory: list[dict[tuple[int, ...], float]] = [{} for _ in self.banks.rows]

    def exploitation(self, bank: int, step: int) -> float:
        """The probability of drawing from memory: 0.2, and 0.15 more each sixth of the training.

        It is 0 until the bank's memory is half full.
        """
        if 2 * len(self.memory[bank]) < self.capacities[bank]:
            return 0.0
        done = min(PARTS * step // self.total_steps, PARTS - 1)
        return FIRST_SHARE + MORE_SHARE * done

    def observe(self, step: int, observations: Sequence[Observation]) -> None:
        seen: list[tuple[int, Observation, float]] = []
        reference = 0.0
        for item in reversed(observations):  # a worker's smallest comes after its others
            if item.subnet.role == "smallest" and self.teacher:
                reference = item.relative_loss
            elif item.subnet.bank is not None:
                seen.append((item.subnet.bank, item, item.relative_loss - reference))
        rows = self.banks.space.encode([item.subnet.architecture for _, item, _ in seen])
        for row, (bank, _, loss) in zip(rows[::-1].tolist(), seen[::-1], strict=True):
            self._remember(bank, tuple(row), loss)

    def _remember(self, bank: int, row: tuple[int, ...], loss: float) -> None:
        memory = self.memory[bank]
        if row not in memory and len(memory) >= self.capacities[bank]:
            worst = max(memory, key=lambda known: memory[known])
            if memory[worst] <= loss:
                return
            del memory[worst]
        memory[row] = loss

    def _draw(self, bank: int, step: int, rng: np.random.Generator) -> Genes:
        memory, rows, space = self.memory[bank], self.banks.rows[bank], self.banks.space
        known = int((rng.random(self.num_random) < self.exploitation(bank, step)).sum())
        known = min(known, len(memory))
        # the largest of −loss + Gumbel noise are draws by softmax without replacement
        scores = rng.gumbel(size=len(memory)) - np.array(list(memory.values()))
        remembered = np.array(list(memory), dtype=np.int64).reshape(-1, space.num_genes)
        exploited = remembered[np.argsort(-scores)[:known]]
        others = rng.integers(len(rows), size=(self.num_random - known, self.candidates))
        wide = wideness(space, rows[others.ravel()]).reshape(others.shape)
        explored = rows[np.take_along_axis(others, wide.argmax(axis=1)[:, None], axis=1)[:, 0]]
        return np.concatenate([exploited, explored])

    def state_dict(self) -> dict[str, Any]:
        return {"memory": [[[list(row), loss] for row, loss in m.items()] for m in self.memory]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["memory"]) != len(self.banks):
            raise RunError(
                f"the checkpoint remembers subnets of {len(state['memory'])} banks, but there are "
                f"{len(self.banks)}; resume with the same costs and number of banks."
            )
        self.memory = [{tuple(row): loss for row, loss in bank} for bank in state["memory"]]


def wideness(space: SearchSpace, rows: Genes) -> npt.NDArray[np.float64]:
    """The mean over stages of ln(width / depth), without skipped blocks, shape (n,)."""
    total = np.zeros(len(rows))
    for i, (stage, column) in enumerate(zip(space.stages, space.width_columns, strict=True)):
        depths = np.maximum(space.present(rows, i).sum(axis=1), 1)
        total += np.log(np.asarray(stage.widths)[rows[:, column]] / depths)
    return total / len(space.stages)
