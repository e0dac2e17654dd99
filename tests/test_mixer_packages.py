"""A package of somebody else's adds a mixer by an entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from nas.cli.main import cli
from predictors.counts import count_architecture, count_entry
from predictors.measuring.this_machine import implementation_digest
from search_space import MIXERS, Macro, Mixer, metaformer
from search_space.components import block_spec
from search_space.errors import UnknownNameError, UsageError
from search_space.registry import points
from search_space.space_definition import space_from_dict
from supernet import Supernet
from supernet.network.channel_order import sort_channels
from supernet.network.registry import register_mixer
from supernet.network.templates import template

MODULE = """
import torch
from torch import Tensor, nn
from search_space import MixerSpec, Param
from supernet.network.axes import Axes
from supernet.network.mixers import Mixer, register_mixer

@register_mixer(MixerSpec("scaled", {"power": Param(1)}))
class Scaled(Mixer):
    def __init__(self, dim: int, power: int = 1) -> None:
        super().__init__()
        self.dim, self.power = dim, power
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma**self.power

    def axes(self) -> dict[str, Axes]:
        return {"gamma": ("dim",)}

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)
"""
POINTS = """
[nas.mixers]
scaled = scaled_mixer
broken = scaled_mixer.no_such_module
forgotten = textwrap
pooling = scaled_mixer
"""


@pytest.fixture(autouse=True)
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package whose entry points name mixers, which nothing has imported yet."""
    file = tmp_path / "scaled_mixer.py"
    file.write_text(MODULE)
    info = tmp_path / "scaled_mixer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scaled-mixer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(MIXERS, "_rules", dict(MIXERS._rules))
    monkeypatch.setattr(register_mixer, "_classes", dict(register_mixer._classes))
    points.cache_clear()
    yield file
    points.cache_clear()
    sys.modules.pop("scaled_mixer", None)


def test_a_space_uses_it_like_one_of_ours() -> None:
    assert "scaled" in MIXERS.names()
    assert ", ".join(MIXERS.names()) in CliRunner().invoke(cli, "spaces").output
    assert "scaled_mixer" not in sys.modules  # names cost no import
    stage = {"width": [8, 16], "depth": [1, 2], "mixers": [{"scaled": {"power": [1, 2]}}]}
    macro = {"stem_kernel": 2, "stem_stride": 2}
    space = space_from_dict(
        {"name": "mine", "resolution": 16, "macro": macro, "stages": [stage] * 4}
    )
    torch.manual_seed(0)
    supernet = Supernet(space, 5).eval()
    images = torch.randn(2, 3, 16, 16)
    for architecture in space.decode(space.sample(np.random.default_rng(0), 3)):
        network = supernet.extract(architecture)
        assert torch.equal(supernet(images, architecture), network(images))
        assert network.stages[0].blocks[0].mixer.gamma.tolist() == [0.5] * architecture.widths[0]
        size = sum(parameter.numel() for parameter in network.parameters())
        assert count_architecture(architecture, 5)["num_params"] == size
    before = supernet(images, space.largest)
    sort_channels(supernet)
    torch.testing.assert_close(supernet(images, space.largest), before)


def test_errors_name_the_package_and_the_nearest() -> None:
    for name, problem in (("broken", "No module named"), ("forgotten", "registers no mixer")):
        with pytest.raises(UsageError, match=rf"'{name}' of the package 'scaled-mixer'.*{problem}"):
            Mixer.of(name)
    with pytest.raises(
        UnknownNameError, match=r"Did you mean 'scaled'\?.*broken, .*depthwise_conv"
    ):
        Mixer.of("scaledd")


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ('{"gamma": ("dim",)}', "{}", r"mixer.gamma has shape \(24,\), but .* say None; declare"),
        ('{"gamma": ("dim",)}', '{"gamma": ("dim", 2)}', r"say \(24, 2\)"),
        ('{"gamma": ("dim",)}', '{"gamma": ("size",)}', r"axes\(\) has size, but sizes"),
        ('{"gamma"', '{"beta": ("dim",), "gamma"', "has mixer.beta, which is no parameter"),
        ('frozenset({"dim"})', 'frozenset({"dim", "hidden"})', "are no axes of one size"),
        ("self.gamma = nn", 'self.register_buffer("x", torch.ones(1)); self.gamma = nn', "buffers"),
    ],
)
def test_a_wrong_declaration_is_said(
    other_package: Path, right: str, wrong: str, problem: str
) -> None:
    other_package.write_text(MODULE.replace(right, wrong))
    with pytest.raises(UsageError, match=problem):
        template(block_spec(Macro(), 24, metaformer(Mixer.of("scaled"), 2.0), 0))


def test_ours_are_not_replaced() -> None:
    assert register_mixer["pooling"].__module__ == "supernet.network.mixers.pooling"


def test_latencies_are_keyed_by_its_code_too(other_package: Path) -> None:
    before = implementation_digest.__wrapped__()
    other_package.write_text(MODULE.replace("x * self.gamma", "self.gamma * x"))
    assert implementation_digest.__wrapped__() != before


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("power: int", "exponent: int", r"TypeError: Scaled.__init__ must take dim, power: "),
        ('MixerSpec("scaled"', 'MixerSpec("pooling"', "'pooling' is registered already; give"),
    ],
)
def test_rules_and_class_must_agree(
    other_package: Path, right: str, wrong: str, problem: str
) -> None:
    other_package.write_text(MODULE.replace(right, wrong))
    with pytest.raises(UsageError, match=problem):
        Mixer.of("scaled")


def test_a_mixer_that_changes_the_maps_shape_is_refused_before_anything_is_measured(
    other_package: Path,
) -> None:
    other_package.write_text(MODULE.replace("x * self.gamma**self.power", "x.mean(1)"))
    spec = block_spec(Macro(), 24, metaformer(Mixer.of("scaled"), 2.0), 0)
    with pytest.raises(UsageError, match=r"'scaled' makes \[\(1, 8, 24\)\].*\(1, 8, 8, 24\)"):
        count_entry(spec, 8)
