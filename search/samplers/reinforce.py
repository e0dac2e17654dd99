"""Compression by a policy that REINFORCE trains (Ashok et al. 2018, N2N).

The policy (``policy.py``) removes and shrinks layers of the largest network. Published are two
stages, one after the other; here both act in each roll-out, since what they leave has to meet the
limits, and both learn from its reward R = (A / A_parent) · C (2 − C), where C is the part of the
cost that is saved.
"""

from __future__ import annotations

import numpy as np
import torch

from search.problem import Problem, Values
from search.samplers.archive import Judged, row_keys
from search.samplers.policy import Layers, Policy
from search.samplers.proposals import PopulationSampler
from search_space.stage_space import Genes

ROLL_OUTS = 5  # of an update
REMOVAL_RATE, SHRINKAGE_RATE = 0.003, 0.1
DECAY = 0.9  # of the running mean of rewards
LENIENT = 15  # updates until a missed limit counts as much as an invalid network
DRY_ROUNDS = 8  # of roll-outs that bring nothing new, until the policy begins anew
FAILED = -1.0


class Reinforce(PopulationSampler):
    """Proposes roll-outs of a policy that is rewarded for accuracy at little cost.

        sampler = Reinforce(problem, seed=0)

    Roll-outs that miss a limit and those that are known already teach it at once and are never
    evaluated. A missed limit's reward is (ε − 1) + ε R with ε = max(0, 1 − t/15)⁴ after t updates,
    as published, where R is 0 for want of an evaluation. A policy that has nothing new to propose
    begins anew.

    Args:
        problem, seed: as of ``PopulationSampler``; there is no first population.
        policy: one that was trained before, on any space; None for a new one.
        rates: of Adam for removal and for shrinkage, as published. Rewards rise more steadily with
            0.01 for both.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        policy: Policy | None = None,
        rates: tuple[float, float] = (REMOVAL_RATE, SHRINKAGE_RATE),
    ) -> None:
        super().__init__(problem, seed=seed, population=0)
        self._initial = self._no_rows()
        space = problem.space
        self._layers, self._rates = Layers.of(space), rates
        self._largest = space.encode([space.largest])
        self._whole = problem.cost_axis(self._largest)[0]
        metric = problem.cost_metric
        self._saves = metric in [o.metric for o in problem.objectives]
        self._judged = [k for k, o in enumerate(problem.objectives) if o.metric != metric]
        self._best = np.full(len(self._judged), np.nan)
        self._known: dict[bytes, float] = {}
        self._open: set[bytes] = set()
        self._rewarded: list[tuple[Genes, float]] = []
        self._start(policy or Policy(seed))

    def _start(self, policy: Policy) -> None:
        self.policy, self._updates, self._baseline = policy, 0, np.nan
        parts = zip((policy.removal, policy.shrinkage), self._rates, strict=True)
        self._adams = [torch.optim.Adam(weights, lr=rate) for weights, rate in parts]

    def _propose(self, n: int) -> Genes:
        rows, dry = self._no_rows(), 0
        if len(self._layers.genes) == 0:
            return rows  # a single network, which is no decision
        while len(rows) < n and dry < 2 * DRY_ROUNDS:
            drawn = self.policy.sample(self._layers, self._largest, ROLL_OUTS, self._rng)
            drawn = np.where(self.problem.space.active(drawn), drawn, -1)
            violations = self.problem.cheap_violation(drawn)
            before = len(rows)
            for row, violation, key in zip(drawn, violations, row_keys(drawn), strict=True):
                if violation > 0:
                    self._reward(row, self._missed())
                elif key in self._known:
                    self._reward(row, self._known[key])
                elif key not in self._open and len(rows) < n:
                    fresh = self._screen.fresh(row[None], 1)
                    self._open |= set(row_keys(fresh))
                    rows = np.concatenate([rows, fresh])
            self._update()
            dry = 0 if len(rows) > before else dry + 1
            if dry == DRY_ROUNDS:
                self._start(Policy(int(self._rng.integers(2**31))))
        return rows

    # Rewards ----------------------------------------------------------------------------------

    def _learn(self, told: Judged) -> None:
        for row, key, results in zip(
            told.genes, row_keys(told.genes), told.objectives[:, self._judged], strict=True
        ):
            self._best = np.fmin(self._best, results)
            reward = self._of_cost(row) * self._of_quality(results)
            self._known[key] = reward = reward if np.isfinite(reward) else FAILED
            if key in self._open:
                self._open.remove(key)
                self._reward(row, reward)
        self._update()

    def _of_quality(self, results: Values) -> float:
        """A / A_parent, with the best that was told instead of the parent's.

        The parent misses the limits as a rule and is not evaluated, and Adam knows no scale. What
        is minimised counts by its inverse.
        """
        signs = np.array([self.problem.objectives[k].sign for k in self._judged])
        worse = (results - self._best) / np.where(self._best == 0, 1.0, np.abs(self._best))
        return float(np.where(signs > 0, 1 / (1 + worse), np.maximum(1 - worse, 0.0)).prod())

    def _of_cost(self, row: Genes) -> float:
        """C (2 − C); 1 where less cost is no aim."""
        if not self._saves or self._whole <= 0:
            return 1.0
        saved = 1 - float(self.problem.cost_axis(row[None])[0] / self._whole)
        return saved * (2 - saved)

    def _missed(self) -> float:
        """The reward of a network above the limits."""
        return max(0.0, 1 - self._updates / LENIENT) ** 4 - 1

    def _reward(self, row: Genes, reward: float) -> None:
        self._rewarded.append((row, reward))

    def _update(self) -> None:
        """Follows the gradient of the expected reward by every few roll-outs, as published."""
        while len(self._rewarded) >= ROLL_OUTS:
            batch, self._rewarded = self._rewarded[:ROLL_OUTS], self._rewarded[ROLL_OUTS:]
            genes = np.stack([row for row, _ in batch])
            rewards = np.array([reward for _, reward in batch])
            mean = float(rewards.mean())
            known = mean if np.isnan(self._baseline) else self._baseline
            gains = torch.tensor(rewards - known, dtype=torch.float32)
            self._baseline = DECAY * known + (1 - DECAY) * mean
            logs = self.policy.log_probabilities(self._layers, genes)
            decided = torch.from_numpy(self.problem.space.active(genes)[:, self._layers.genes])
            loss = -(gains * torch.where(decided, logs, torch.zeros_like(logs)).sum(dim=1)).mean()
            for adam in self._adams:
                adam.zero_grad()
            loss.backward()
            for adam in self._adams:
                adam.step()
            self._updates += 1
