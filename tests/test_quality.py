"""Quality tables: what replacing one block costs, what adds up of it, and what is kept in files."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.measuring.quality import measure_quality
from predictors.surrogates import AdditiveAccuracy, GaussianProcess, WithPrior
from predictors.surrogates.base import rank_quality
from predictors.tables.additive import AdditiveTable
from predictors.tables.quality import MissingQualityError, QualityTable, asked
from search.candidates import candidates
from search.exact.front import sweep
from search.problem import Objective, Problem
from search.samplers.registry import make_sampler
from search.samplers.surrogate import SurrogateSampler
from search_space import Architecture, Block, Genes, ModuleSpec, SearchSpace
from search_space.errors import CorruptFileError, RunError, UsageError
from search_space.space_definition import space_from_dict
from supernet import build
from supernet.inherit.bank import WeightBank
from supernet.network.norms import BatchNorm
from supernet.training.recalibration import recalibrate

_CONVOLUTIONS = {
    **{"stem": "conv_act", "stem_kernel": 3, "stem_stride": 2, "stem_width": 8},
    **{"downsample": "block", "norm": "batch_norm", "head_norm": "none"},
}
_MOBILE = {"inverted_residual": {"expansion": [1, 3]}}
SPACES: dict[str, dict[str, Any]] = {
    "convolutions": {  # batch norms; blocks that enter a stage are its transition
        "macro": _CONVOLUTIONS,
        "resolution": [16, 24],
        "stages": [
            {"width": 8, "depth": 1, "stride": 1, "choices": ["skip", "basic"]},
            {"width": 12, "depth": 3, "first": [_MOBILE], "choices": ["skip", _MOBILE, "basic"]},
        ],
    },
    "tokens": {  # layer norms, and transitions between the stages
        "macro": {"stem_kernel": 2, "stem_stride": 2},
        "resolution": [16],
        "stages": [
            {"width": 8, "depth": 2, "choices": ["skip", {"pooling": {"mlp_ratio": [1, 2]}}]},
            {"width": 12, "depth": 1, "choices": ["pooling", {"depthwise_conv": {"kernel": 3}}]},
        ],
    },
}
Seen = list[tuple[Tensor, Tensor]]


def images(side: int, seed: int) -> Seen:
    """Forty pictures in three batches, the same at every side."""
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randn(40, 3, 24, 24, generator=rng)
    labels = torch.randint(4, (40,), generator=rng)
    resized = F.interpolate(pictures, (side, side), mode="area")
    return list(zip(resized.split(16), labels.split(16), strict=True))


def held_out(side: int) -> Seen:
    return images(side, 1)


def training(side: int) -> Seen:
    return images(side, 2)


@cache
def bank_of(name: str) -> WeightBank:
    torch.manual_seed(0)
    space = space_from_dict({"name": name, **SPACES[name]})
    bank = WeightBank(space, _uneven(build(replace(space.largest, resolution=16), 4)))
    for entry in bank.missing():
        bank.put(entry, _uneven(bank.fresh(entry)))
    return bank.eval()


def _uneven(module: Any) -> Any:
    """Large weights, and batch norms whose averages are of something."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    for norm in module.modules():
        if isinstance(norm, BatchNorm):
            assert norm.running_mean is not None
            norm.running_mean.add_(0.3)
    return module


@cache
def table_of(name: str) -> QualityTable:
    return measure_quality(bank_of(name), held_out, training)


def changed(parent: Architecture, path: str, block: Block | None, side: int) -> Architecture:
    if block is None:
        return replace(parent, resolution=side)
    i, j = (int(part) for part in path.split(".")[1::2])
    blocks = [list(stage.blocks) for stage in parent.stages]
    blocks[i][j] = block
    stages = [
        replace(stage, blocks=tuple(own)) for stage, own in zip(parent.stages, blocks, strict=True)
    ]
    return replace(parent, stages=tuple(stages))


def logits_of(bank: WeightBank, architecture: Architecture, calibrated: bool = True) -> Tensor:
    """Of the whole network, extracted and recalibrated by itself."""
    network = bank.extract(architecture)
    if calibrated:
        recalibrate(network, training(architecture.resolution))
    with torch.no_grad():
        parts = [network(pictures) for pictures, _ in held_out(architecture.resolution)]
    return torch.cat(parts).double()


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_changes_are_those_of_whole_networks(name: str, calibrated: bool) -> None:
    bank = bank_of(name)
    table = measure_quality(bank, held_out, training if calibrated else None)
    labels = torch.cat([label for _, label in held_out(16)])
    own = logits_of(bank, bank.parent, calibrated)
    assert table.loss == pytest.approx(float(F.cross_entropy(own, labels)), abs=1e-6)
    assert table.accuracy == float((own.argmax(1) == labels).double().mean())
    assert set(table.changes) == set(asked(bank.space, bank.parent))
    for (path, block, side), change in table.changes.items():
        other = logits_of(bank, changed(bank.parent, path, block, side), calibrated)
        loss = F.cross_entropy(other, labels, reduction="none")
        loss -= F.cross_entropy(own, labels, reduction="none")
        kl = F.kl_div(
            other.log_softmax(1), own.log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        hits = (other.argmax(1) == labels).double() - (own.argmax(1) == labels).double()
        assert change.images == 40
        for values, mean, error in (
            (loss, change.loss, change.loss_error),
            (kl, change.kl, change.kl_error),
            (hits, change.accuracy, change.accuracy_error),
        ):
            assert mean == pytest.approx(values.mean().item(), abs=1e-5)
            assert error == pytest.approx(np.std(values.numpy(), ddof=1) / 40**0.5, abs=1e-5)
        assert (change.weights == "") == (block is None or block.skipped)
    assert max(change.kl for change in table.changes.values()) > 0.01  # changes are seen


@pytest.mark.parametrize("name", SPACES)
def test_the_bank_stays_as_it_is(name: str) -> None:
    bank = bank_of(name)
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    bank.train()
    measure_quality(bank, held_out, training)
    assert all(module.training for module in bank.modules())
    assert all(parameter.requires_grad for parameter in bank.parameters())
    bank.eval()
    assert all(torch.equal(value, before[key]) for key, value in bank.state_dict().items())


@pytest.mark.parametrize("measure", ["loss", "kl", "blend"])
@pytest.mark.parametrize("name", SPACES)
def test_predictions_are_sums_of_changes(name: str, measure: Any) -> None:
    bank, table = bank_of(name), table_of(name)
    space, parent = bank.space, bank.parent
    genes = space.sample(np.random.default_rng(0), 200)
    every_kl = np.array([[change.kl] for change in table.changes.values()])
    every_loss = np.array([change.loss for change in table.changes.values()])
    (slope,) = np.linalg.lstsq(every_kl, every_loss)[0]
    shares = {"loss": (1, 0), "kl": (0, 1), "blend": (0.5, max(slope, 0) / 2)}[measure]
    sums, squares = [], []
    for architecture in space.decode(genes):
        found = [
            table.changes[f"stages.{i}.blocks.{j}", block, 16]
            for i, stage in enumerate(architecture.stages)
            for j, block in enumerate(stage.blocks)
            if block != parent.stages[i].blocks[j]
        ]
        if architecture.resolution != 16:
            found.append(table.changes["", None, architecture.resolution])
        parts = [(change.loss, change.kl) for change in found]
        errors = [(change.loss_error, change.kl_error) for change in found]
        sums.append(sum(float(np.dot(shares, part)) for part in parts))
        squares.append(sum(float(np.square(np.multiply(shares, e)).sum()) for e in errors))
    base = 0.0 if measure == "kl" else table.loss
    predicted = table.compile(space, measure).predict(genes)
    np.testing.assert_allclose(predicted, base + np.array(sums), atol=1e-12)
    predicted = table.standard_error(space, genes, measure)
    np.testing.assert_allclose(predicted, np.sqrt(squares), atol=1e-12)
    own = space.encode([parent])
    assert table.compile(space, measure).predict(own) == pytest.approx(base)


def test_a_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    table = measure_quality(bank_of("tokens"), held_out, file=tmp_path / "quality.parquet")
    assert QualityTable.load(tmp_path / "quality.parquet") == table
    assert table.source.calibration == ""
    assert table_of("convolutions").source.calibration != ""
    assert table.source.parent == bank_of("tokens").parent
    (tmp_path / "quality.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptFileError, match="Delete the file to measure"):
        QualityTable.load(tmp_path / "quality.parquet")


class _StoppedError(Exception):
    pass


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    bank, file = bank_of("convolutions"), tmp_path / "quality.parquet"

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        measure_quality(bank, held_out, training, file=file, progress=stop)
    part, whole = QualityTable.load(file), table_of("convolutions")
    assert 0 < len(part.changes) < len(whole.changes)
    assert [path for path, _, _ in part.missing(bank.space)]
    # a mark on what is there shows that it is not measured again
    marked = {key: replace(change, loss=9.0) for key, change in part.changes.items()}
    part.with_changes(marked, part.created).save(file)
    table = measure_quality(bank, held_out, training, file=file)
    assert table.changes == {**whole.changes, **marked}
    assert QualityTable.load(file) == table
    with mock.patch.object(nn.Sequential, "forward", side_effect=AssertionError):
        assert measure_quality(bank, held_out, training, file=file) == table  # nothing is run


def test_an_alternative_with_other_weights_is_measured_again(tmp_path: Path) -> None:
    torch.manual_seed(3)
    bank, file = (
        WeightBank(bank_of("tokens").space, bank_of("tokens").extract(bank_of("tokens").parent)),
        tmp_path / "quality.parquet",
    )
    first, *others = bank.missing()
    bank.put(first, _uneven(bank.fresh(first)))
    table = measure_quality(bank, held_out, file=file)
    lacking = table.missing(bank.space)
    assert len(lacking) == len(others)  # what has no weights is left out
    with pytest.raises(MissingQualityError, match=f"lacks .*and {len(others) - 1} more"):
        table.compile(bank.space)
    bank.put(first, _uneven(bank.fresh(first)))
    again = measure_quality(bank, held_out, file=file)
    (key,) = [key for key in table.changes if table.changes[key] != again.changes[key]]
    assert key[0] == first[0]


def test_another_source_is_refused(tmp_path: Path) -> None:
    bank, file = bank_of("convolutions"), tmp_path / "quality.parquet"
    measure_quality(bank, held_out, training, file=file)
    with pytest.raises(UsageError, match="other values of the held-out images, so"):
        measure_quality(bank, training, training, file=file)
    with pytest.raises(UsageError, match="images that made averages"):
        measure_quality(bank, held_out, file=file)
    parent = bank.extract(bank.parent)
    with torch.no_grad():
        parent.head.fc.weight.mul_(2)
    with pytest.raises(UsageError, match="other values of the parent's weights"):
        measure_quality(WeightBank(bank.space, parent), held_out, training, file=file)
    assert len(QualityTable.load(file).changes) == len(table_of("convolutions").changes)


def test_wrong_input_is_refused() -> None:
    bank = bank_of("tokens")
    plain = SPACES["tokens"]
    for key, value in [("width", [8, 16]), ("depth", [1, 2])]:
        first = {**plain["stages"][0], "choices": ["pooling"], key: value}
        wider = space_from_dict({"name": "wider", **plain, "stages": [first, plain["stages"][1]]})
        with pytest.raises(UsageError, match=f"the {key}s of space 'wider'"):
            table_of("tokens").compile(wider)
    with pytest.raises(UsageError, match="1 held-out images"):
        measure_quality(bank, lambda side: [(torch.zeros(1, 3, side, side), torch.zeros(1).long())])
    batches = iter(held_out(16))  # nothing is left for a second pass
    with pytest.raises(UsageError, match="others at each pass"):
        measure_quality(bank, lambda side: batches)
    broken = WeightBank(bank.space, bank.extract(bank.parent))
    (entry, *_) = broken.missing()
    module = broken.fresh(entry)
    nn.init.constant_(next(module.parameters()), torch.nan)
    broken.put(entry, module)
    with pytest.raises(RunError, match="no finite numbers"):
        measure_quality(broken, held_out)


# Search -------------------------------------------------------------------------------------------


def latency_of(space: SearchSpace) -> AdditiveTable:
    """Made-up milliseconds of every entry."""

    def cost(spec: ModuleSpec, size: int) -> float:
        return 0.1 + zlib.crc32(str(spec).encode()) % 97 / 97 * size / 8

    return AdditiveTable.build(space, 4, cost)


def every(space: SearchSpace) -> Genes:
    ranges = [range(count) for count in space.cardinalities]
    return np.array(list(itertools.product(*ranges)), dtype=np.int64)


@pytest.mark.parametrize("measure", ["kl", "blend"])
@pytest.mark.parametrize("name", SPACES)
def test_the_front_is_that_of_all_networks(name: str, measure: Any) -> None:
    space = bank_of(name).space
    quality, latency = table_of(name).compile(space, measure), latency_of(space)
    front = sweep(space, quality, latency, maximise=(False, False))
    rows = every(space)
    assert len(rows) == space.size
    losses, costs = quality.predict(rows), latency.predict(rows)
    order = np.lexsort((losses, costs))
    best = np.minimum.accumulate(losses[order])
    steps = order[np.concatenate([[True], best[1:] < best[:-1] - 1e-9])]
    assert front.complete
    np.testing.assert_allclose(np.sort(front.cost), costs[steps], atol=1e-9)
    np.testing.assert_allclose(np.sort(front.quality), np.sort(losses[steps]), atol=1e-9)


@pytest.mark.parametrize("name", SPACES)
def test_candidates_are_of_the_front_or_within_errors_of_it(name: str) -> None:
    space, table = bank_of(name).space, table_of(name)
    quality, latency = table.compile(space), latency_of(space)
    front = sweep(space, quality, latency, maximise=(False, False)).genes
    budget = float(np.median(latency.predict(front)))
    rows = candidates(front, table, latency, budget, 8, np.random.default_rng(0))
    assert 0 < len(rows) <= 8
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (latency.predict(rows) <= budget).all()
    space.decode(rows)
    members = {row.tobytes() for row in front}
    assert rows[0].tobytes() in members
    assert latency.predict(rows[:1]) == max(c for c in latency.predict(front) if c <= budget)
    within = latency.predict(front) <= budget
    variants = [row for row in rows if row.tobytes() not in members]
    assert len(variants) > 1 or name == "tokens"
    for row in variants:
        cost, error = latency.predict(row[None]), table.standard_error(space, row[None])
        best = quality.predict(front[within & (latency.predict(front) <= cost)]).min()
        assert quality.predict(row[None]) <= best + 2 * error
    few = candidates(front, table, latency, budget, 8, np.random.default_rng(0), deviations=0)
    assert {row.tobytes() for row in few} <= members
    assert len(candidates(front, table, latency, 0.0, 8, np.random.default_rng(0))) == 0


def test_a_surrogate_learns_what_a_prior_misses() -> None:
    space, table = bank_of("convolutions").space, table_of("convolutions")
    rng = np.random.default_rng(0)
    genes = rng.permutation(np.unique(space.sample(rng, 200), axis=0))
    prior = table.compile(space)
    extra = 0.03 * (genes[:, -1] == 1)  # of the last block's first alternative, beside the sum
    errors = 0.2 + 0.05 * (prior.predict(genes) + extra)  # another unit
    learn, rest = genes[:24], genes[24:]
    model = WithPrior(AdditiveAccuracy(space), prior.predict)
    model.fit(learn, errors[:24])
    alone = AdditiveAccuracy(space)
    alone.fit(learn, errors[:24])

    def quality(predicted: Any) -> float:
        return rank_quality(errors[24:], predicted) or 0.0

    assert quality(model.predict(rest).mean) > quality(alone.predict(rest).mean)
    assert quality(model.predict(rest).mean) > quality(prior.predict(rest))
    assert model.predict(rest).deviation.min() >= 0
    assert (model.rank_quality or 0) > 0.5
    exact = WithPrior(AdditiveAccuracy(space), prior.predict)
    exact.fit(learn, 3 + 2 * prior.predict(learn))
    assert exact.slope == pytest.approx(2)
    np.testing.assert_allclose(exact.predict(rest).mean, 3 + 2 * prior.predict(rest), atol=1e-6)
    opposite = WithPrior(AdditiveAccuracy(space), lambda rows: -prior.predict(rows))
    opposite.fit(learn, prior.predict(learn))
    assert opposite.slope == 0
    noise = WithPrior(GaussianProcess(space), prior.predict)  # nothing to be learnt is left out
    noise.fit(learn, prior.predict(learn) + 1e-4 * rng.normal(size=len(learn)))
    assert quality(noise.predict(rest).mean) >= quality(prior.predict(rest)) - 0.05


@pytest.mark.parametrize("sampler", ["surrogate", "surrogate-trees", "surrogate-additive"])
def test_a_sampler_with_a_prior_knows_more_of_what_it_has_not_seen(sampler: str) -> None:
    space = bank_of("convolutions").space
    loss, latency = table_of("convolutions").compile(space), latency_of(space)
    problem = Problem(
        space,
        (Objective.on("accuracy"), Objective.on("latency_ms")),
        tables={"latency_ms": latency},
    )
    known = {}
    for prior in (None, {"accuracy": loss.predict}):
        model = make_sampler(sampler, problem, prior=prior)
        assert isinstance(model, SurrogateSampler)
        for _ in range(5):
            rows = model.ask(4)
            error = np.tanh(loss.predict(rows) / 4)  # minus the accuracy, but for its level
            figures = np.stack([error, latency.predict(rows)], axis=1)
            model.tell(rows, figures, np.zeros(len(rows)))
        known[prior is not None] = model.rank_quality["accuracy"] or 0.0
    assert known[True] > max(0.8, known[False])
