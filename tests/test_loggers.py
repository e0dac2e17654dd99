"""Loggers: figures of a training in TensorBoard, and in stand-ins of packages that are not here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_training import config, few_images, small_network

from search_space.errors import RunError, UnknownNameError, UsageError
from supernet.training.loggers import LOGGERS, MetricFiles
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

    def set_terminated(self, run: str, status: str) -> None:
        self.names.append(f"{run} {status}")


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, list[dict[str, float]]] = {}
        self.options: list[dict[str, Any]] = []

    def init(self, **options: Any) -> Any:
        self.options.append(options)
        number = options["id"] or f"id{len(self.runs)}"
        log = self.runs.setdefault(number, [])
        return SimpleNamespace(id=number, log=log.append, finish=lambda exit_code: None)


def test_mlflow_gets_every_epoch_of_one_run(data, tmp_path, monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    first = MetricFiles(tmp_path / "mine" / "supernet", ["mlflow"])
    first.log({"epoch": 0, "step": 3, "loss": 2.0})
    again = MetricFiles(tmp_path / "mine" / "supernet", ["mlflow"])  # the training is resumed
    with again:
        again.log({"epoch": 1, "step": 6, "loss": 1.0})
    assert fake.runs == {"run0": [("loss", 2.0, 3), ("loss", 1.0, 6)]}
    assert fake.names == ["mine/supernet", "run0 FINISHED"]
    with pytest.raises(RunError), first:
        raise RunError
    assert fake.names[-1] == "run0 FAILED"


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


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_a_logger_without_its_package_says_how_to_install_it(tmp_path, monkeypatch, name):
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"`pip install {name}`"):
        MetricFiles(tmp_path, [name])
    with pytest.raises(UnknownNameError, match=r"unknown logger 'tensorbord'.*'tensorboard'"):
        MetricFiles(tmp_path, ["tensorbord"])


class Unreliable:
    """A logger that fails where it is told to."""

    def __init__(self, directory: Path, fails: str) -> None:
        self.fails, self.calls = fails, []
        self.fail("init")

    def fail(self, where: str) -> None:
        self.calls.append(where)
        if self.fails == where:
            raise ConnectionError(f"no server to {where}")

    def log(self, step: int, metrics: Any) -> None:
        self.fail("log")

    def close(self, *, failed: bool) -> None:
        self.calls.append("failed" if failed else "ended")
        self.fail("close")


@pytest.fixture
def loggers(monkeypatch):
    """Every logger that was made, by how it fails."""
    made: dict[str, Unreliable] = {}

    def maker(fails: str) -> Any:
        return lambda directory: made.setdefault(fails, Unreliable(directory, fails))

    for fails in ("never", "init", "log", "close"):
        monkeypatch.setitem(LOGGERS, fails, maker(fails))
    return made


@pytest.mark.parametrize(("fails", "calls"), [("log", 2), ("close", 5)])
def test_a_logger_that_fails_ends_no_training(data, tmp_path, loggers, fails, calls):
    with pytest.warns(UserWarning, match=f"logger '{fails}' failed .*no server to {fails}") as told:
        metrics = finetune(
            small_network(), data, config(epochs=2), tmp_path, loggers=[fails, "never"]
        )
    assert len(told) == 1
    assert len(metrics) == 2
    assert len(loggers[fails].calls) == calls
    assert loggers["never"].calls == ["init", "log", "log", "ended", "close"]


def test_the_error_that_ended_a_training_is_told(data, tmp_path, loggers):
    def fail(*_: Any) -> None:
        raise RunError("the end")

    run = {"loggers": ["never", "close"], "progress": fail}
    with pytest.warns(UserWarning, match="no server"), pytest.raises(RunError, match="the end"):
        finetune(small_network(), data, config(epochs=1), tmp_path, **run)
    assert loggers["never"].calls == ["init", "failed", "close"]
    loggers.clear()
    finetune(small_network(), data, config(epochs=1), tmp_path)
    with pytest.raises(RunError, match="another configuration"):
        finetune(small_network(), data, config(epochs=1, lr=1e-4), tmp_path, loggers=["never"])
    assert loggers["never"].calls == ["init", "failed", "close"]


def test_a_logger_that_cannot_begin_is_refused_and_the_others_closed(tmp_path, loggers):
    with pytest.raises(UsageError, match=r"logger 'init' cannot log here .no server to init"):
        MetricFiles(tmp_path, ["never", "init"])
    assert loggers["never"].calls == ["init", "failed", "close"]
