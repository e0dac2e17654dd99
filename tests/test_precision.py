"""Half precision: who computes in which, and trainings whose losses are scaled."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_training import config, few_images, fresh
from worker_pair import small_space

from search_space.errors import RunError
from supernet.training import objectives, precision
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.parallel import Group
from supernet.training.precision import LossScale, half_precision
from supernet.training.train import train_supernet

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((6, 1), None), ((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 6), torch.bfloat16)],
)
def test_a_gpu_computes_in_16_bits_as_its_matrix_units_do(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert half_precision(torch.device("cuda"), "auto") is dtype
    assert half_precision(torch.device("cuda"), "off") is None
    assert half_precision(CPU, "auto") is None


def test_workers_of_different_precisions_are_refused():
    class Mixed(Group):
        def gather(self, text: str) -> list[str]:
            return [text, "float16"]

    with pytest.raises(RunError, match=r"float32, float16 \(by rank\).*set train.amp to 'off'"):
        LossScale(CPU, "auto", Mixed())


def scaled(monkeypatch: pytest.MonkeyPatch, init_scale: float) -> None:
    """Scales losses on the CPU, too, though it computes in float32."""
    monkeypatch.setattr(precision, "half_precision", lambda *_: torch.float16)
    monkeypatch.setattr(objectives, "autocast", lambda *_: nullcontext())
    scaler = partial(torch.amp.GradScaler, init_scale=init_scale)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


def trained(folder: Path | None = None, **how) -> tuple[dict[str, torch.Tensor], list]:
    supernet = fresh(small_space())
    history = train_supernet(supernet, few_images(), config(epochs=2, accumulate=2), folder, **how)
    return dict(supernet.state_dict()), history


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left | right)


def test_a_scale_that_fits_changes_nothing(monkeypatch):
    """Powers of two only move exponents: several subnets and parts of a batch add up as before."""
    plain, _ = trained()
    scaled(monkeypatch, 2.0**10)
    assert same(trained()[0], plain)


def test_an_overflow_leaves_steps_out_until_the_scale_fits_also_when_resumed(monkeypatch, tmp_path):
    scaled(monkeypatch, 2.0**127)  # no loss above 2 fits
    wanted, history = trained(tmp_path / "whole")
    assert history[-1].rollbacks == 0
    state = CheckpointFolder(tmp_path / "whole", "checkpoints").load().metadata["state"]
    scale = state["loss_scale"]["scale"]
    assert 1 < scale < 2.0**127
    assert not same(wanted, dict(fresh(small_space()).state_dict()))

    class StoppedError(Exception):
        pass

    def stop(done: int, *_: object) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        trained(tmp_path / "cut", progress=stop, checkpoint_seconds=0)
    assert same(trained(tmp_path / "cut")[0], wanted)


def test_a_gradient_that_no_scale_mends_rolls_back(monkeypatch):
    scaled(monkeypatch, 1.0)
    real, calls = objectives.label_loss, iter(range(10**9))

    def loss(*arguments):
        value = real(*arguments)
        return value + (value * 0).sqrt() if next(calls) == 6 else value  # its slope is 0 / 0

    monkeypatch.setattr(objectives, "label_loss", loss)
    assert trained()[1][-1].rollbacks == 1


def test_a_network_learns_in_float16(monkeypatch):
    exact, _ = trained()
    monkeypatch.setattr(precision, "half_precision", lambda *_: torch.float16)
    rough, history = trained()
    assert history[-1].rollbacks == 0
    difference = max(float((rough[name] - exact[name]).abs().max()) for name in exact)
    assert 0 < difference < 0.02
