"""Alternatives learn what the parent computes, each by itself, and none is lost or mixed up."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation_cases import SPACES, bank_of, images_of, space_around
from torch import nn

from search_space import components
from search_space.around import Around, around
from search_space.errors import DataError, InvalidArchitectureError, RunError
from supernet import Supernet, build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit import local_distillation
from supernet.inherit.bank import Entry, WeightBank, entry_name
from supernet.inherit.local_distillation import distil_alternatives, is_learnable
from supernet.inherit.shared_weights import copy_shared
from supernet.inherit.students import Distillation, Student, distil, relative_error
from supernet.network.axes import StaticModule
from supernet.network.modules import build_module
from supernet.network.norms import BatchNorm, has_batch_norms
from supernet.training.evaluation import evaluate
from supernet.training.recalibration import calibration_batches, recalibrate
from supernet.training.train import TrainConfig, finetune

QUICK = Distillation(steps=4, places=1)
NAMES = tuple(SPACES)
pytestmark = pytest.mark.usefixtures("one_thread")


def state_of(bank: WeightBank) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in bank.state_dict().items()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def blocks_of(bank: WeightBank) -> list[Entry]:
    chain = components(bank.parent, bank.num_classes)
    return [(item.path, item.spec) for item in chain if item.spec.kind == "block"]


# What is learnt ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_twin_of_a_block_comes_close_to_it(name: str) -> None:
    """The control: if it failed, what is said of other alternatives would mean nothing."""
    data = open_data("digits", 16)
    torch.manual_seed(0)
    parent = build(SPACES[name].largest, 10)
    finetune(parent, data, TrainConfig(epochs=4, batch_size=64, lr=1e-2, warmup_epochs=0.5))
    bank = WeightBank(space_around(name), parent).eval()
    batches, test = calibration_batches(data, 1024), eval_batches(data.test)

    def loss_with(*students: Student) -> float:
        network = bank.extract(bank.parent)
        for student in students:
            network.get_submodule(student.path).load_state_dict(student.module.state_dict())
        recalibrate(network, batches)
        return evaluate(network, test).loss

    torch.manual_seed(1)
    twins = [Student(entry, bank.fresh(entry)) for entry in blocks_of(bank)]
    own = loss_with()
    before = [loss_with(twin) - own for twin in twins]
    distil(bank, batches, twins, Distillation(steps=100, lr=1e-2))
    after = [loss_with(twin) - own for twin in twins]
    assert own < 1.5  # chance is 2.3
    assert all(abs(b) < 0.4 * a for a, b in zip(before, after, strict=True))
    assert sum(map(abs, after)) < 0.25 * sum(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_alternative_gets_nearer_to_the_parent(name: str) -> None:
    bank, batches = bank_of(name), images_of(4, 16)
    entries = [entry for entry in bank.missing() if is_learnable(bank, entry)]
    assert distil_alternatives(bank, batches, settings=Distillation(steps=1)) == entries
    assert bank.missing() == []
    short = [error_of(bank, entry, batches) for entry in entries]
    bank = bank_of(name)
    distil_alternatives(bank, batches, settings=Distillation(steps=60, lr=1e-2))
    long = [error_of(bank, entry, batches) for entry in entries]
    assert all(b < 0.95 * a or b < 0.02 for a, b in zip(short, long, strict=True))


@torch.no_grad()
def error_of(
    bank: WeightBank, entry: Entry, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    x = torch.cat([images for images, _ in batches])
    for item, module in bank.chain(bank.parent):
        y = module(x)
        if item.path == entry[0]:
            return float(relative_error(bank[entry](x), x, y, 2))
        x = y
    raise AssertionError


def test_errors_are_relative_to_what_the_block_changes() -> None:
    x, y = torch.randn(3, 4, 4, 2), torch.randn(3, 4, 4, 2)
    for power in (1, 2):
        assert relative_error(y, x, y, power) == 0
        assert relative_error(x, x, y, power) == pytest.approx(1)
        assert relative_error(y + 2 * (y - x), x, y, power) == pytest.approx(2**power)
        means = y.mean((0, 1, 2)).expand_as(y)
        assert relative_error(means, x[:, :2], y, power) == pytest.approx(1)
        assert relative_error(y + 1, y, y, power).isfinite()  # a block that changes nothing
        zero = torch.zeros_like(y)
        assert relative_error(y, zero, zero, power).isfinite()


def test_other_mixers_learn_by_l1_and_others_by_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    powers = {}

    def noted(bank: WeightBank, images: object, students: list[Student], *_: Any, **__: Any) -> Any:
        powers.update({student.entry: student.power for student in students})
        return []

    monkeypatch.setattr(local_distillation, "distil", noted)
    for name in NAMES:
        bank = bank_of(name)
        own = dict(blocks_of(bank))
        distil_alternatives(bank, images_of())
        for (path, spec), power in powers.items():
            mixers = [s.as_dict().get("mixer") for s in (spec, own[path])]
            params = [s.as_dict().get("params") for s in (spec, own[path])]
            assert power == (2 if mixers[0] == mixers[1] and params[0] == params[1] else 1)
        assert set(powers.values()) == ({2} if name == "convolutions" else {1, 2})
        powers.clear()


def test_averages_of_batch_norms_are_of_all_images() -> None:
    bank, batches = bank_of("convolutions"), images_of()
    distil_alternatives(bank, batches, settings=QUICK)
    x = torch.cat([images for images, _ in batches])
    found = 0
    for item, module in bank.chain(bank.parent):
        for entry in bank.entries:
            if entry[0] == item.path and entry[1] != item.spec:
                student = bank[entry]
                if not has_batch_norms(student):
                    continue  # a linear map
                first = next(part for part in student.modules() if isinstance(part, BatchNorm))
                conv = next(part for part in student.modules() if isinstance(part, nn.Conv2d))
                maps = conv(x.permute(0, 3, 1, 2))
                torch.testing.assert_close(first.running_mean, maps.mean((0, 2, 3)))
                torch.testing.assert_close(first.running_var, maps.var((0, 2, 3)))
                found += 1
        x = module(x)
    assert found > 4


# From what alternatives start ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_module_starts_as_the_part_of_the_parent_that_a_supernet_cuts(name: str) -> None:
    options = Around(ratios=(0.5,), mixer_ratios=(0.5,), skip=False)
    space = around(SPACES[name].largest, options)
    network = build(space.largest, 10)
    supernet = Supernet(space, 10)
    supernet.insert(space.largest, network)
    expected = supernet.extract(space.smallest)
    cuts = 0
    for item in components(space.smallest, 10):
        module, donor = build_module(item.spec), network.get_submodule(item.path)
        assert isinstance(donor, StaticModule)
        assert set(copy_shared(module, donor)) == set(module.axes())
        wanted = dict(expected.get_submodule(item.path).named_parameters())
        assert all(torch.equal(value, wanted[key]) for key, value in module.named_parameters())
        cuts += module.sizes() != donor.sizes()
    assert cuts


def test_a_larger_kernel_starts_as_the_parents_with_zeros_around() -> None:
    for name in NAMES:
        bank, x = bank_of(name), {}
        images, found = images_of()[0][0], 0
        for item, module in bank.chain(bank.parent):
            x[item.path], images = images, module(images)
        for path, spec in bank.missing():
            donor, module = bank.parent_module(path), bank.fresh((path, spec)).eval()
            kernels = module.sizes().get("kernel", 0), donor.sizes().get("kernel", 0)
            rest = [{k: v for k, v in m.sizes().items() if k != "kernel"} for m in (module, donor)]
            if kernels[0] > kernels[1] > 0 and rest[0] == rest[1]:
                copy_shared(module, donor)
                for key, value in donor.named_buffers():
                    module.get_buffer(key).copy_(value)
                torch.testing.assert_close(module(x[path]), donor(x[path]))
                found += 1
        assert found


def test_what_a_module_has_alone_stays() -> None:
    for name in NAMES:
        bank = bank_of(name)
        for path, spec in bank.missing():
            module, donor = bank.fresh((path, spec)), bank.parent_module(path)
            with torch.no_grad():
                for value in donor.parameters():
                    value.fill_(torch.nan)
            before = {key: value.clone() for key, value in module.named_parameters()}
            shared = copy_shared(module, donor)
            for key, value in module.named_parameters():
                mine = module.axes()[key]
                assert (key in shared) == (donor.axes().get(key) == mine) == value.isnan().any()
                assert key in shared or torch.equal(value, before[key])


@pytest.mark.parametrize("name", NAMES)
def test_one_that_has_weights_goes_on_from_them(name: str) -> None:
    bank, batches = bank_of(name), images_of(4, 16)
    entries = distil_alternatives(bank, batches, settings=Distillation(steps=20))
    before = [error_of(bank, entry, batches) for entry in entries]
    settings = Distillation(steps=20, lr=1e-4)
    distil_alternatives(bank, batches, entries=reversed(entries), settings=settings)
    after = [error_of(bank, entry, batches) for entry in entries]
    assert all(b == pytest.approx(a, rel=0.1, abs=0.01) for a, b in zip(before, after, strict=True))
    assert before != after


# Nothing else changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_parent_and_the_generator_stay_as_they_were(name: str) -> None:
    bank = bank_of(name)
    before, generator = state_of(bank), torch.get_rng_state()
    entries = distil_alternatives(bank, images_of(), settings=QUICK)
    assert same(before, {key: bank.state_dict()[key] for key in before})
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(part.training for part in bank.modules())
    assert all(parameter.grad is None for parameter in bank[blocks_of(bank)[0]].parameters())
    assert all(module.drop_path_rate == 0 for module in map(bank.__getitem__, entries))


@pytest.mark.parametrize("name", NAMES)
def test_others_beside_an_alternative_do_not_matter(name: str) -> None:
    together, alone = bank_of(name), bank_of(name)
    entries = distil_alternatives(together, images_of(), settings=Distillation(steps=4, places=9))
    for entry in reversed(entries):
        distil_alternatives(alone, images_of(), entries=[entry], settings=QUICK)
    assert same(state_of(together), state_of(alone))


def test_weights_that_start_anew_are_those_of_the_seed() -> None:
    banks = [bank_of("metaformers") for _ in range(2)]
    for seed, bank in enumerate(banks):
        entries = distil_alternatives(bank, images_of(), settings=Distillation(steps=1, seed=seed))
    for entry in entries:
        states = [bank[entry].state_dict() for bank in banks]
        anew = entry[1].label == "separable_conv" or entry[1].as_dict()["style"] == "projection"
        assert same(*states) != anew  # others share all they have


# Interrupted, resumed, refused -------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_it_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = bank_of(name)
    entries = distil_alternatives(whole, images_of(), settings=QUICK)
    calls: list[tuple[int, int]] = []

    def stopping(done: int, total: int, figures: dict[str, float]) -> None:
        calls.append((done, total))
        assert 0 <= figures["relative_error"] < 1e3
        if done == QUICK.steps + 2:  # within the second group
            raise StopError

    folder = tmp_path / "distilled"
    options: dict[str, Any] = {"settings": QUICK, "folder": folder, "data": "random"}
    with pytest.raises(StopError):
        distil_alternatives(bank_of(name), images_of(), progress=stopping, **options)
    first = [entry for entry in entries if entry[0] == entries[0][0]]
    kept = {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert kept.keys() == {entry_name(entry) for entry in first}
    calls.clear()
    resumed = bank_of(name)
    assert (
        distil_alternatives(
            resumed, images_of(), progress=lambda *call: calls.append(call[:2]), **options
        )
        == entries
    )
    assert same(state_of(whole), state_of(resumed))
    assert all(
        (folder / f"{key}.safetensors").stat().st_mtime_ns == stamp for key, stamp in kept.items()
    )
    groups = len({path for path, _ in entries}) - 1
    assert calls == [(k + 1, groups * 4) for k in range(groups * 4)]
    again = bank_of(name)
    distil_alternatives(again, [], **options)  # all is there, so no image is looked at
    assert same(state_of(whole), state_of(again))


def test_another_parent_or_other_settings_are_refused(tmp_path: Path) -> None:
    bank = bank_of("metaformers")
    entries = distil_alternatives(bank, images_of(), settings=QUICK, folder=tmp_path, data="a")
    other, twice = bank_of("metaformers", 1), Distillation(steps=8)
    cases = [
        (other, entries, QUICK, "a", r"parent\.weights is"),
        (bank_of("metaformers"), entries, twice, "a", "distillation.steps is 4 there, 8 here"),
        (bank_of("metaformers"), entries, QUICK, "b", "data is 'a' there, 'b' here"),
        (bank, entries, QUICK, "a", "starts is 'of the parent' there"),
    ]
    for of, chosen, settings, data, message in cases:
        options: dict[str, Any] = {"settings": settings, "folder": tmp_path, "data": data}
        with pytest.raises(RunError, match=message):
            distil_alternatives(of, images_of(), entries=chosen, **options)


def test_places_are_none_of_the_settings_that_decide(tmp_path: Path) -> None:
    bank = bank_of("metaformers")
    distil_alternatives(bank, images_of(), settings=QUICK, folder=tmp_path)
    again = bank_of("metaformers")
    settings = Distillation(steps=4, places=3)
    distil_alternatives(again, images_of(), settings=settings, folder=tmp_path)
    assert same(state_of(bank), state_of(again))


def test_what_the_parent_does_not_show_is_left_alone_or_refused() -> None:
    parent = SPACES["metaformers"].largest
    space = around(parent, Around(ratios=(0.5,), widths=(0.5,), resolutions=()))
    bank = WeightBank(space, build(parent, 10))
    missing, learnt = set(bank.missing()), distil_alternatives(bank, images_of(), settings=QUICK)
    assert 0 < len(learnt) < len(missing)
    assert set(bank.missing()) == missing - set(learnt)
    own = dict(blocks_of(bank))
    for path, spec in learnt:
        assert spec.as_dict()["dim"] == own[path].as_dict()["dim"]
    foreign = bank_of("convolutions").entries[3]
    for entry, message in [
        (bank.missing()[0], "cannot be distilled"),
        (blocks_of(bank)[0], "the parent's own"),
        (foreign, "does not hold"),
    ]:
        with pytest.raises(InvalidArchitectureError, match=message):
            distil_alternatives(bank, images_of(), entries=[entry])


@pytest.mark.parametrize("field", ["steps", "lr", "clip_norm", "places", "seed"])
def test_settings_are_checked(field: str) -> None:
    for value in (-1, float("nan"), *(() if field == "seed" else (0,))):
        with pytest.raises(RunError, match=f"{field} of the distillation is"):
            Distillation(**{field: value})


def test_images_are_needed_again_and_again() -> None:
    bank = bank_of("metaformers")
    for batches in ([], (pair for pair in images_of()), images_of(3, size=1)):
        with pytest.raises(DataError, match="no images"):
            distil_alternatives(bank, batches, settings=QUICK)
    one_more = [*images_of(2), *images_of(1, size=1)]  # a last batch of one image
    distil_alternatives(bank_of("convolutions"), one_more, settings=QUICK)


# Losses that are not finite -----------------------------------------------------------------------


def test_a_student_that_fails_once_is_trained_again_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = bank_of("metaformers")
    entries = [entry for entry in bank.missing() if entry[0] == bank.missing()[0][0]][:2]
    calls = 0

    def students() -> list[Student]:
        torch.manual_seed(0)
        return [Student(entry, bank.fresh(entry)) for entry in entries]

    expected = students()
    assert distil(bank, images_of(), expected[:1], QUICK) == []
    slower = Distillation(steps=QUICK.steps, lr=0.1 * QUICK.lr)
    assert distil(bank, images_of(), expected[1:], slower) == []
    found = students()

    def fails_once(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal calls
        calls += 1
        return output * torch.nan if calls == 2 else None

    found[1].module.register_forward_hook(fails_once)
    assert distil(bank, images_of(), found, QUICK) == []
    assert calls == 2 + QUICK.steps
    for a, b in zip(expected, found, strict=True):
        assert same(a.module.state_dict(), b.module.state_dict())


def test_a_student_that_fails_again_keeps_its_start_and_is_named() -> None:
    bank = bank_of("convolutions")
    entry = bank.missing()[0]
    student = Student(entry, bank.fresh(entry))
    before = copy.deepcopy(dict(student.module.named_parameters()))
    hopeless = Distillation(steps=4, lr=1e30)
    assert distil(bank, images_of(), [student], hopeless) == [student]
    assert same(before, dict(student.module.named_parameters()))
    means = [part.running_mean for part in student.module.modules() if isinstance(part, BatchNorm)]
    assert all(mean.any() for mean in means if mean is not None)  # of the images all the same
    with pytest.warns(UserWarning, match=r"at stages\..* is not finite") as warned:
        distil_alternatives(bank, images_of(), entries=[entry], settings=hopeless)
    assert len(warned) == 1
    assert all(value.isfinite().all() for value in bank[entry].parameters())


def test_images_or_parents_that_are_not_finite_are_named() -> None:
    bank = bank_of("metaformers")
    bad = [(images * torch.inf, labels) for images, labels in images_of()]
    with pytest.raises(DataError, match=r"input of the parent's stages\.0\.blocks\.0"):
        distil_alternatives(bank, bad, settings=QUICK)
    with torch.no_grad():
        next(bank.parent_module("stages.0.blocks.1").parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match=r"output of the parent's stages\.0\.blocks\.1"):
        distil_alternatives(bank, images_of(), settings=QUICK)
