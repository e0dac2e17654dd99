"""Loggers: figures of a training in TensorBoard, and in stand-ins of packages that are not here."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_training import config, few_images, small_network

from search_space.errors import UnknownNameError, UsageError
from supernet.training.loggers import MetricFiles
from supernet.training.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return few_images()


def test_tensorboard_events(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = finetune(small_network(), data, config(epochs=2), tmp_path, loggers=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(m.step, pytest.approx(m.losses[""])) for m in metrics]


class FakeMLflow(ModuleType):
    """Remembers what a client is told, by run."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.MlflowClient = lambda: self
        self.runs: dict[str, list[tuple[str, float, int]]] = {}
        self.names: list[str] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name: str) -> str:
        return "7"

    def create_run(self, experiment: str, run_name: str) -> Any:
        assert experiment == "7"
        self.names.append(run_name)
        self.runs[f"run{len(self.runs)}"] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(self.runs) - 1}"))

    def log_metric(self, run: str, name: str, value: float, *, step: int) -> None:
        self.runs[run].append((name, value, step))

    def set_terminated(self, run: str) -> None:
        self.names.append(f"end of {run}")


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, list[dict[str, float]]] = {}
        self.options: list[dict[str, Any]] = []

    def init(self, **options: Any) -> Any:
        self.options.append(options)
        number = options["id"] or f"id{len(self.runs)}"
        log = self.runs.setdefault(number, [])
        return SimpleNamespace(id=number, log=log.append, finish=lambda: None)


def test_mlflow_gets_every_epoch_of_one_run(data, tmp_path, monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    first = MetricFiles(tmp_path / "mine" / "supernet", ["mlflow"])
    first.log({"epoch": 0, "step": 3, "loss": 2.0})
    again = MetricFiles(tmp_path / "mine" / "supernet", ["mlflow"])  # the training is resumed
    again.log({"epoch": 1, "step": 6, "loss": 1.0})
    again.close()
    assert fake.runs == {"run0": [("loss", 2.0, 3), ("loss", 1.0, 6)]}
    assert fake.names == ["mine/supernet", "end of run0"]


def test_wandb_gets_every_epoch_of_one_run(data, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = config(epochs=2)
    metrics = finetune(small_network(), data, settings, tmp_path / "run", loggers=["wandb"])
    ((number, rows),) = fake.runs.items()
    assert [row["training_step"] for row in rows] == [epoch.step for epoch in metrics]
    assert [row["loss"] for row in rows] == [epoch.losses[""] for epoch in metrics]
    MetricFiles(tmp_path / "run", ["wandb"])
    assert [options["id"] for options in fake.options] == [None, number]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_logger_without_its_package_says_how_to_install_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"`pip install {name}`"):
        MetricFiles(tmp_path, [name])
    with pytest.raises(UnknownNameError, match=r"unknown logger 'tensorbord'.*'tensorboard'"):
        MetricFiles(tmp_path, ["tensorbord"])
