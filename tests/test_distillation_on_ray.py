"""Alternatives that are distilled on workers are those of one process, whatever dies on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import distillation_cases
import pytest
import torch
from distillation_cases import Deadly, bank_of, images_of

from search_space.errors import DataError, RunError
from supernet.cluster.connection import connected
from supernet.cluster.distillation import TeachingOnRay
from supernet.inherit.bank import entry_name
from supernet.inherit.local_distillation import distil_alternatives
from supernet.inherit.students import Distillation

SETTINGS = Distillation(steps=4)  # all places in one group, which workers share


@pytest.fixture(scope="module", autouse=True)
def ray_of_this_machine() -> Iterator[None]:
    """One for all tests here."""
    with connected():
        import ray

        ray.cloudpickle.register_pickle_by_value(distillation_cases)  # workers cannot import it
        yield


@pytest.mark.parametrize("deaths", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_workers_make_the_weights_of_one_process(tmp_path: Path, deaths: int) -> None:
    here, there = bank_of("convolutions"), bank_of("convolutions")
    entries = distil_alternatives(here, images_of(), settings=SETTINGS)
    calls: list[tuple[int, int]] = []
    folder = tmp_path / "distilled"
    found = distil_alternatives(
        there,
        Deadly(tmp_path, deaths),
        settings=SETTINGS,
        folder=folder,
        teaching=TeachingOnRay(workers=2),
        progress=lambda done, total, figures: calls.append((done, total)),
    )
    assert found == entries
    assert len(list(tmp_path.glob("death-*"))) == deaths
    assert calls == [(4, 8), (8, 8)]
    for key, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert {path.stem for path in folder.glob("*.safetensors")} == set(map(entry_name, entries))
    again = bank_of("convolutions")
    nobody = TeachingOnRay(workers=2, address="127.0.0.1:1")  # all is there, so none is asked
    distil_alternatives(again, [], settings=SETTINGS, folder=folder, teaching=nobody)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in there.state_dict().items())


def test_a_task_that_kills_its_workers_ends_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="3 workers were lost while"):
        distil_alternatives(
            bank_of("convolutions"),
            Deadly(tmp_path, 10),
            settings=SETTINGS,
            teaching=TeachingOnRay(workers=1),
        )


def test_errors_of_a_user_come_back_as_they_are() -> None:
    teaching = TeachingOnRay(workers=1)
    with pytest.raises(DataError, match="no images"):
        distil_alternatives(bank_of("convolutions"), [], settings=SETTINGS, teaching=teaching)
    with pytest.raises(RunError, match="do not fit"):
        distil_alternatives(
            bank_of("convolutions"),
            images_of(),
            settings=SETTINGS,
            teaching=TeachingOnRay(workers=2, gpus=1000),
        )
