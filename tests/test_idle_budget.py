"""A front that leaves the latency budget idle is said to, with the network that would use it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nas.workflows.idle_budget import idle_budget
from results.journal import Evaluation
from search import Objective

LOSS, ACCURACY = Objective("loss", "minimize"), Objective("accuracy", "maximize")


def evaluation(index: int, latency: float, loss: float) -> Evaluation:
    metrics = {"latency_ms": latency, "loss": loss, "accuracy": 1 - loss}
    return Evaluation(f"{index:012x}", {}, metrics, index)


FAST, HALF = evaluation(1, 1.0, 0.5), evaluation(2, 2.7, 0.3)
SLOW, SLOWER = evaluation(3, 4.5, 0.35), evaluation(4, 5.4, 0.32)
OVER = evaluation(5, 6.0, 0.1)
ALL, FRONT = [FAST, HALF, SLOW, SLOWER, OVER], [FAST, HALF]


@pytest.mark.parametrize(
    ("quality", "values"), [(LOSS, ("0.32", "0.3")), (ACCURACY, ("68.00", "70.00"))]
)
def test_the_best_network_that_uses_the_budget_is_named(
    quality: Objective, values: tuple[str, str]
) -> None:
    note = idle_budget(ALL, FRONT, quality, 5.5, "runs/mine")
    assert note is not None
    assert "2.70 ms of 5.50 ms" in note
    assert "of 2 evaluated networks" in note
    assert f"nas finetune runs/mine --networks {SLOWER.digest}" in note
    mine, fronts = values
    assert note.index(mine) < note.index(f"the front's best {fronts}")


def test_nothing_is_said_of_a_budget_that_is_used() -> None:
    assert idle_budget(ALL, [*FRONT, SLOW], LOSS, 5.5, "run") is None


def test_nothing_is_said_where_nothing_slower_was_judged_in_full() -> None:
    stopped = [replace(SLOW, status="stopped"), replace(SLOWER, status="failed", error="memory")]
    assert idle_budget([*FRONT, *stopped, OVER], FRONT, LOSS, 5.5, "run") is None
