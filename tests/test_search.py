"""Problems, feasibility, executors, evaluation."""

from __future__ import annotations

import re

import numpy as np
import pytest
from synthetic_search import OBJECTIVES, bounded_problem, cost_table, every_row, small_space

from search import (
    Constraint,
    InProcessExecutor,
    Objective,
    Problem,
    check_feasible,
    extreme_rows,
    feasible_range,
)
from search.feasibility import diverse_sample, repair
from search_space import load_space
from search_space.errors import InfeasibleError, InvalidQuantityError, UnknownNameError
from search_space.units import parse_latency

SPACE = small_space()
ROWS = every_row(SPACE)


def problem(*constraints: Constraint) -> Problem:
    tables = {"latency_ms": cost_table(SPACE, "latency"), "macs": cost_table(SPACE, "macs")}
    return Problem(SPACE, OBJECTIVES, constraints, tables)


def test_enumeration_is_complete():
    assert len(ROWS) == SPACE.size == 1536


def test_violation_is_summed_relative_excess_and_zero_when_met():
    p = problem(
        Constraint("latency_ms", maximum=2.0),
        Constraint("macs", minimum=100.0, maximum=200.0),
    )
    metrics = {
        "latency_ms": np.array([2.0, 3.0, 1.0, 1.0, 2.0 + 2e-9]),
        "macs": np.array([100.0, 50.0, 300.0, np.nan, 150.0]),
    }
    expected = [0, 0.5 + 0.5, 0.5, np.inf, 1e-9]
    np.testing.assert_allclose(p.violation(metrics), expected, rtol=1e-6)
    assert p.violation({"latency_ms": np.array([1.0])}).tolist() == [np.inf]  # others are missing


def test_only_what_is_known_beforehand_can_be_limited():
    with pytest.raises(UnknownNameError, match="unknown cheap metric 'accuracy'"):
        problem(Constraint("accuracy", minimum=0.9))
    p = problem(Constraint("latency_ms", maximum=1.0))
    assert problem().cheap_violation(ROWS).tolist() == [0.0] * len(ROWS)
    latency = p.tables["latency_ms"].predict(ROWS)
    np.testing.assert_allclose(p.cheap_violation(ROWS), np.maximum(latency - 1.0, 0))


def test_objectives_are_minimised():
    metrics = {"accuracy": np.array([0.7, np.nan]), "latency_ms": np.array([3.0, 4.0])}
    np.testing.assert_array_equal(problem().objective_values(metrics), [[-0.7, 3.0], [np.nan, 4.0]])


def test_reference_lies_beyond_every_feasible_point():
    p = bounded_problem(SPACE)
    latency = p.tables["latency_ms"].predict(ROWS)
    assert p.reference[0] == 0.0
    bound = p.constraints[0].maximum
    assert bound is not None
    assert p.reference[1] == pytest.approx(bound + 0.1 * (bound - latency.min()))
    assert problem().reference[1] > latency.max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint("macs"), "set at least one"),
        (lambda: Constraint("macs", maximum=float("nan")), "finite number"),
        (lambda: Constraint("macs", maximum=1.0, minimum=2.0), "swap them"),
        (lambda: Problem(SPACE, ()), "needs an objective"),
        (
            lambda: problem(Constraint("macs", maximum=1.0), Constraint("macs", minimum=0.0)),
            "constraint on macs is given twice",
        ),
    ],
)
def test_wrong_quantities_are_refused(make, message):
    with pytest.raises(InvalidQuantityError, match=message):
        make()


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'latency_ms'"):
        problem(Constraint("latency", maximum=1.0))
    with pytest.raises(UnknownNameError, match="Did you mean 'maximize'"):
        Objective("accuracy", "maximise")  # type: ignore[arg-type]


def test_feasible_range_is_exact_and_its_share_is_the_space_s():
    p = bounded_problem(SPACE, 0.4)
    latency = p.tables["latency_ms"].predict(ROWS)
    found = feasible_range(p, np.random.default_rng(0), 4000)["latency_ms"]
    assert (found.smallest, found.largest) == (latency.min(), latency.max())
    # genes are drawn uniformly; depth 2 rows are rarer one by one, so weigh by a big sample
    drawn = p.tables["latency_ms"].predict(SPACE.sample(np.random.default_rng(1), 50_000))
    assert found.share == pytest.approx((drawn <= p.constraints[0].maximum).mean(), abs=0.03)


def test_latency_below_the_fastest_names_it_and_a_limit_that_works():
    table = cost_table(SPACE, "latency")
    fastest = SPACE.decode(table.argmin()[None])[0]
    value = table.predict(ROWS).min()
    with pytest.raises(InfeasibleError) as caught:
        check_feasible(problem(Constraint("latency_ms", maximum=0.9 * value)))
    message = str(caught.value)
    assert fastest.digest in message
    assert "fastest" in message
    suggested = re.search(r"raise the limit of latency_ms to (\S+) or more", message)
    assert suggested
    limit = parse_latency(suggested[1])
    assert value <= limit <= value * 1.002
    check_feasible(problem(Constraint("latency_ms", maximum=limit)))


def test_minimum_above_the_largest_names_it():
    table = cost_table(SPACE, "macs")
    largest = SPACE.decode(table.argmax()[None])[0]
    with pytest.raises(InfeasibleError, match=f"largest architecture {largest.digest}.*lower the"):
        check_feasible(problem(Constraint("macs", minimum=1.1 * table.predict(ROWS).max())))


def test_constraints_that_only_clash_together_name_the_closest():
    latency, macs = (cost_table(SPACE, name).predict(ROWS) for name in ("latency", "macs"))
    order = np.argsort(latency)
    bound = latency[order[20]]
    wish = macs[order[:21]].max() * 1.01
    p = problem(Constraint("latency_ms", maximum=bound), Constraint("macs", minimum=wish))
    assert (p.cheap_violation(ROWS) > 0).all()
    closest = SPACE.decode(ROWS[[p.cheap_violation(ROWS).argmin()]])[0]
    with pytest.raises(InfeasibleError, match=f"proven by an integer.*{closest.digest}"):
        check_feasible(p)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_hardly_feasible_problems_are_solved(rank):
    """Bounds that only a handful of the architectures meet, at both ends of a band."""
    latency = np.sort(cost_table(SPACE, "latency").predict(ROWS))
    for band in (
        Constraint("latency_ms", maximum=latency[rank]),
        Constraint("latency_ms", minimum=latency[700], maximum=latency[700 + rank]),
    ):
        p = problem(band)
        assert p.cheap_violation(check_feasible(p)[0]).tolist() == [0.0]


def test_repair_reaches_the_fast_corner_of_a_huge_space():
    space = load_space("base")
    p = bounded_problem(space, 0.02)
    rng = np.random.default_rng(0)
    assert (p.cheap_violation(space.sample(rng, 2000)) > 0).all()  # sampling would never end
    rows, violation = repair(p, diverse_sample(p, rng, 500), rng, wanted=50)
    assert np.count_nonzero(violation == 0) >= 50
    np.testing.assert_array_equal(violation, p.cheap_violation(rows))
    assert (np.diff(violation) >= 0).all() or np.count_nonzero(violation == 0) >= 50
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_repair_of_the_impossible_ends():
    p = problem(Constraint("latency_ms", maximum=1e-6))
    _, violation = repair(p, ROWS[:10], np.random.default_rng(0), rounds=5)
    assert (violation > 0).all()


def test_extremes_are_in_the_space_and_distinct():
    rows = extreme_rows(bounded_problem(SPACE))
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert {SPACE.smallest, SPACE.largest} <= set(SPACE.decode(rows))


def test_executor_records_errors_and_goes_on():
    def evaluate(architecture):
        if architecture == SPACE.largest:
            raise RuntimeError("out of memory\nlong trace")
        return {"accuracy": np.float32(0.5)}

    executor = InProcessExecutor(evaluate)
    executor.submit(7, SPACE.largest)
    executor.submit(8, SPACE.smallest)
    failed, done = executor.wait(), executor.wait()
    assert (failed.ticket, failed.error, failed.metrics) == (7, "RuntimeError: out of memory", {})
    assert (done.ticket, done.error, done.metrics) == (8, None, {"accuracy": 0.5})
    assert done.seconds >= 0


def test_executor_lets_the_keyboard_through():
    def evaluate(architecture):
        raise KeyboardInterrupt

    executor = InProcessExecutor(evaluate)
    executor.submit(0, SPACE.smallest)
    with pytest.raises(KeyboardInterrupt):
        executor.wait()


def test_supernet_evaluator_is_the_extracted_network_s_accuracy():
    """Against plain top-1 counting on the extracted static network, at its own resolution."""
    torch = pytest.importorskip("torch")
    from search.evaluator import SupernetEvaluator
    from supernet import Supernet

    torch.manual_seed(0)
    supernet = Supernet(SPACE, num_classes=3)
    supernet.train()
    images, labels = torch.randn(48, 3, 24, 24), torch.randint(0, 3, (48,))
    parts = [[(images[:20], labels[:20]), (images[20:32], labels[20:32])]]
    parts += [[(images[32:], labels[32:])]]
    evaluator = SupernetEvaluator(supernet, parts)
    for architecture in SPACE.decode(SPACE.sample(np.random.default_rng(0), 3)):
        network = supernet.extract(architecture).eval()
        size = (architecture.resolution,) * 2
        inputs = torch.nn.functional.interpolate(
            images, size, mode="bilinear", align_corners=False, antialias=True
        )
        with torch.no_grad():
            correct = (network(inputs).argmax(1) == labels).double()
        first, second = evaluator(architecture), evaluator(architecture)
        assert first == second
        assert first["accuracy"] == pytest.approx(correct.mean().item())
        assert first["validation_images"] == 48
        for part, of_part in enumerate((correct[:32], correct[32:])):
            found = evaluator(architecture, part)
            assert found["accuracy"] == pytest.approx(of_part.mean().item())
            assert found["validation_images"] == len(of_part)
    assert supernet.training
