"""Training through Ray: two nodes on this machine, whose workers and nodes are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any
from unittest import mock

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import config, fresh
from worker_pair import small_space

from nas.resolving import resolve
from search_space import load_space
from search_space.errors import DataError, RunError, UnknownNameError, UsageError
from supernet.cluster import connection
from supernet.cluster.connection import connected, cpu_share, room, share
from supernet.cluster.jobs import Job
from supernet.data.dataset import open_data
from supernet.training.checkpoints import (
    MARKER,
    WEIGHTS,
    Checkpoint,
    CheckpointFolder,
)
from supernet.training.config import TrainConfig, TrainingDivergedError
from supernet.training.loggers import MetricFiles
from supernet.training.train import train_supernet

open_images = partial(open_data, "digits", 16, test_fraction=0.9, validation_fraction=0.7)
LINEAR = {"optimizer": "sgd", "lr": 0.05, "num_random": 0}  # see tests/test_parallel.py

# Nodes ----------------------------------------------------------------------------------------


def test_workers_get_as_many_cores_as_fit_on_nodes():
    nodes = [{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}]
    assert [room(nodes, {"CPU": float(cores)}) for cores in (1, 3, 5, 9)] == [12, 3, 1, 0]
    assert share(nodes, 1) == {"CPU": 8.0}
    assert share(nodes, 2) == {"CPU": 4.0}
    assert share(nodes, 3) == {"CPU": 4.0}
    assert share(nodes, 4) == {"CPU": 2.0}
    assert share(nodes, 12) == {"CPU": 1.0}


def test_a_worker_gets_a_gpu_where_there_are_some():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}]
    assert share(nodes, 2) == {"CPU": 1.0, "GPU": 1.0}
    assert share(nodes, 4, gpus=0.5) == {"CPU": 1.0, "GPU": 0.5}
    assert share(nodes, 2, gpus=0) == {"CPU": 4.0}


@given(
    cpus=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    workers=st.integers(1, 30),
)
def test_the_share_of_cpus_is_the_largest_that_leaves_room_for_all(cpus, workers):
    share = cpu_share([{"CPU": float(n)} for n in cpus], workers)

    def fit(each: float) -> int:
        return sum(int(n / each + 1e-6) for n in cpus)

    if sum(cpus) == 0:
        assert share == 1.0
        return
    assert fit(share) >= workers
    if share >= 1:
        assert share == int(share)
        assert fit(share + 1) < workers
    else:
        assert fit(1.0) < workers
        assert fit(1 / (round(1 / share) - 1)) < workers


def test_the_share_counts_nodes_with_the_gpus_that_are_asked_for():
    nodes = [{"CPU": 64.0}, {"CPU": 16.0, "GPU": 4.0}]
    assert cpu_share(nodes, 4, gpus=1) == 4
    assert cpu_share(nodes, 8, gpus=0.5) == 2
    assert cpu_share(nodes, 100, gpus=0.5) == 2  # eight have room
    assert cpu_share(nodes, 4) == 16
    assert cpu_share(nodes[:1], 4, gpus=1) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "must be 'auto' or the head's HOST"),
        ("head:port", "its port must be a number"),
        ("127.0.0.1:1", r"nothing answers at 127\.0\.0\.1:1 .*start the head there"),
    ],
)
def test_an_address_without_a_cluster_is_refused(address, message):
    with pytest.raises(RunError, match=message), connected(address):
        raise AssertionError


def test_a_training_goes_on_with_every_number_of_workers_that_cuts_the_batch():
    from supernet.cluster.distributed import fewest_workers

    def divides(batch: int, parts: int, workers: int) -> bool:
        return batch % (parts * (2 * workers if workers > 1 else 1)) == 0

    assert fewest_workers(64, 1, 2) == 1
    assert fewest_workers(64, 1, 4) == 4  # three workers cannot share 64 images
    assert fewest_workers(48, 1, 4) == 1
    for batch in range(2, 100, 2):
        for parts in (1, 2):
            for count in range(1, 9):
                least = fewest_workers(batch, parts, count)
                assert all(divides(batch, parts, fewer) for fewer in range(least, count))
                assert least == 1 or not divides(batch, parts, least - 1)


@pytest.mark.parametrize(
    ("resources", "backend"), [({"GPU": 0.5}, "gloo"), ({"GPU": 1.0}, None), ({"CPU": 2.0}, None)]
)
def test_workers_that_share_a_gpu_do_not_meet_through_nccl(monkeypatch, resources, backend):
    from supernet.cluster import distributed

    made = mock.Mock()
    monkeypatch.setattr(distributed, "TorchTrainer", made)
    job = mock.Mock(resources=resources, config=config())
    job.storage = CheckpointFolder("memory://shared", "run")
    distributed._trainer(job, distributed.Workers(count=2))
    assert made.call_args.kwargs["torch_config"].backend == backend


@pytest.mark.parametrize("added", [True, False])
def test_nodes_that_an_autoscaler_was_asked_for_are_not_kept(monkeypatch, added):
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles)
    )
    monkeypatch.setattr(connection, "GROW_SECONDS", 0.05)
    cores = 4.0 if added else 1.0
    monkeypatch.setattr(connection, "nodes", lambda: {"a": {"CPU": cores if asked else 1.0}})
    monkeypatch.setattr(connection.time, "sleep", lambda _: sleep(0.06))
    with nullcontext() if added else pytest.raises(RunError, match="do not fit"):
        assert connection.share_of("auto", 3) == {"CPU": 1.0}
    assert asked == [[{"CPU": 1.0}] * 3, []]


def test_a_cluster_that_cannot_be_used_is_told_without_a_reason_too(monkeypatch):
    monkeypatch.setattr("ray.init", mock.Mock(side_effect=RuntimeError()))
    with pytest.raises(RunError, match="cannot be used: RuntimeError"), connected():
        raise AssertionError


# Checkpoints and figures --------------------------------------------------------------------------


def damage(folder: CheckpointFolder, name: str) -> None:
    folder.filesystem.pipe_file(f"{folder.path}/{name}/{WEIGHTS}", b"damaged")


def test_damaged_checkpoints_do_not_crowd_out_good_ones(tmp_path):
    from supernet.cluster.distributed import _start

    storage = CheckpointFolder(f"memory://{tmp_path}", "run")
    at = {
        step: Checkpoint(step=step, weights={}, optimizer={}, metadata={})
        for step in (50, 60, 90, 100)
    }
    names = {step: storage.write(at[step]) for step in (50, 90, 100)}
    damage(storage, names[90])
    damage(storage, names[100])
    with pytest.warns(UserWarning, match="damaged"):
        start = _start(storage, at[60])
    storage.close()
    assert start is not None
    assert storage.names() == [start.name, names[50]]


def test_figures_are_whole_although_the_command_was_killed_before_it_heard_them(tmp_path):
    settings = config(epochs=1)
    alone(settings, tmp_path)
    figures = json.loads((tmp_path / "metrics.jsonl").read_text())
    (tmp_path / "metrics.jsonl").write_text("")
    train(tmp_path, settings)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == figures


def test_an_answer_that_came_too_late_is_given_again(tmp_path, monkeypatch):
    import ray

    from supernet.cluster import distributed

    board = distributed._Board()
    epoch = {"epoch": 0, "step": 3, "seconds": 1.0}
    board.tell(3, 3, epoch)
    board.note("a note")
    answers = iter([ray.exceptions.GetTimeoutError, None, None])

    def get(answer: Any, timeout: float) -> Any:
        if error := next(answers):
            raise error
        return answer

    monkeypatch.setattr(ray, "get", get)
    notes: list[str] = []
    files = MetricFiles(tmp_path)
    listener = distributed._Listener(files, {}, None, notes.append)
    remote = mock.Mock()
    remote.take.remote = board.take
    for _ in range(3):
        listener.hear(remote)
    assert notes == ["a note"]
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(epoch) + "\n"


def test_an_earlier_epoch_is_not_given_for_the_last(tmp_path, monkeypatch):
    from supernet.cluster import distributed, jobs

    settings = config(epochs=2)

    def run(job: Any, *_: Any) -> None:
        alone(settings, tmp_path)
        damage(job.storage, job.storage.names()[0])

    monkeypatch.setattr(jobs, "connected", lambda _: nullcontext())
    monkeypatch.setattr(jobs, "share_of", lambda *_: {"CPU": 1.0})
    monkeypatch.setattr(distributed, "_board", lambda: None)
    monkeypatch.setattr(distributed, "_run", run)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(RunError, match=r"last checkpoint in .* is damaged or gone; .*--resume"),
    ):
        train(tmp_path, settings)


# Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["gpus_per_worker", "address", "storage"])
def test_options_of_several_workers_are_refused_for_one(option):
    asked = {"data": "digits", option: 1 if option == "gpus_per_worker" else "auto"}
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(UsageError, match=f"{flag} .* does nothing with one worker"):
        resolve(asked, with_budget=False)
    two = getattr(resolve({**asked, "workers": 2}, with_budget=False), option)
    assert two == (str(Path("auto").resolve()) if option == "storage" else asked[option])


def test_several_workers_are_refused_for_one_network():
    network = {"architecture": load_space("digits").smallest.to_dict()}
    with pytest.raises(UsageError, match="--workers 2 does nothing with --architecture"):
        resolve({"data": "digits", "workers": 2, **network}, with_budget=False)


def test_errors_reach_this_process_whatever_they_are_made_of():
    from supernet.cluster.distributed_worker import portable

    diverged = TrainingDivergedError("at step 3")
    assert portable(diverged) is diverged
    portable = portable(UnknownNameError("model", "resnet", ["resnet18"]))
    assert str(pickle.loads(pickle.dumps(portable))).startswith("unknown model 'resnet'")


# Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, two nodes of one core, and a connection; token authentication is on."""
    import ray
    from ray.cluster_utils import Cluster

    local = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        local.add_node(num_cpus=1)
    try:
        with connected(local.address):
            yield local
    finally:
        ray.shutdown()
        local.shutdown()


def train(
    folder: Path,
    settings: TrainConfig,
    *,
    count: int = 2,
    storage: str | None = None,
    address: str | None = None,
    elastic: bool = True,
    progress: Callable[..., None] | None = None,
    images: Callable[[], Any] = open_images,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights at the end, and what was noticed on the way."""
    from supernet.cluster.distributed import Workers, train_distributed

    notices: list[str] = []
    supernet = fresh(small_space())
    train_distributed(
        supernet,
        open_images(),
        settings,
        folder,
        Workers(count=count, storage=storage, address=address, name="run", elastic=elastic),
        images,
        progress=progress,
        notice=notices.append,
        checkpoint_seconds=0.0,
    )
    return dict(supernet.state_dict()), notices


def alone(settings: TrainConfig, folder: Path | None = None) -> dict[str, torch.Tensor]:
    supernet = fresh(small_space())
    train_supernet(supernet, open_images(), settings, folder)
    return dict(supernet.state_dict())


def once(done: int, what: Callable[[], None]) -> Callable[..., None]:
    """A progress callback that does something at a step."""
    did = []

    def progress(step: int, *_: Any) -> None:
        if step >= done and not did:
            did.append(step)
            what()

    return progress


def kill_a_worker() -> None:
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "tfevents" not in name}


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_but_the_time(cluster, tmp_path):
    settings = config(epochs=20, evaluations=1, snapshot_steps=3)
    undisturbed, _ = train(tmp_path / "undisturbed", settings)
    killed, notices = train(tmp_path / "killed", settings, progress=once(15, kill_a_worker))
    assert any("going back to the last checkpoint" in notice for notice in notices)
    assert largest_difference(undisturbed, killed) == 0


@pytest.mark.slow
def test_two_workers_leave_what_one_leaves(cluster, tmp_path):
    settings = config(epochs=4, snapshot_steps=3, **LINEAR)
    together, _ = train(tmp_path / "together", settings)
    one = alone(settings, tmp_path / "alone")
    assert largest_difference(together, one) < 1e-5
    marker = f"checkpoints/{MARKER}"
    assert files(tmp_path / "together") == files(tmp_path / "alone") | {marker}
    assert list((tmp_path / "together" / "tensorboard").glob("*tfevents*"))
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("together", "alone")
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss_largest"] == pytest.approx(theirs["loss_largest"], abs=1e-5)
    # finished: loaded, not trained again
    again, _ = train(tmp_path / "together", settings, count=64)
    assert largest_difference(again, together) == 0


@pytest.mark.slow
def test_a_training_whose_command_was_killed_goes_on_from_the_storage(cluster, tmp_path):
    settings = config(epochs=12, evaluations=1, snapshot_steps=3, **LINEAR)
    storage = f"file://{tmp_path}/storage"
    process = multiprocessing.get_context("spawn").Process(
        target=train,
        args=(tmp_path / "first", settings),
        kwargs={"storage": storage, "address": cluster.address, "elastic": False},
    )
    process.start()
    while process.is_alive() and len(CheckpointFolder(storage, "run").names()) < 2:
        time.sleep(0.1)
    assert process.is_alive()
    process.kill()
    process.join()
    kept = CheckpointFolder(storage, "run").newest()
    assert kept is not None
    assert 0 < kept.step < 36
    steps: list[int] = []
    ended, _ = train(
        tmp_path / "second",
        settings,
        storage=storage,
        elastic=False,  # Ray keeps what the killed command reserved for three minutes
        progress=lambda done, *_: steps.append(done),
    )
    assert steps[0] > kept.step
    assert largest_difference(ended, alone(settings)) < 1e-5
    found = CheckpointFolder(tmp_path / "second" / "checkpoints").newest()
    assert found is not None
    assert found.step == 36


def test_images_that_a_worker_cannot_open_name_it(tmp_path):
    storage = CheckpointFolder(tmp_path, "checkpoints")
    storage.claim("token")
    job = Job(
        num_classes=10,
        config=config(),
        open_images=partial(open_data, "nowhere", 16),
        fingerprint="0" * 12,
        storage=storage,
        token="token",
        resources={},
        loader_workers=0,
        checkpoint_seconds=60.0,
    )
    with (
        mock.patch("ray.util.get_node_ip_address", return_value="10.0.0.7"),
        pytest.raises(DataError, match=r"the worker on 10.0.0.7 cannot open the images: .*nowhere"),
    ):
        job.images()


@pytest.mark.slow
def test_what_a_user_can_mend_is_said_at_once(cluster, tmp_path):
    with pytest.raises(RunError, match=r"batch_size is 18; with 2 workers .* 20 is the next"):
        train(tmp_path / "odd", config(batch_size=18))
    assert not (tmp_path / "odd" / "checkpoints").exists()
    with pytest.raises(RunError, match=r"3 workers with 1 CPU each do not fit: .* room for 2"):
        train(tmp_path / "many", config(batch_size=48), count=3)
    others = partial(open_data, "digits", 16, test_fraction=0.9, validation_fraction=0.6)
    with pytest.raises(DataError, match=r"finds other images \(fingerprint"):
        train(tmp_path / "others", config(), images=others)
    with pytest.raises(TrainingDivergedError, match="diverged"):
        train(tmp_path / "wild", config(lr=1e38, optimizer="sgd", clip_norm=0, max_bad_steps=0))


@pytest.mark.slow
def test_a_lost_node_leaves_a_training_with_fewer_workers(cluster, tmp_path):
    settings = config(epochs=30, evaluations=1, snapshot_steps=3, **LINEAR)

    def lose_a_node() -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    ended, notices = train(tmp_path / "lost", settings, progress=once(15, lose_a_node))
    assert "training goes on with 1 of 2 workers" in notices
    assert largest_difference(ended, alone(settings)) < 1e-5
