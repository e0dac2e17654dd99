"""The work of one worker of a tuned fine-tuning: a trial, in a process that Ray Tune started.

It continues from the trial's last checkpoint whoever wrote that, so neither a lost worker nor a
killed command costs more than what was trained since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.tune
import torch

from search_space.architecture import Architecture
from search_space.errors import NasError, RunError
from supernet.cluster.jobs import Job
from supernet.cluster.trials import DIVERGED, TrialEpoch, TrialFolders, trial_key
from supernet.network.backbone import Backbone, build
from supernet.training.config import EpochMetrics, TrainingDivergedError
from supernet.training.hyperparameters import configured
from supernet.training.train import finetune

NETWORK = "network"  # the hyper-parameter that is none
TIME, LOSS = "epochs_done", "validation_loss"  # what schedulers look at
IMPOSSIBLE = "impossible"  # what a worker reports that no trial can be trained on


@dataclass(frozen=True, kw_only=True)
class TrialJob(Job):
    """Holds what a worker must know of the experiment; ``config`` is the recipe.

    ``architectures`` has plain forms by digest.
    """

    architectures: Mapping[str, Mapping[str, Any]]
    folders: TrialFolders


def run_trial(values: Mapping[str, Any], job: TrialJob) -> None:
    """Trains the network ``values[NETWORK]`` with the hyper-parameters in ``values``."""
    try:
        _train(dict(values), job)
    except TrainingDivergedError as error:
        _end(DIVERGED, error)
    except NasError as error:  # every other trial would find the same
        _end(IMPOSSIBLE, error)


def _end(reason: str, error: NasError) -> None:
    ray.tune.report({TIME: 0, LOSS: math.nan, reason: str(error)})


def _train(values: dict[str, Any], job: TrialJob) -> None:
    network_digest = values.pop(NETWORK)
    if not job.resources.get("GPU"):
        torch.set_num_threads(int(job.resources["CPU"]))
    device = "cuda" if job.resources.get("GPU") and torch.cuda.is_available() else "cpu"
    data = job.images()
    if job.config.teacher is None:  # which needs the larger images
        data = data.at(Architecture.from_dict(job.architectures[network_digest]).resolution)
    augment = data.augmentation(job.config.augment)
    config = configured(job.config, augment, values)
    finetune(
        _inherited(job, network_digest, config.drop_path_rate),
        data,
        config,
        device=device,
        workers=job.loader_workers,
        checkpoint_seconds=job.checkpoint_seconds,
        store=job.folders.trial(trial_key(network_digest, values)),
        on_epoch=_report,
    )


def _report(metrics: EpochMetrics) -> None:
    if not math.isfinite(metrics.val_loss[""]):  # training losses are checked by the loop
        raise TrainingDivergedError(
            f"the validation loss after epoch {metrics.epoch + 1} is {metrics.val_loss['']}"
        )
    epoch = TrialEpoch(
        epoch=metrics.epoch,
        loss=metrics.losses[""],
        validation_loss=metrics.val_loss[""],
        validation_accuracy=metrics.val_accuracy[""],
        seconds=metrics.seconds,
    )
    ray.tune.report({**asdict(epoch), TIME: metrics.epoch + 1})


def _inherited(job: TrialJob, digest: str, drop_path_rate: float) -> Backbone:
    architecture = Architecture.from_dict(job.architectures[digest])
    network = build(architecture, job.num_classes, drop_path_rate=drop_path_rate)
    storage = job.folders.inherited(digest)
    stored = storage.newest()
    if stored is None:
        raise RunError(f"{storage} holds no weights any more; continue with --resume")
    network.load_state_dict(stored.weights)
    return network
