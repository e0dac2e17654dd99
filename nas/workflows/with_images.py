"""Runs with images: how they open the images and train a supernet on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import torch

from nas.config import TrainedConfig
from nas.workflows.reporting import curves
from nas.workflows.run import Run
from predictors.counts import counts
from predictors.tables.folder import cache_folder
from results.report.data import ReportData
from results.store import CONFIG, SUPERNET
from search.problem import Values
from search_space import Architecture, Genes
from search_space.errors import RunError
from search_space.metrics import MACS
from supernet import Backbone, Supernet
from supernet.cluster.connection import prepare
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import EvalBatches
from supernet.network.supernet import Subnets, normalises_by_batch
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.config import (
    TrainConfig,
    check_batch_norms,
    check_batch_size,
    check_groups,
    groups_of,
)
from supernet.training.loop import How, ProgressCallback
from supernet.training.optimizer import check_optimizer
from supernet.training.quantised_training import train_quantised
from supernet.training.recalibration import (
    calibration_of,
    extract_for,
    in_own_precision,
    range_images,
)
from supernet.training.strategies import COST_STRATEGIES
from supernet.training.train import finetune, train_supernet

CHECKPOINTS = "checkpoints"
QUANTISED_SHARE = 0.25  # of the fine-tuning's epochs, in int8
IN_INT8 = "-int8"  # after the name of a folder with a network's training: what follows in int8


def quantised_recipe(recipe: TrainConfig) -> TrainConfig:
    """The part of a recipe that trains a network on after it was put into int8."""
    return replace(
        recipe,
        epochs=max(1, round(QUANTISED_SHARE * recipe.epochs)),
        lr=recipe.lr / 100,
        layer_decay=1.0,
        warmup_epochs=0,
        patience=0,
        teacher=None,
    )


def trained_in_precision(
    network: Backbone,
    architecture: Architecture,
    data: ImageData,
    recipe: TrainConfig,
    folder: Path,
    *,
    seed: int,
    **how: Unpack[How],
) -> Backbone:
    """Returns a trained network in the precisions of ``architecture``, trained on in ``folder``.

    Where that is done already, it is what it was then: a training that did not help is undone.
    """
    if network.architecture == architecture:
        return network
    result = in_own_precision(network.eval(), architecture, range_images(data, seed))
    train_quantised(result, network, data, quantised_recipe(recipe), folder, **how)
    return result.eval()


class ImageRun(Run[TrainedConfig]):
    """A run that trains on images."""

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    def open_data(self, resolution: int) -> None:
        """Images for networks of up to ``resolution``; a continued run must find the same."""
        config = self.config
        with self.phase("opening images"):
            options = config.image_options()
            self.data: ImageData = open_data(config.data, resolution, **options)
            self.open_images = partial(open_data, config.data, resolution, **options)
        manifest = self.directory.manifest
        known_data, known_test = manifest.get("data"), manifest.get("test_data")
        if known_data not in (None, self.data.fingerprint):
            raise RunError(
                f"the images of {config.data!r} changed since this run began (fingerprint "
                f"{known_data} -> {self.data.fingerprint}). Restore them, or start a new run "
                "with another --name."
            )
        if known_test not in (None, self.data.test_fingerprint):
            message = (
                f"the test images of {config.data!r} changed since this run began (fingerprint "
                f"{known_test} -> {self.data.test_fingerprint}); test accuracies from here on are "
                "of the new ones."
            )
            self.console.warn(message)
            self.notes.append(message[0].upper() + message[1:])
        self.directory.update_manifest(
            data=self.data.fingerprint, test_data=self.data.test_fingerprint
        )
        for line in self.data.description():
            self.console.say(f"  {line}")

    def trained_supernet(self) -> Subnets:
        """The supernet with its weights, trained now unless another run's is used."""
        torch.manual_seed(self.config.seed)
        supernet = Supernet(self.space, self.data.num_classes).to(self.compute)
        if self.config.supernet is not None:
            self._load_supernet(supernet, Path(self.config.supernet))
            return supernet.eval()
        with self.phase("training the supernet") as progress:
            self._train(supernet, shown(progress))
        for epoch in curves(self.path)[-1:]:
            self.console.say(
                f"  validation accuracy: largest {_percent(epoch.accuracy_largest)}, "
                f"smallest {_percent(epoch.accuracy_smallest)}"
            )
        return supernet.eval()

    def train_network(
        self,
        network: Backbone,
        recipe: TrainConfig,
        folder: str,
        progress: ProgressCallback,
        images: ImageData | None = None,
    ) -> None:
        """Train one network, whose checkpoints are in a folder of the run."""
        finetune(
            network,
            self.data if images is None else images,
            recipe,
            self.path / folder,
            progress=progress,
            device=self.compute,
            workers=self.config.loader_workers,
        )

    @cached_property
    def calibration(self) -> EvalBatches | None:
        """Training images that recalibrate candidates; None where the space has no batch norms."""
        workers = self.config.loader_workers
        return calibration_of(self.space, self.data, self.config.train, workers=workers)

    def quantised(
        self,
        network: Backbone,
        architecture: Architecture,
        folder: str,
        recipe: TrainConfig,
        progress: ProgressCallback | None = None,
    ) -> Backbone:
        """Returns a trained network in the precisions of ``architecture``.

        Where any of it is in int8, it is trained on for a part of the fine-tuning's epochs, at a
        hundredth of its rate, by what it predicted in float.
        """
        return trained_in_precision(
            network,
            architecture,
            self.data.at(architecture.resolution),
            recipe,
            self.path / f"{folder}{IN_INT8}",
            seed=self.config.seed,
            progress=progress,
            device=self.compute,
            workers=self.config.loader_workers,
        )

    def extracted(self, supernet: Subnets, architecture: Architecture, **options: Any) -> Backbone:
        """Extracts a network, with averages of images at its own resolution."""
        images = self.data.at(architecture.resolution)
        return extract_for(supernet, architecture, images, self.config.train, **options)

    def _train(self, supernet: Supernet, progress: ProgressCallback) -> None:
        """Train in this process, or with several workers."""
        config, folder = self.config, self.path / SUPERNET
        settings: dict[str, Any] = {
            "progress": progress,
            "device": self.compute,
            "cost": self._bank_cost(),
            # stored predictions of teachers are shared by all runs on the same images
            "logits": cache_folder().parent / "teacher_logits",
            "loggers": config.loggers,
        }
        if config.workers == 1:
            settings["workers"] = config.loader_workers
            train_supernet(supernet, self.data, config.train, folder, **settings)
            return
        prepare(self.config.address)  # Ray is imported with the next
        from supernet.cluster.distributed import Workers, train_distributed

        workers = Workers(
            count=config.workers,
            gpus=config.gpus_per_worker,
            address=config.address,
            storage=config.storage,
            name=self.path.name,
        )
        settings |= {"notice": self.console.warn, "loader_workers": config.loader_workers}
        train_distributed(
            supernet, self.data, config.train, folder, workers, self.open_images, **settings
        )

    def _bank_cost(self) -> Callable[[Genes], Values] | None:
        """The cost by which a training draws subnets; None where it does not."""
        if self.config.train.strategy not in COST_STRATEGIES:
            return None
        if self.config.train.bank_metric == MACS:
            return counts(self.space, self.num_classes)[MACS].predict
        return self.latency_table().compile(self.space, self.num_classes).predict

    def _load_supernet(self, supernet: Supernet, run: Path) -> None:
        checkpoint = CheckpointFolder(run / SUPERNET / CHECKPOINTS).newest()
        if checkpoint is None:
            raise RunError(no_supernet(run))
        identity = checkpoint.metadata["identity"]
        if identity.get("space") != self.space.digest:
            raise RunError(
                f"the supernet of {run} was trained for another space (digest "
                f"{identity.get('space')}, asked {self.space.digest}); give the same --space."
            )
        if identity["data"] != self.data.fingerprint:
            raise RunError(
                f"the supernet of {run} was trained on other images, or on some that are now for "
                f"validation (fingerprint {identity['data']}, asked {self.data.fingerprint}); "
                "give the same --data and --seed."
            )
        done, epochs = len(checkpoint.metadata["state"]["history"]), identity["train"]["epochs"]
        if done < epochs:
            raise RunError(
                f"the supernet of {run} is trained for {done} of {epochs} epochs; finish it with "
                "--resume first."
            )
        supernet.load_state_dict(checkpoint.trained_weights())
        self.notes.append(f"The supernet's weights come from {run}.")

    def check_trainings(self) -> None:
        """Refuses trainings that cannot begin, of which the last would after hours.

        Raises:
            RunError: Storage, batch size or optimiser do not fit.
        """
        config, images = self.config, len(self.data.train)
        if config.supernet is None and config.workers > 1 and config.storage is not None:
            CheckpointFolder(config.storage, self.path.name).check()
        if config.supernet is None:
            check_batch_size(config.train, images, config.workers)
            check_groups(config.train, images, config.workers)
            check_optimizer(config.train)
        check_batch_size(config.finetune, images, workers=1)
        if normalises_by_batch(self.space):
            check_batch_norms(config.finetune, images)
            if config.supernet is None:
                groups = groups_of(config.train)
                check_batch_norms(config.train, images, config.workers, groups=groups)
        check_optimizer(config.finetune)


class SupernetTraining(ImageRun):
    """A supernet alone, for the searches that follow."""

    def all_phases(self) -> ReportData:
        self.open_data(self.space.resolutions[-1])
        self.check_trainings()
        self.trained_supernet()
        self.directory.update_manifest(status="trained")
        return ReportData(run=self.path.name, status="trained", training=curves(self.path))


def shown(progress: Callable[..., None], part: int = 0, parts: int = 1) -> ProgressCallback:
    """A training's progress with epoch and loss, for one of several equal parts of a phase."""

    def show(done: int, total: int, info: Mapping[str, Any]) -> None:
        texts = [f"epoch {info['epoch']}"] if "epoch" in info else []
        texts += [f"{key} {info[key]:.3f}" for key in info if key.startswith("loss")][:1]
        progress(done + part * total, parts * total, ", ".join(texts))

    return show


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}"


def no_supernet(run: Path) -> str:
    """The message where ``run`` has no good checkpoint of a supernet."""
    return (
        f"{run} holds no trained supernet. Finish it with --resume if it is not finished, or "
        f"train one with `nas train --config {run / CONFIG} --name NEW`, and search with "
        "--supernet and the folder of that run."
    )
