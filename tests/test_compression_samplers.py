"""The samplers of published compressions: slimming's walk, and the policy that REINFORCE trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from space_kinds import kind_of_space
from synthetic_search import (
    OBJECTIVES,
    Accuracy,
    Interrupted,
    MemoryJournal,
    Shuffled,
    bounded_problem,
    cost_table,
    every_row,
    interrupted_after,
    run,
    small_space,
    summary,
)

from search import Constraint, Objective, Problem, search
from search.samplers import make_sampler
from search.samplers.policy import Layers, Policy
from search.samplers.reinforce import Reinforce
from search.samplers.slimming import Slimming
from search_space import known, load_space
from search_space.around import Around, around
from search_space.space_definition import space_from_dict

NAMES = ("slimming", "reinforce")
EVERY = 99  # ways: all that a step has
STEADY = (0.01, 0.01)  # with the published 0.1 the seed decides how much is learnt


def prior(quality):
    """What is lost, by a table of what is had."""
    return {"accuracy": lambda rows: -quality.predict(rows)}


# The loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_workers_and_interruptions_change_nothing(name):
    problem = bounded_problem(small_space(), 0.7)
    accuracy = Accuracy(problem.space)

    def make(problem, seed):
        return make_sampler(name, problem, seed=seed, budget=48)

    options = {"num_evaluations": 48, "batch_size": 4, "window": 12}
    whole = run(problem, accuracy, make=make, **options)
    for seed in (0, 1):
        late = Shuffled(accuracy, seed)  # evaluations end in another order
        result = search(problem, make(problem, 0), late, MemoryJournal(), **options)
        for ours, theirs in ((result.evaluations, whole.evaluations), (result.front, whole.front)):
            assert {e.digest for e in ours} == {e.digest for e in theirs}
    journal = MemoryJournal()
    with pytest.raises(Interrupted):
        run(problem, interrupted_after(accuracy, 21), journal, make=make, **options)
    assert summary(run(problem, accuracy, journal, make=make, **options)) == summary(whole)


@pytest.mark.parametrize("name", NAMES)
def test_failures_stop_nothing(name):
    problem = bounded_problem(small_space(), 0.7)
    sampler, rng = make_sampler(name, problem, budget=60), np.random.default_rng(0)
    for _ in range(10):
        rows = sampler.ask(6)
        assert len(rows) == 6
        objectives = np.stack([-rng.random(6), problem.cost_axis(rows)], axis=1)
        objectives[rng.random(6) < 0.5] = np.nan
        sampler.tell(rows, objectives, np.zeros(6))


@pytest.mark.parametrize("name", NAMES)
def test_problems_without_a_cost_or_with_several_qualities(name):
    space = small_space()
    tables = {"latency_ms": cost_table(space, "latency"), "params": cost_table(space, "params")}
    for objectives, limits, cheap in [
        ((Objective.on("accuracy"),), (), {}),
        ((*OBJECTIVES, Objective("energy", "minimize")), (), tables),
        ((Objective.on("accuracy"),), (_limit(tables, "params"), _limit(tables)), tables),
    ]:
        problem = Problem(space, objectives, limits, cheap, ("accuracy", "energy"))
        sampler, rng = make_sampler(name, problem, budget=40), np.random.default_rng(0)
        seen = set()
        for _ in range(5):
            rows = sampler.ask(8)
            assert (problem.cheap_violation(rows) == 0).all()
            seen |= {row.tobytes() for row in rows}
            sampler.tell(rows, rng.normal(size=(8, len(objectives))), np.zeros(8))
        assert len(seen) == 40


def _limit(tables, metric="latency_ms"):
    table = tables[metric]
    low, high = table.predict(np.stack([table.argmin(), table.argmax()]))
    return Constraint(metric, maximum=float(0.5 * (low + high)))


@pytest.mark.parametrize("name", NAMES)
def test_a_space_of_one_network_is_asked_for_once(name):
    alone = {"width": 8, "depth": 1, "choices": ["pooling"]}
    macro = {"stem_kernel": 2, "stem_stride": 2}
    space = space_from_dict({"name": "one", "macro": macro, "resolution": 16, "stages": [alone]})
    problem = Problem(space, OBJECTIVES, (), {"latency_ms": cost_table(space, "latency")})
    sampler = make_sampler(name, problem)
    assert [len(sampler.ask(3)) for _ in range(2)] == [1, 0]


# Slimming -----------------------------------------------------------------------------------------


def greedy_walk(rows, skips, loss, cost):
    """The ways of each step and the networks of a walk, straight from the definition.

    Args:
        rows: all of a space of fixed depths.
        skips: per gene the choice that leaves a block out.
        loss, cost: of each row.
    """
    at = {tuple(row): i for i, row in enumerate(rows.tolist())}
    here = at[tuple(rows.max(axis=0))]
    path, ways = [here], []
    while True:
        found = {}
        for gene in range(rows.shape[1]):
            others = [
                i
                for i in np.flatnonzero((rows != rows[here]).sum(axis=1) == 1)
                if rows[i, gene] != rows[here, gene] and cost[i] < cost[here]
            ]
            if others:
                next_lighter = max(others, key=lambda i: cost[i])
                found[next_lighter] = True
                found |= {i: True for i in others if rows[i, gene] == skips[gene]}
        if not found:
            return path, ways
        ways.append(list(found))
        base = here
        here = min(found, key=lambda i: (loss[i] - loss[base]) / (cost[base] - cost[i]))
        path.append(here)


def skip_problem(share=None):
    """A space with skipped blocks and fixed depths, an additive quality, and a limit if asked."""
    space = kind_of_space("skip")
    rows, table = every_row(kind_of_space("skip")), cost_table(space, "latency")
    limits = () if share is None else (_limit({"latency_ms": table}),)
    problem = Problem(space, OBJECTIVES, limits, {"latency_ms": table})
    quality = cost_table(space, "quality")
    skips = np.full(space.num_genes, -9)
    for i, stage in enumerate(space.stages):
        for j, choices in enumerate(stage.positions):
            of_skip = [c for c, block in enumerate(choices) if block.skipped]
            skips[space.block_columns(i).start + j] = (of_skip or [-9])[0]
    walk = greedy_walk(rows, skips, -quality.predict(rows), table.predict(rows))
    return problem, rows, quality, walk


@pytest.mark.parametrize(("batch", "given"), [(1, False), (1, True), (7, True)])
def test_slimming_on_an_additive_quality_follows_the_greedy_path(batch, given):
    problem, rows, quality, (path, ways) = skip_problem()
    sampler = Slimming(problem, population=0, ways=EVERY, prior=prior(quality) if given else None)
    expected = {rows[i].tobytes() for step in ways for i in step} | {rows[path[0]].tobytes()}
    asked: list[bytes] = []
    decided = []
    while len(asked) < len(expected):
        new = sampler.ask(min(batch, len(expected) - len(asked)))
        asked += [row.tobytes() for row in new]
        costs = problem.cost_axis(new)
        sampler.tell(new, np.stack([-quality.predict(new), costs], axis=1), np.zeros(len(new)))
        decided.append(sampler._here)
    assert set(asked) == expected
    assert asked[0] == rows[path[0]].tobytes()
    np.testing.assert_array_equal(decided[-1], rows[path[-1]])
    if batch == 1:
        # one by one nothing is foreseen, so that each network of the path is seen in its turn
        steps = [row for i, row in enumerate(decided) if i == 0 or (row != decided[i - 1]).any()]
        np.testing.assert_array_equal(steps, rows[path])


def test_above_the_limits_the_table_decides():
    problem, rows, quality, (path, _) = skip_problem(0.5)
    within = problem.cheap_violation(rows[path]) == 0
    assert not within[0]
    first = Slimming(problem, population=0, ways=1, prior=prior(quality)).ask(1)
    np.testing.assert_array_equal(first[0], rows[path[int(within.argmax())]])


def test_where_cost_is_no_aim_a_walk_ends_at_the_limit():
    problem, rows, quality, (path, _) = skip_problem(0.5)
    alone = Problem(problem.space, OBJECTIVES[:1], problem.constraints, problem.tables)
    sampler = Slimming(alone, population=0, ways=1, prior=prior(quality))
    within = problem.cheap_violation(rows[path]) == 0
    asked = sampler.ask(6)  # from six walks, the later ones with noise
    np.testing.assert_array_equal(asked[0], rows[path[int(within.argmax())]])
    assert sampler._walks >= 6


def test_a_walk_of_few_steps_reaches_the_cheapest():
    problem = bounded_problem(load_space("digits"), 1.0)
    table, accuracy = problem.tables["latency_ms"], Accuracy(problem.space)
    cheapest = table.predict(table.argmin()[None])[0]
    lowest = {}
    for steps in (10, None):
        sampler = Slimming(problem, population=0, ways=2, steps=steps)
        told = []
        for _ in range(30):
            rows = sampler.ask(1)
            told.append(problem.cost_axis(rows)[0])
            sampler.tell(rows, np.array([[-accuracy.of_rows(rows)[0], told[-1]]]), np.zeros(1))
        lowest[steps] = min(told) / cheapest
    assert lowest[10] < 1.3
    assert lowest[None] > 1.15 * lowest[10]


# The policy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skip", "positions", "entries", "strides"])
def test_probabilities_of_all_rows_add_up_to_one(name):
    space, rows = kind_of_space(name), every_row(kind_of_space(name))
    layers, policy = Layers.of(space), Policy(seed=3)
    with torch.no_grad():
        logs = policy.log_probabilities(layers, rows)
    decided = torch.from_numpy(space.active(rows)[:, layers.genes])
    # a decision of a block beyond the depth is drawn and then of no account
    total = torch.where(decided, logs, torch.zeros_like(logs)).sum(dim=1).double().exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-4)


def test_rows_are_drawn_as_often_as_their_probability_says():
    space, rows = kind_of_space("skip"), every_row(kind_of_space("skip"))
    layers, policy = Layers.of(space), Policy(seed=3)
    n = 20_000
    drawn = policy.sample(layers, space.encode([space.largest]), n, np.random.default_rng(0))
    with torch.no_grad():
        expected = policy.log_probabilities(layers, rows).sum(dim=1).double().exp().numpy()
    of_row = {row.tobytes(): i for i, row in enumerate(rows)}
    counts = np.bincount([of_row[row.tobytes()] for row in drawn], minlength=len(rows))
    # 4.5 standard deviations of a count, and one for those that are rare
    assert (np.abs(counts - n * expected) <= 4.5 * np.sqrt(n * expected) + 1).all()


def lite(name="tf_efficientnet_lite0"):
    space = around(known(name), Around(resolutions=(), linear=False))
    return Problem(space, OBJECTIVES, (), {"latency_ms": cost_table(space, "latency")})


def of_late_stages(space, rows):
    """An accuracy of the last three stages only, the mean of what is left of their blocks."""
    start = space.block_columns(4).start
    many = space.cardinalities > 1
    many[:start] = False
    return (rows[:, many] / (space.cardinalities[many] - 1)).mean(axis=1)


def results_of(problem, rows):
    return np.stack([-of_late_stages(problem.space, rows), problem.cost_axis(rows)], axis=1)


def rewards_of(problem, rows):
    """The published reward; the largest network's accuracy is 1."""
    whole = problem.cost_axis(problem.space.encode([problem.space.largest]))[0]
    saved = 1 - problem.cost_axis(rows) / whole
    return of_late_stages(problem.space, rows) * saved * (2 - saved)


def train(sampler, evaluations=300):
    """Rewards in the order told."""
    told = []
    for _ in range(evaluations // 10):
        rows = sampler.ask(10)
        sampler.tell(rows, results_of(sampler.problem, rows), np.zeros(len(rows)))
        told.append(rewards_of(sampler.problem, rows))
    return np.concatenate(told)


def test_reinforce_improves_its_rewards():
    problem = lite()
    told = [train(Reinforce(problem, seed=seed, rates=STEADY)) for seed in range(3)]
    untrained, first, last = (
        np.mean([rewards[part] for rewards in told])
        for part in (slice(10), slice(60), slice(-60, None))
    )
    assert last > 1.2 * first  # about 0.24 and 0.33
    assert last > 1.2 * untrained


def test_a_policy_serves_another_parent():
    problem, other = lite(), lite("tf_efficientnet_lite2")
    trained = Reinforce(problem, seed=0, rates=STEADY)
    train(trained)
    largest = other.space.encode([other.space.largest])
    old, new = (
        policy.sample(Layers.of(other.space), largest, 200, np.random.default_rng(0))
        for policy in (trained.policy, Policy(seed=0))
    )
    assert rewards_of(other, old).mean() > 1.2 * rewards_of(other, new).mean()
    again = Reinforce(other, policy=trained.policy)
    assert again.policy is trained.policy
    assert len(again.ask(5)) == 5
