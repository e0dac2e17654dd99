"""What a fine-tuning tries, when a trial is stopped, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import parse
from tiny_training import config, few_images, small_network

from results.report.data import ReportData, TrialRow
from results.report.page import render_report
from search_space.errors import CorruptFileError, RunError
from supernet.cluster.trials import Trial, TrialEpoch, TrialFolders, best_trial
from supernet.data.augmentation import AugmentConfig, build_transform
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.config import EpochMetrics, TrainConfig
from supernet.training.hyperparameters import configured, ranges, strengthened
from supernet.training.train import evaluate, finetune

open_few = partial(open_data, "digits", 16, test_fraction=0.9, validation_fraction=0.7)


# Hyper-parameters ---------------------------------------------------------------------------------


recipes = st.builds(
    TrainConfig,
    lr=st.floats(1e-6, 1.0),
    weight_decay=st.just(0.0) | st.floats(1e-6, 1.0),
    drop_path_rate=st.floats(0, 0.9),
    label_smoothing=st.floats(0, 0.9),
)
augments = st.builds(
    AugmentConfig,
    crop=st.sampled_from(["resize", "pad", "none"]),
    padding=st.integers(0, 8),
    scale=st.tuples(st.floats(0.05, 0.5), st.floats(0.5, 1.0)),
    color_jitter=st.floats(0, 0.4),
    auto_augment=st.sampled_from([None, "rand-m9-n2-mstd0.5", "augmix-m3", "original"]),
    erase=st.floats(0, 1),
    mixup=st.floats(0, 1),
    cutmix=st.floats(0, 1),
)


@given(recipes, augments)
def test_the_recipe_lies_in_its_ranges_and_means_itself(recipe, augment):
    found = ranges(recipe)
    assert all(r.low <= r.recipe <= r.high and r.low < r.high for r in found.values())
    same = configured(recipe, augment, {name: r.recipe for name, r in found.items()})
    assert same == replace(recipe, augment=augment, evaluations=recipe.epochs)
    assert found.pop("augmentation").recipe == 1
    assert all(r.recipe == getattr(recipe, name) for name, r in found.items())


@given(recipes, augments, st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_every_point_of_the_ranges_can_be_trained(recipe, augment, places):
    found = ranges(recipe)
    values = {
        name: min(r.high, r.low + place * (r.high - r.low))
        for (name, r), place in zip(found.items(), places, strict=True)
    }
    tuned = configured(recipe, augment, values)  # checks itself
    assert {name: getattr(tuned, name) for name in values if name != "augmentation"} == {
        name: value for name, value in values.items() if name != "augmentation"
    }
    assert tuned.evaluations == tuned.epochs


@given(augments, st.floats(0, 2), st.floats(0, 2))
def test_a_stronger_augmentation_is_stronger_in_everything(augment, one, other):
    weak, strong = (strengthened(augment, s) for s in sorted((one, other)))
    assert strong.scale[0] <= weak.scale[0]
    for name in ("padding", "color_jitter", "erase", "mixup", "cutmix"):
        assert getattr(weak, name) <= getattr(strong, name)
    assert weak.hflip == strong.hflip == augment.hflip


def test_strength_scales_a_policy_that_timm_understands():
    augment = AugmentConfig(auto_augment="rand-m6-n2-mstd0.5", scale=(0.5, 1.0), ratio=(0.8, 1.25))
    half = strengthened(augment, 0.5)
    assert half.auto_augment == "rand-m3-n2-mstd0.5"
    assert half.scale == (0.75, 1.0)
    assert half.ratio == pytest.approx((0.8**0.5, 1.25**0.5))
    assert strengthened(augment, 2.0).auto_augment == "rand-m10-n2-mstd0.5"  # timm's largest
    nothing = strengthened(augment, 0.0)
    assert nothing.auto_augment is None
    assert nothing.scale == (1.0, 1.0)
    for strength in (0.0, 0.5, 2.0):
        build_transform(strengthened(augment, strength), 32, (0.5, 0.5, 0.5))


def test_a_teacher_leaves_out_what_it_makes_meaningless():
    recipe = TrainConfig(teacher="resnet18", teacher_variants=2)
    assert ranges(recipe).keys() == {"lr", "weight_decay", "drop_path_rate"}


# Trials -------------------------------------------------------------------------------------------


def trial(number: int, losses: Sequence[float], status: str = "finished", **changes: Any) -> Trial:
    epochs = tuple(
        TrialEpoch(epoch=i, loss=1.0, validation_loss=loss, validation_accuracy=0.5, seconds=1.0)
        for i, loss in enumerate(losses)
    )
    values = {"lr": 0.001 * number, "augmentation": 1.0}
    return replace(
        Trial(
            number=number, network=12 * "a", hyperparameters=values, status=status, epochs=epochs
        ),
        **changes,
    )


def test_trials_survive_their_file_and_are_known_by_what_they_train(tmp_path):
    known = trial(3, [0.1 + 0.2, 1e-17], recipe=True)
    (tmp_path / "t.json").write_text(json.dumps(known.to_dict()))
    again = Trial.from_dict(json.loads((tmp_path / "t.json").read_text()))
    assert again == known
    assert again.key == known.key
    assert replace(known, number=4, status="running").key == known.key
    assert replace(known, network="b").key != known.key
    assert trial(4, []).key != known.key
    for wrong in ({}, {**known.to_dict(), "status": "odd"}, {**known.to_dict(), "more": 1}):
        with pytest.raises(CorruptFileError):
            Trial.from_dict(wrong)


def test_a_validation_loss_that_is_no_number_ends_a_trial(monkeypatch):
    """It would be null in the run's file, which could not be read again."""
    from supernet.cluster import tuning_worker

    metrics = EpochMetrics(
        epoch=2, step=6, seconds=1.0, images_per_s=1.0, lr=0.1, rollbacks=0,
        losses={"": 1.0}, val_accuracy={"": 0.1}, val_loss={"": float("nan")},
    )  # fmt: skip
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tuning_worker.ray.tune, "report", told.append)
    monkeypatch.setattr(tuning_worker, "_train", lambda *_: tuning_worker._report(metrics))
    job: Any = None
    tuning_worker.run_trial({}, job)
    assert [result["diverged"] for result in told] == ["the validation loss after epoch 3 is nan"]


def test_the_best_trial_was_trained_to_its_end():
    found = [
        trial(1, [3.0, 2.0]),
        trial(2, [1.0], "stopped"),
        trial(3, [2.0, 1.5]),
        trial(4, [9.0, 1.5]),
        trial(5, [0.1, 0.1], "failed"),
    ]
    best = best_trial(found)
    assert best is not None
    assert best.number == 3
    assert best_trial(found[1:2]) is None


def tunes(known: Trial) -> Any:
    """As Tune has it, under a number of its own."""
    values = {"network": known.network, **known.hyperparameters}
    return SimpleNamespace(trial_id=f"tune-{id(known)}", config=values)


def decisions(scheduler: Any, known: Trial, start: int = 0) -> list[str]:
    scheduler.on_trial_add(None, tunes(known))
    return [
        scheduler.on_trial_result(
            None, tunes(known), {"epochs_done": e.epoch + 1, "validation_loss": e.validation_loss}
        )
        for e in known.epochs[start:]
    ]


def test_asha_stops_who_falls_behind_but_never_a_recipe():
    from supernet.cluster.tuning_state import Halving

    bad, good = trial(1, [5.0] * 9), trial(2, [1.0] * 9)
    scheduler = Halving([], {bad.key}, epochs=9, first=1, reduction=3)
    assert decisions(scheduler, good) == ["CONTINUE"] * 8 + ["STOP"]  # at the end of all epochs
    assert decisions(scheduler, bad) == ["CONTINUE"] * 8 + ["STOP"]
    worse = decisions(scheduler, trial(3, [4.0] * 9))
    assert worse[0] == "STOP"  # the best third of 1 and 5 is below 4
    assert decisions(scheduler, trial(4, [0.5] * 9))[0] == "CONTINUE"


curves = st.lists(st.floats(0, 9), min_size=9, max_size=9)


@given(st.lists(curves, min_size=2, max_size=8), st.data())
def test_a_continued_asha_decides_as_if_it_had_not_been_interrupted(losses, data):
    from supernet.cluster.tuning_state import Halving

    every = [trial(i + 1, own) for i, own in enumerate(losses)]
    make = partial(Halving, recipes=frozenset(), epochs=9, first=1, reduction=3)
    before, last = every[:-1], every[-1]
    done = data.draw(st.integers(0, 8))  # epochs of the last one before the interruption

    whole = make([])
    for each in before:
        decisions(whole, each)
    expected = decisions(whole, last)
    if "STOP" in expected[:done]:
        return  # it would not have gone on
    continued = make([*before, replace(last, epochs=last.epochs[:done], status="running")])
    told_again = decisions(continued, last)
    assert told_again[:done] == ["CONTINUE"] * done
    assert told_again[done:] == expected[done:]


def test_optuna_is_told_what_is_known_and_begins_with_the_recipe():
    from supernet.cluster.tuning import Tuning, _recipe, _search, _space

    recipe = TrainConfig(epochs=4)
    networks: Any = {"a": None, "b": None}
    space = _space(networks, recipe)
    first = [_recipe(digest, recipe) for digest in networks]
    search = _search(space, first, [], Tuning(trials=8, seed=3))
    drawn = [search.suggest(str(i)) for i in range(8)]
    assert drawn[:2] == first
    assert len({json.dumps(values) for values in drawn}) == 8
    for values in drawn:
        assert values.keys() == space.keys()
        assert values["network"] in networks
        assert all(r.low <= values[n] <= r.high for n, r in ranges(recipe).items())
    known = [
        Trial(
            number=i + 1,
            network=values["network"],
            hyperparameters={k: v for k, v in values.items() if k != "network"},
            status=status,
            epochs=trial(1, [1.0]).epochs if status != "diverged" else (),
            error="it diverged" if status == "diverged" else "",
        )
        for i, (values, status) in enumerate(
            zip(drawn[:3], ("finished", "stopped", "diverged"), strict=True)
        )
    ]
    again = _search(space, [], known, Tuning(trials=8, seed=3))
    states = [(t.state.name, t.value) for t in again._ot_study.get_trials()]
    assert states == [("COMPLETE", 1.0), ("COMPLETE", 1.0), ("FAIL", None)]
    anew = [again.suggest(str(i)) for i in range(4)]
    assert not {json.dumps(v) for v in anew} & {json.dumps(v) for v in drawn}


def test_trials_that_do_not_reach_for_the_recipes_are_refused(tmp_path):
    from supernet.cluster.tuning import Tuning, tune_networks

    folders = TrialFolders.at(tmp_path, "trials")
    networks: Any = {"a": None, "b": None}
    with pytest.raises(RunError, match=r"1 trials are too few: .* ask for 2 or more"):
        tune_networks(networks, few_images(), config(), Tuning(trials=1), open_few, folders)


# The training loop --------------------------------------------------------------------------------


def test_epochs_are_told_again_when_a_training_is_continued(tmp_path, one_thread):
    class EnoughError(Exception):
        pass

    def until(epoch: int) -> Callable[[Any], None]:
        def tell(metrics: Any) -> None:
            told.append(metrics)
            if metrics.epoch == epoch:
                raise EnoughError

        return tell

    settings = config(epochs=4, ema_decay=0.9)
    told: list[Any] = []
    with pytest.raises(EnoughError):
        finetune(small_network(), few_images(), settings, tmp_path, on_epoch=until(1))
    assert [metrics.epoch for metrics in told] == [0, 1]
    first, told = told, []
    network = small_network()
    finetune(network, few_images(), settings, tmp_path, on_epoch=told.append)
    assert [metrics.epoch for metrics in told] == [0, 1, 2, 3]
    assert [m.val_loss for m in told[:2]] == [m.val_loss for m in first]
    found = evaluate(network, eval_batches(few_images().validation))
    assert told[-1].val_loss[""] == pytest.approx(found.loss, rel=1e-6)
    assert told[-1].val_accuracy[""] == found.accuracy


# The report ---------------------------------------------------------------------------------------


def test_the_report_has_a_table_of_trials_instead_of_a_front():
    rows = tuple(
        TrialRow(
            number=i,
            network="<b>abc</b>",
            status="stopped",
            chosen=i == 2,
            epochs=i,
            validation_loss=1.5 / i,
            validation_accuracy=None,
            hyperparameters={"lr": 1e-3 * i},
            note="why",
        )
        for i in (1, 2)
    )
    data = ReportData(run="tuned", trials=rows)
    assert parse(json.loads(json.dumps(data.to_dict()))) == data
    page = render_report(data)
    assert 'id="trials"' in page
    assert 'id="front"' not in page
    assert "&lt;b&gt;abc&lt;/b&gt;, stopped: why" in page
    assert "<b>abc" not in page
    assert ">0.75<" in page
    assert ">0.002<" in page
    assert "validation accuracy</button>" not in page  # nothing to show in it
    assert 'id="trials"' not in render_report(ReportData(run="searched"))
    assert 'id="front"' in render_report(ReportData(run="searched"))
