"""Costs that are not latency: secure computation against protocols that are run, and energy."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from secret_shares import Parties
from tiny_job import USAGE, nas

from predictors.counts import count_entry
from predictors.estimates import secure
from predictors.estimates.energy import energy_joules
from predictors.estimates.secure import Exchange, exchange_of, secure_seconds
from predictors.measuring import bench, energy
from predictors.measuring.energy import Counters, measure_energy
from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import entries
from predictors.tables.cost_table import load_cost, total_costs
from results.export.write import export_network
from results.journal import read_journal
from search_space import (
    MIXERS,
    Architecture,
    Block,
    Macro,
    Mixer,
    ModuleSpec,
    components,
    known,
    load_space,
    metaformer,
    space_names,
)
from search_space.components import block_spec
from search_space.errors import UsageError
from search_space.mixers import NORMALISERS


def block_of(block: Block, width: int = 64, macro: Macro | None = None) -> ModuleSpec:
    spec = block_spec(macro or Macro(), width, block, 1)
    assert spec is not None
    return spec


def attention(normaliser: str) -> ModuleSpec:
    return block_of(metaformer(Mixer.of("attention", normaliser=normaliser)))


# Secure computation --------------------------------------------------------------------------


def sent(parties: Parties) -> Exchange:
    return Exchange(parties.rounds, parties.bytes)


@pytest.mark.parametrize(("rows", "keys"), [(3, 2), (5, 7), (4, 16)])
def test_the_model_counts_what_parties_send(rows: int, keys: int) -> None:
    scores = np.random.default_rng(0).normal(0, 1, (rows, keys))
    signs = Parties()
    above = signs.shown(signs.relu(signs.secret(scores)))
    np.testing.assert_allclose(above, np.maximum(scores, 0), atol=1e-4)
    assert sent(signs) == secure.RELU.times(rows * keys)
    inverse = Parties()
    positive = np.abs(scores) + 0.5
    values = inverse.shown(inverse.reciprocal(inverse.secret(positive)))
    np.testing.assert_allclose(values, 1 / positive, rtol=0.01)
    assert sent(inverse) == secure.RECIPROCAL.times(rows * keys)
    pool = Parties()
    most = pool.shown(pool.largest(pool.secret(np.resize(scores, (rows, 9)))))
    np.testing.assert_allclose(most[:, 0], np.resize(scores, (rows, 9)).max(1), atol=1e-3)
    assert sent(pool) == secure.largest(9).times(rows)
    whole = Parties()
    weights = whole.shown(whole.softmax(whole.secret(scores)))
    np.testing.assert_allclose(weights, torch.tensor(scores).softmax(-1).numpy(), atol=0.01)
    assert sent(whole) == secure.softmax(rows, keys)


def test_attention_is_its_products_and_its_normaliser() -> None:
    """Two heads of 32 channels on 4 × 4 positions, by what is opened one after the other."""
    positions, dim, heads = 16, 64, 2
    scores = heads * positions**2
    products = Exchange(2, 8 * (2 * positions * dim + scores + positions * dim))
    parties = Parties()
    parties.relu_softmax(parties.secret(np.ones((heads * positions, positions))))
    normalisers = {
        "softmax": secure.softmax(heads * positions, positions),
        "relu_softmax": sent(parties),
    }
    rest = exchange_of(block_of(metaformer(Mixer.of("pooling"))), 4)
    layers = Exchange(2, 8 * 2 * positions * dim)  # qkv and proj read a map each
    for name, normaliser in normalisers.items():
        assert exchange_of(attention(name), 4) == rest + layers + products + normaliser
    # keys and values first: two matrices of 32 × 32 are opened instead of the scores
    product = Exchange(2, 8 * (3 * positions * dim + heads * 32 * 32))
    few = exchange_of(attention("scaling"), 4)
    assert few.rounds == (rest + layers + product).rounds


@pytest.mark.parametrize("side", [4, 8, 14])
@pytest.mark.parametrize("network", secure.NETWORKS.values())
def test_softmax_takes_longest_and_scaling_least(side: int, network: secure.Network) -> None:
    """MPCViT's order, of the mixer: what a block has besides is that of pooling, which is free."""
    rest = secure_seconds(block_of(metaformer(Mixer.of("pooling"))), side, network)
    taken = {n: secure_seconds(attention(n), side, network) - rest for n in NORMALISERS}
    assert taken["softmax"] > 1.4 * taken["relu_softmax"]
    assert taken["relu_softmax"] > 2 * taken["scaling"] > 0
    assert taken["softmax"] > 7 * taken["scaling"]
    assert taken["relu_softmax"] > taken["2quad"] > taken["scaling"]


def test_every_operator_of_ours_is_known() -> None:
    for name in MIXERS:
        assert exchange_of(block_of(metaformer(Mixer.of(name))), 7).rounds > 0
    for preset in set(space_names()) - {"base"}:
        for spec, size in entries(load_space(preset), 10)[::5]:
            assert exchange_of(spec, size).rounds > 0
    for design in ("resnet18", "resnet18d", "caformer_s18"):
        for part in components(known(design)):
            assert exchange_of(part.spec, part.in_size).rounds > 0
    for gate, norm in itertools.product(("sigmoid", "hard_sigmoid"), ("batch_norm", "layer_norm")):
        block = Block.of("inverted_residual", squeeze=0.5, gate=gate, activation="hard_swish")
        assert exchange_of(block_of(block, macro=Macro(norm=norm)), 7).rounds > 0


def test_an_unknown_operator_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(secure._ELEMENTWISE, "gelu")
    with pytest.raises(UsageError, match=r"no operator 'gelu'; it knows .*relu.*add its rounds"):
        exchange_of(attention("softmax"), 4)


# Energy --------------------------------------------------------------------------------------


def test_energy_is_that_of_operations_and_bytes() -> None:
    """A pooling mixer and its MLP, by hand: two norms, a pool, a difference, sums, two layers."""
    spec, side, dim = block_of(metaformer(Mixer.of("pooling"), 2.0)), 8, 64
    counted = count_entry(spec, side)
    weights = 4 * counted.num_params
    a_map = 4 * side**2 * dim
    # norms, pool and gelu: in and out; difference and sums: two in, one out; layers: 1 + 2 wide
    maps = (2 * 2 + 2 + 3 * 3) * a_map + 2 * 2 * a_map + 2 * 3 * a_map
    expected = 4.6e-12 * counted.macs + 162.5e-12 * weights + 12.5e-12 * maps
    assert energy_joules(spec, side) == pytest.approx(expected, rel=1e-6)


def powercap(root: Path, name: str, label: str, value: int = 0, span: int = 10**9) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for key, text in (("name", label), ("energy_uj", value), ("max_energy_range_uj", span)):
        (folder / key).write_text(f"{text}\n")
    return folder / "energy_uj"


def test_counters_are_of_packages_and_pass_their_end(tmp_path: Path) -> None:
    assert not Counters(tmp_path)
    first = powercap(tmp_path, "intel-rapl:0", "package-0", 999_999_000)
    second = powercap(tmp_path, "intel-rapl:1", "package-1", 5)
    powercap(tmp_path, "intel-rapl:0:0", "core", 7)
    powercap(tmp_path, "intel-rapl:2", "psys", 7)
    (powercap(tmp_path, "intel-rapl:3", "package-3").parent / "energy_uj").unlink()
    counters = Counters(tmp_path)
    before = counters.read()
    assert before == [999_999_000, 5]
    first.write_text("1000\n")
    second.write_text("1005\n")
    assert counters.joules(before, counters.read()) == pytest.approx(3000e-6)


def test_energy_is_what_the_counters_say_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that uses 40 µJ each time any module of the space runs, and ticks then."""
    file = powercap(tmp_path, "intel-rapl:0", "package-0", span=10**6)
    ticks = itertools.count()

    class Metered:
        def prepare(self, module: torch.nn.Module, images: torch.Tensor, conditions: object):
            def run() -> None:
                module(images)
                file.write_text(str((int(file.read_text()) + 40) % 10**6))

            return run

    monkeypatch.setattr(energy, "find_runtime", lambda name: Metered())
    monkeypatch.setattr(bench, "_POOL_ELEMENTS", 2**16)
    asked = entries(load_space("digits"), 10)[:5]
    values = measure_energy(
        asked, local_conditions(), Counters(tmp_path), seconds=10, clock=lambda: next(ticks)
    )
    assert list(values) == asked
    assert all(value == pytest.approx(40e-6) for value in values.values())


# The command ---------------------------------------------------------------------------------

CIFAR_SIZED = """\
name: normalisers
resolution: 32
macro: {stem_kernel: 4, stem_stride: 4}
stages:
  - width: 64
    depth: 4
    mixers: [{attention: {normaliser: [scaling, relu_softmax, softmax]}}]
    mlp_ratio: 2
"""


def test_a_search_within_seconds_of_secure_computation(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a table says is what a search keeps to, so some blocks only may have softmax."""
    light = functools.partial(export_network, formats=("timm",))
    monkeypatch.setattr("nas.workflows.finishing.export_network", light)
    monkeypatch.setattr("nas.workflows.training_free.known_names", list)  # none to compare with
    Path("space.yaml").write_text(CIFAR_SIZED)
    space = load_space("space.yaml")
    said = nas("profile", "cost", "mpc", "mpc.parquet", "--space", "space.yaml", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["entries"] == len(entries(space))
    metric = load_cost("mpc", Path("mpc.parquet"))
    assert metric.name == "mpc_s"

    def seconds(architecture: Architecture) -> float:
        return total_costs([metric], architecture)["mpc_s"]

    wan = secure.NETWORKS["wan"]
    plain = sum(secure_seconds(part.spec, part.in_size, wan) for part in components(space.largest))
    assert seconds(space.largest) == pytest.approx(plain)
    limit = (seconds(space.smallest) + seconds(space.largest)) / 2
    searched = nas(
        *("search", "--space", "space.yaml", "--device", "a100", "--target-latency", "1s"),
        *("--cost", "mpc=mpc.parquet", "--max", f"mpc={limit:.6g}s", "--minimize", "mpc"),
        *("--json", "--name", "secret"),
    )
    assert searched.code == 0, searched.err
    result = json.loads(searched.out)
    assert result["best"]["predicted"]["mpc_s"] <= limit
    found = [
        Architecture.from_dict(evaluation.architecture)
        for evaluation in read_journal(Path(result["run"]) / "evaluations.jsonl")
    ]
    assert max(map(seconds, found)) <= limit * (1 + 1e-6)
    kept = {sum(b.mixer["normaliser"] == "softmax" for b in a.stages[0].blocks) for a in found}
    assert 0 < max(kept) < 4


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("energy", "x.parquet", "--network", "lan"), "--network is of mpc"),
        (("mpc", "x.parquet", "--modelled"), "--modelled is of energy"),
        (("water", "x.parquet"), "'energy', 'mpc'"),
    ],
)
def test_what_does_not_suit_a_cost(more: tuple[str, ...], problem: str, job: Path) -> None:
    said = nas("profile", "cost", *more)
    assert said.code == USAGE
    assert problem in said.err


def test_energy_is_measured_where_counters_can_be_read(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "ROOT", tmp_path / "powercap")
    quick = functools.partial(measure_energy, seconds=0)
    monkeypatch.setattr("nas.workflows.cost_tables.measure_energy", quick)
    monkeypatch.setattr(bench, "_POOL_ELEMENTS", 2**16)
    command = ("profile", "cost", "energy", "energy.parquet", "--space", "pebble.yaml")
    said = nas(*command)
    assert "the processor's counters cannot be read here" in said.out
    assert "--max energy=" in said.out
    powercap(tmp_path / "powercap", "intel-rapl:0", "package-0")
    assert "measured by the processor's counters" in nas(*command).out
    assert nas(*command, "--modelled").out.startswith(f"{len(entries(load_space('pebble.yaml')))}")
