"""Several workers without Ray: half batches on two equal the whole batch on one."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from tiny_training import config, few_images, fresh
from worker_pair import Case, Ended, small_space, train_pair

from supernet.data.augmentation import AugmentConfig
from supernet.training.parallel import Group
from supernet.training.strategies import SandwichSampler
from supernet.training.train import train_supernet

pytestmark = pytest.mark.usefixtures("one_thread")

# Adam makes whole steps of rounding where a gradient is nothing else, so it has a test of its own.
TWENTY = {"epochs": 7, "evaluations": 1, "num_random": 0}
PLAIN = TWENTY | {"optimizer": "sgd", "lr": 0.05}
CASES = {
    "plain": Case(config(**PLAIN)),
    "attention": Case(config(**PLAIN), attention=True),
    "mixed": Case(config(**PLAIN, augment=AugmentConfig(mixup=0.8, cutmix=1.0))),
    "accumulated": Case(config(**PLAIN, accumulate=2)),
    "averaged": Case(config(**PLAIN, ema_decay=0.9)),
    "adam": Case(config(**TWENTY)),
    "random": Case(config(epochs=1)),
    "broken": Case(config(epochs=2), broken=(1, 5)),
    "overflow": Case(config(epochs=1), broken=(1, 0), scaled=True),
    "diverged": Case(config(epochs=1, max_bad_steps=0), broken=(1, 2)),
    "odd": Case(config(batch_size=18)),
}
EQUAL = ("plain", "attention", "mixed", "accumulated", "averaged")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    return train_pair(tmp_path_factory.mktemp("pair"), CASES)


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize("name", EQUAL)
def test_two_workers_on_half_batches_equal_one_on_the_whole(name, pair):
    supernet = fresh(small_space(attention=CASES[name].attention))
    start = {key: value.clone() for key, value in supernet.state_dict().items()}
    history = train_supernet(supernet, few_images(), CASES[name].config, None)
    assert history[-1].step >= 20
    for worker in pair[name]:
        assert worker.error == ""
        assert largest_difference(worker.weights, dict(supernet.state_dict())) < 1e-5
    assert largest_difference(start, dict(supernet.state_dict())) > 1e-3
    figures = pair[name][0].history[-1]
    for key, value in history[-1].to_dict().items():
        if key not in ("seconds", "images_per_s"):
            assert figures[key] == pytest.approx(value, abs=1e-5), key


def test_with_adam_two_workers_differ_as_little_as_two_orders_of_summation(pair):
    """The same batch in one part and in two is one training, too, but for rounding."""
    trained = []
    for parts in (1, 2):
        supernet = fresh(small_space())
        train_supernet(supernet, few_images(), config(**TWENTY, accumulate=parts), None)
        trained.append(dict(supernet.state_dict()))
    rounding = largest_difference(*trained)
    assert largest_difference(pair["adam"][0].weights, trained[0]) < 3 * rounding
    assert rounding < 1e-3


@pytest.mark.parametrize("name", [*EQUAL, "adam", "random", "broken", "overflow"])
def test_all_workers_have_the_same_weights(name, pair):
    first, second = pair[name]
    assert largest_difference(first.weights, second.weights) == 0


def test_workers_draw_their_own_subnets_between_common_extremes():
    sampler = SandwichSampler(small_space(), num_random=2, seed=3)
    for step in range(5):
        ranks = [[subnet.architecture for subnet in sampler(step, rank)] for rank in range(3)]
        for common in (0, 1):
            assert len({drawn[common].digest for drawn in ranks}) == 1
        own = [architecture.digest for drawn in ranks for architecture in drawn[2:]]
        assert len(set(own)) == len(own)


def test_two_workers_train_more_subnets_than_one(pair):
    supernet = fresh(small_space())
    train_supernet(supernet, few_images(), CASES["random"].config, None)
    assert largest_difference(pair["random"][0].weights, dict(supernet.state_dict())) > 1e-4


def test_a_loss_that_is_not_finite_on_one_worker_rolls_back_both(pair):
    for worker in pair["broken"]:
        assert worker.error == ""
        assert worker.history[-1]["rollbacks"] == 1


def test_scaled_gradients_that_overflow_on_one_worker_leave_the_step_out_on_both(pair):
    for worker in pair["overflow"]:
        assert worker.error == ""
        assert worker.history[-1]["rollbacks"] == 0
        assert worker.history[-1]["loss_largest"] > 1e30  # it was there


def test_all_workers_give_up_together(pair):
    for worker in pair["diverged"]:
        assert worker.error.startswith("TrainingDivergedError")


def test_a_batch_that_cannot_be_halved_is_refused(pair):
    for worker in pair["odd"]:
        assert worker.error.startswith("RunError")
        assert "batch_size is 18; with 2 workers" in worker.error
        assert "20 is the next" in worker.error


def test_one_worker_alone_reduces_nothing():
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    figures = torch.tensor([1.0, 2.0])
    assert torch.equal(Group().reduce([weight], figures), figures[None])
    assert torch.equal(weight.grad, torch.ones(3))
    assert Group().gather("here") == ["here"]


def test_workers_wait_for_each_other_as_long_as_a_teacher_takes(monkeypatch):
    """In a group of their own: the one that trains gives up after half an hour."""
    said = []
    monkeypatch.setattr(dist, "new_group", lambda **options: said.append(options) or "waiting")
    monkeypatch.setattr(dist, "barrier", lambda group: said.append(group))
    monkeypatch.setattr(dist, "destroy_process_group", lambda group: said.append(group))
    with Group(1, 2).patient() as wait_for_all:
        wait_for_all()
    assert said == [{"backend": "gloo", "timeout": timedelta(days=30)}, "waiting", "waiting"]
