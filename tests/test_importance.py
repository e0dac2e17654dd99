"""Criteria of importance are what their formulas say, for every sort of block and unit."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cut_cases import cases, images, parent, reordered
from torch import Tensor

from supernet.inherit.importance import CRITERIA, Units
from supernet.inherit.importance.feeds import consumers
from supernet.inherit.importance.gate import gate
from supernet.inherit.importance.optin import ROWS
from supernet.inherit.observing import chain, observe
from supernet.inherit.smaller import inner_units
from supernet.network.axes import entries
from supernet.network.backbone import Backbone

OURS = tuple(name for name in CRITERIA if name != "first")
PATH = "stages.0.blocks.1"


def all_units(network: Backbone) -> list[Units]:
    return [
        Units(path, names)
        for path, module in chain(network)
        for names in inner_units(module)
        if module.sizes()[min(names)] > 1
    ]


def loss(network: Backbone, batch: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return F.cross_entropy(network(batch[0]), batch[1]).item()


@torch.no_grad()
def scaled(network: Backbone, units: Units, unit: int, factor: float) -> Backbone:
    """A copy in which all that belongs to a unit is multiplied, once for each dimension."""
    network = copy.deepcopy(network)
    module = units.module(network)
    for name, axes in module.axes().items():
        for dim, axis in enumerate(axes):
            for unit_name in units.names:
                of = torch.tensor(entries(axis, module.sizes(), unit_name))
                parameter = module.get_parameter(name)
                parameter.index_copy_(
                    dim,
                    (of == unit).nonzero()[:, 0],
                    parameter.index_select(dim, (of == unit).nonzero()[:, 0]) * factor,
                )
    return network


@pytest.mark.parametrize("name", OURS)
@cases
def test_every_unit_has_a_number_that_goes_with_it(name: str, case: str) -> None:
    network, batches = parent(case), images(8)
    units = all_units(network)
    assert any(one.path == PATH for one in units)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    scores = CRITERIA[name].call(network, units, batches)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    other = copy.deepcopy(network)
    for one in units:
        module = one.module(other)
        size = module.sizes()[min(one.names)]
        assert scores[one].shape == (size,)
        assert scores[one].dtype == torch.float64
        assert (scores[one] >= 0).all()
        assert scores[one].max() > 0
        order = np.random.default_rng(size).permutation(size).tolist()
        module.load_state_dict(reordered(module, dict.fromkeys(one.names, order)))
        scores[one] = scores[one][torch.tensor(order)]
    for one, values in CRITERIA[name].call(other, units, batches).items():
        torch.testing.assert_close(values, scores[one], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", ["inverted", "basic", "gated", "window_attention", "gnconv"])
def test_taylor_is_the_derivative_by_a_unit(case: str) -> None:
    network, batches = parent(case).double(), images()
    batches = [(pixels.double(), labels) for pixels, labels in batches]
    units = [one for one in all_units(network) if one.path == PATH]
    scores = CRITERIA["taylor"].call(network, units, batches)
    step = 1e-5
    for one in units:
        for unit in range(0, len(scores[one]), 5):
            changes = [
                abs(
                    loss(scaled(network, one, unit, 1 + step), batch)
                    - loss(scaled(network, one, unit, 1 - step), batch)
                )
                for batch in batches
            ]
            expected = np.mean(changes) / (2 * step)
            assert scores[one][unit].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_gate_is_the_square_of_its_gradient_less_what_time_is_worth() -> None:
    network, batches = parent("inverted"), images()
    units = [one for one in all_units(network) if one.path == PATH]
    by_batch = [CRITERIA["taylor"].call(network, units, [batch]) for batch in batches]
    scores, aware = (
        gate(network, units, batches),
        gate(network, units, batches, lambda one: 2.0, 0.1),
    )
    for one in units:
        expected = sum(each[one].square() for each in by_batch) / len(batches)
        torch.testing.assert_close(scores[one], expected)
        torch.testing.assert_close(aware[one], expected - 0.2)


@pytest.mark.parametrize("case", ["gated", "basic", "window_attention", "cascaded_group_attention"])
def test_second_order_is_of_each_image_by_itself(case: str) -> None:
    network = parent(case).double()
    batches = [(pixels.double(), labels) for pixels, labels in images(8)]
    units = [one for one in all_units(network) if one.path == PATH]
    scores = CRITERIA["second_order"].call(network, units, batches)
    step = 1e-5
    for one in units:
        for unit in range(0, len(scores[one]), 5):
            squares = []
            for pixels, labels in batches:
                for k in range(len(labels)):
                    each = pixels[k : k + 1], labels[k : k + 1]
                    ends = [fed(network, one, unit, 1 + sign * step, each) for sign in (1, -1)]
                    squares.append(((ends[0] - ends[1]) / (2 * step)) ** 2)
            expected = np.mean(squares) / 2
            assert scores[one][unit].item() == pytest.approx(expected, rel=1e-3, abs=1e-9)


def fed(
    network: Backbone, one: Units, unit: int, factor: float, batch: tuple[Tensor, Tensor]
) -> float:
    """The loss when what a unit gives is multiplied: the columns that read it, or the rows."""
    network = copy.deepcopy(network)
    module = one.module(network)
    with torch.no_grad():
        for layer, dim in consumers(module, one.names):
            for which in ("weight", "bias") if dim == 0 else ("weight",):
                parameter = getattr(module.get_submodule(layer), which)
                if parameter is not None:
                    axis = module.axes()[f"{layer}.{which}"][dim]
                    of = [entries(axis, module.sizes(), name) for name in one.names]
                    chosen = (torch.tensor(of) == unit).any(0).nonzero()[:, 0]
                    part = parameter.index_select(dim, chosen) * factor
                    parameter.index_copy_(dim, chosen, part)
    return loss(network, batch)


def test_optin_is_the_distance_without_the_unit() -> None:
    network, batches = parent("inverted").double(), images(8)
    batches = [(torch.cat([b[0] for b in batches]).double(), torch.cat([b[1] for b in batches]))]
    one = Units("stages.1.blocks.0", frozenset({"hidden"}))
    scores = CRITERIA["optin"].call(network, [one], batches)[one]

    def seen(model: Backbone) -> tuple[Tensor, Tensor]:
        x, outputs = batches[0][0], {}
        for path, module in chain(model):
            x = outputs[path] = module(x)
        rows = outputs[one.path].flatten(0, 2)
        rows = rows / rows.norm(dim=1, keepdim=True)
        return rows @ rows.T, x

    manifold, logits = seen(network)
    assert len(manifold) <= ROWS
    p = (logits / 4).softmax(1)
    moves, losses = [], []
    for unit in range(len(scores)):
        other = copy.deepcopy(network)
        with torch.no_grad():
            one.module(other).project.conv.weight[:, unit] = 0
        theirs, answer = seen(other)
        moves.append((theirs - manifold).square().sum())
        losses.append(16 * (p * (p.log() - (answer / 4).log_softmax(1))).sum(1).mean())
    factor = 10 ** round(
        math.log10(sum(move.item() for move in moves) / (10 * sum(each.item() for each in losses)))
    )
    expected = torch.stack(moves) + factor * torch.stack(losses)
    torch.testing.assert_close(scores, expected.detach())


@pytest.mark.parametrize("case", ["pooling", "basic", "attention"])
def test_reconstruction_takes_out_what_others_make_up_for(case: str) -> None:
    network, batches = parent(case), images(200)
    layer, name, count = {
        "pooling": ("mlp.fc2", "hidden", 6),
        "basic": ("second.conv", "hidden", 3),
        "attention": ("mixer.proj", "heads", 1),
    }[case]
    path = "stages.1.blocks.0" if case == "attention" else PATH
    one = Units(path, frozenset({name}))
    places = CRITERIA["reconstruction"].call(network, [one], batches)[one]
    module, x = one.module(network), torch.cat([pixels for pixels, _ in batches])
    for at, part in chain(network):
        if at == path:
            break
        x = part(x)
    _, seen = observe(module, x, [layer])
    part, (read, _) = module.get_submodule(layer), seen[layer]
    if case == "basic":
        rows = F.unfold(read, 3, padding=1).mT.flatten(0, 1).detach().double().numpy()
        weight = part.weight.flatten(1) * module.second.norm.affine()[0][:, None]
    else:
        rows, weight = read.flatten(0, -2).detach().double().numpy(), part.weight
    rows = rows - (0 if case == "attention" else rows.mean(0))
    y, each = rows @ weight.detach().double().numpy().T, rows.shape[1] // len(places)
    gone: list[int] = []
    for _ in range(count):
        errors = {}
        for unit in set(range(len(places))) - set(gone):
            left = [f for f in range(rows.shape[1]) if f // each not in (*gone, unit)]
            fit = np.linalg.lstsq(rows[:, left], y, rcond=None)[0]
            errors[unit] = np.square(y - rows[:, left] @ fit).sum()
        gone.append(min(errors, key=errors.__getitem__))
    assert [int((places == step).nonzero()) for step in range(count)] == gone


def test_shares_of_energy_are_lamp() -> None:
    network = parent("pooling")
    one = Units(PATH, frozenset({"hidden"}))
    scores = CRITERIA["energy_share"].call(network, [one], [])[one]
    mlp = one.module(network).mlp
    expected = np.zeros(len(scores))
    for weight, dim in ((mlp.fc1.weight, 0), (mlp.fc2.weight, 1)):
        squares = weight.detach().double().numpy() ** 2
        for index in np.ndindex(*squares.shape):
            share = squares[index] / squares[squares >= squares[index]].sum()
            expected[index[dim]] += share
    np.testing.assert_allclose(scores, expected)


def test_activation_is_the_mean_square_of_what_is_read() -> None:
    for case, layer, at in (
        ("pooling", "mlp.fc2", lambda x: x),
        ("gated", "project.conv", lambda x: x.permute(0, 2, 3, 1)),
        ("bottleneck", "expand.conv", lambda x: x.permute(0, 2, 3, 1)),
    ):
        network, batches = parent(case), images()
        names = frozenset({"inner" if case == "bottleneck" else "hidden"})
        one, pixels = Units(PATH, names), torch.cat([pixels for pixels, _ in batches])
        x = pixels
        for path, module in chain(network):
            if path == PATH:
                break
            x = module(x)
        _, seen = observe(one.module(network), x, [layer])
        read = at(seen[layer][0]).detach().flatten(0, 2).double()
        expected = [read[:, unit].square().mean() for unit in range(read.shape[1])]
        scores = CRITERIA["activation"].call(network, [one], batches)[one]
        torch.testing.assert_close(scores, torch.stack(expected))


def test_heads_are_judged_by_all_their_channels() -> None:
    network, batches = parent("attention"), images()
    path = "stages.1.blocks.0"
    heads, each = Units(path, frozenset({"heads"})), Units(path, frozenset({"head_dim"}))
    scores = CRITERIA["activation"].call(network, [heads, each], batches)
    assert len(scores[heads]) == 2
    assert len(scores[each]) == 8
    assert scores[heads].sum() == pytest.approx(scores[each].sum())


def test_magnitude_is_of_the_weights_with_norms_folded() -> None:
    network = parent("inverted")
    one = Units(PATH, frozenset({"hidden"}))
    scores = CRITERIA["magnitude"].call(network, [one], [])[one]
    block = one.module(network)
    for unit in range(len(scores)):
        scale = block.project.norm.affine()[0].square().detach()
        total = (block.project.conv.weight[:, unit, 0, 0].double().square() * scale).sum().item()
        for part in (block.expand, block.depthwise):
            factor = part.norm.affine()[0][unit].item()
            total += factor**2 * part.conv.weight[unit].square().sum().item()
        assert scores[unit].item() == pytest.approx(math.sqrt(total), rel=1e-5)


def test_criteria_are_known_by_their_names() -> None:
    assert set(OURS) == {
        *("activation", "energy_share", "gate", "magnitude", "optin", "reconstruction"),
        *("second_order", "taylor"),
    }
