"""Growth as a mathematical programme: DeepMAD's score maximised for each budget (Shen et al. 2023).

The programme of ``search.exact`` is solved over a space around the seed: for each stage some widths
and any depth from those of the member before up to 1.3 times what even growth would give, and the
seed's blocks. So the family grows in proportion, and no member depends on larger budgets. ρ stays
below the paper's 0.5, or below the seed's ρ where that is larger.
"""

from __future__ import annotations

import math

from predictors.proxies.deepmad import effectiveness_of_ends
from predictors.proxies.space_tables import PathTables, architecture_ends
from search.exact import optimise
from search.problem import Constraint
from search.scaling.base import Family, ScalingMethod, ScalingTask, Step, register_method
from search.scaling.cost import NetworkCosts
from search.scaling.shapes import Shape, describe_change, nearest, width_multiple
from search.shape import keeps_shape
from search_space import Architecture, SearchSpace, StageSpace
from search_space.errors import UsageError
from search_space.macro import BLOCK_TRANSITION

MAX_EFFECTIVENESS = 0.5
WIDTHS = 5  # per stage
ROOM = 1.3  # how much wider or deeper a stage may become than even growth would have it


@register_method
class DeepMADGrowth(ScalingMethod):
    """Maximises the score for each budget; each member is at least as large as the one before."""

    name = "deepmad"
    summary = "DeepMAD's score maximised exactly, with monotone growth"

    def scale(self, task: ScalingTask) -> Family:
        """The family of a task.

        Raises:
            UsageError: ``task.costs`` has no tables to optimise with, or as of ``growing_from``.
        """
        start = task.growing_from()
        if not isinstance(task.costs, NetworkCosts):
            raise UsageError("method deepmad needs costs by component; give NetworkCosts.")
        metrics = [task.by, *(metric for metric in task.limits if metric != task.by)]
        effectiveness = effectiveness_of_ends(architecture_ends(task.seed))
        bound = max(MAX_EFFECTIVENESS, effectiveness * (1 + 1e-9))
        shaped = keeps_shape(task.seed)
        path, notes = [start], []
        for i, budget in enumerate(task.budgets):
            task.progress(i, len(task.budgets), "the integer programme")
            growth = budget / start.costs[task.by]
            space = space_around(task.seed, growth, path[-1].architecture)
            paths = PathTables.build(space, task.costs.num_classes)
            limits = {**task.limits, task.by: min(budget, task.limits.get(task.by, math.inf))}
            # the member before meets the limits of this one, so there is always a solution
            optimum = optimise(
                space,
                paths,
                [Constraint(metric, maximum=limit) for metric, limit in limits.items()],
                {metric: task.costs.table(metric, space) for metric in metrics},
                effectiveness=(paths, bound),
                shape_rule=shaped,
            )
            architecture = space.decode(optimum.genes[None])[0]
            change = describe_change(Shape.of(path[-1].architecture), Shape.of(architecture))
            costs, scores = task.costs(architecture), {"deepmad": optimum.value}
            path.append(Step(architecture, costs, change, scores))
            notes.append(
                f"The score of {optimum.value:,.0f} at budget {i + 1} is within "
                f"{optimum.proof.gap:.2%} of the largest of {space.size:.2g} architectures, in "
                f"which no stage is more than {ROOM * growth:.3g} times deeper or "
                f"{ROOM * math.sqrt(growth):.3g} times wider than the seed's "
                f"(one integer programme, {optimum.proof.seconds:.0f} s)."
            )
        rule = (
            f"For each budget the largest DeepMAD score with ρ ≤ {bound:.3g} among architectures "
            "around the seed, no stage narrower or shallower than in the member before, and none "
            f"more than {ROOM:g} times deeper or wider than even growth would have it"
            f"{', the third stage deepest' if shaped else ''}."
        )
        return task.family_of(self.name, rule, path, notes)


def space_around(
    seed: Architecture, growth: float, least: Architecture | None = None
) -> SearchSpace:
    """The space for ``growth`` times the seed's cost: nothing smaller than ``least``."""
    widest, deepest = ROOM * math.sqrt(growth), ROOM * growth
    stages = []
    enters = seed.macro.downsample == BLOCK_TRANSITION
    for stage, low in zip(seed.stages, (least or seed).stages, strict=True):
        multiple = width_multiple(stage)
        factors = [widest ** (i / (WIDTHS - 1)) for i in range(WIDTHS)]
        widths = {low.width, *(nearest(f * stage.width, multiple) for f in factors[1:])}
        most = max(low.depth, math.ceil(deepest * stage.depth))
        depths = range(low.depth, most + 1 if not stage.blocks[0].skipped else low.depth + 1)
        allowed = tuple(sorted(w for w in widths if w >= low.width))
        blocks = tuple(dict.fromkeys(stage.blocks))
        first = stage.blocks[:1] if enters else blocks
        positions = (first, *((blocks,) * (depths[-1] - 1)))
        stages.append(StageSpace(allowed, tuple(depths), positions, stage.stride))
    return SearchSpace("around the seed", seed.macro, (seed.resolution,), tuple(stages))
