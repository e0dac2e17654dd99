"""What a search from a trained network keeps in its folder, for itself, other runs and exports."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.config import TrainedConfig
from nas.workflows.with_images import CHECKPOINTS
from search_space import Architecture, SearchSpace
from search_space.errors import RunError
from search_space.precision import point_of
from supernet import Backbone, build
from supernet.data.dataset import ImageData
from supernet.data.evaluation_batches import EvalBatches
from supernet.inherit.bank import WeightBank
from supernet.inherit.local_distillation import (
    Distillation,
    Teaching,
    distil_alternatives,
    is_learnable,
    teach_here,
)
from supernet.inherit.parents import Parent
from supernet.inherit.stored_bank import load_entries, parent_identity
from supernet.network.tensor_files import SUFFIX
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.loop import ProgressCallback
from supernet.training.recalibration import calibration_batches

PARENT, BANK, REFINED, JOINT = "parent", "alternatives", "refined", "joint"  # folders of a run
TABLE = "quality.parquet"
START = f"start{SUFFIX}"  # of the parent: its weights before they are trained on the images


def architecture_of(parent: Parent, space: SearchSpace, name: str) -> Architecture:
    """The parent's architecture at the largest resolution of a space around it.

    Raises:
        RunError: The space is around another network.
    """
    architecture = replace(parent.architecture, resolution=space.resolutions[-1])
    if point_of(architecture, space) is None:
        raise RunError(
            f"space {space.name!r} does not hold {parent.name} at {architecture.resolution} px; "
            f"give a space of `nas spaces --around {name}`, or leave --space out."
        )
    return architecture


def check_parent(run: Path, folder: str = PARENT) -> None:
    """Refuses a run that holds no adapted parent in ``folder``; raises RunError."""
    if CheckpointFolder(run / folder / CHECKPOINTS).newest() is None:
        raise RunError(
            f"{run} holds no adapted parent; give the folder of a run that searched with --from, "
            "and finish it with --resume if it is not finished."
        )


def copied(source: Path, target: Path) -> None:
    """Makes ``target`` a copy of a file or folder, at one stroke, unless it is there already."""
    if target.exists() or not source.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    if source.is_dir():
        shutil.rmtree(partial, ignore_errors=True)  # of a copying that was killed
        shutil.copytree(source, partial)
    else:
        shutil.copy(source, partial)
    partial.rename(target)


def read_parent(run: Path, network: Backbone, data: ImageData, folder: str = PARENT) -> None:
    """Gives ``network`` the weights of the adapted parent in a folder of a run.

    Raises:
        RunError: The run has none, or it was trained on other images.
    """
    check_parent(run, folder)
    checkpoint = CheckpointFolder(run / folder / CHECKPOINTS).newest()
    assert checkpoint is not None
    identity, state = checkpoint.metadata["identity"], checkpoint.metadata["state"]
    if identity["data"] != data.fingerprint:
        raise RunError(
            f"the parent of {run} was trained on other images, or on some that are now for "
            f"validation (fingerprint {identity['data']}, asked {data.fingerprint}); give the same "
            "--data, --resolution and --seed."
        )
    done, patience = len(state["history"]), identity["train"]["patience"]
    waited = 0 < patience <= state["waited"]
    if done < identity["train"]["epochs"] and not waited:
        raise RunError(
            f"the parent of {run} is trained for {done} of {identity['train']['epochs']} epochs; "
            "finish it with --resume first."
        )
    network.load_state_dict(checkpoint.trained_weights())


def bank_identity(bank: WeightBank, config: TrainedConfig, data: ImageData) -> dict[str, Any]:
    """All that the weights of alternatives depend on."""
    return {
        "parent": parent_identity(bank),
        "data": data.fingerprint,
        "seed": config.seed,
        **config.inherit.model_dump(include={"importance", "images", "distil_steps"}),
    }


def fitting_images(config: TrainedConfig, data: ImageData) -> EvalBatches:
    """Training images that weights of alternatives are fitted to."""
    return calibration_batches(data, config.inherit.images, config.seed)


def refine(
    bank: WeightBank,
    config: TrainedConfig,
    data: ImageData,
    run: Path,
    progress: ProgressCallback | None = None,
    teaching: Teaching = teach_here,
) -> None:
    """Trains alternatives further on the parent's maps, or reads those of a run that are."""
    distil_alternatives(
        bank,
        fitting_images(config, data),
        entries=[entry for entry in bank.entries if is_learnable(bank, entry)],
        settings=Distillation(steps=config.inherit.refine_steps, seed=config.seed),
        folder=run / REFINED,
        data=data.fingerprint,
        progress=progress,
        teaching=teaching,
    )


def read_bank(run: Path, config: TrainedConfig, data: ImageData, parent: Parent) -> WeightBank:
    """All alternatives of a run that have weights.

    Raises:
        RunError: As ``read_parent``.
    """
    assert config.parent is not None
    space = config.search_space()
    network = build(architecture_of(parent, space, config.parent), data.num_classes)
    read_parent(run, network, data)
    bank = WeightBank(space, network).eval()
    load_entries(run / BANK, bank, bank.missing(), identity=bank_identity(bank, config, data))
    if config.inherit.refine_steps:
        refine(bank, config, data, run)
    jointly = CheckpointFolder(run / JOINT / CHECKPOINTS).newest()
    if config.inherit.joint_epochs and jointly is not None:
        bank.load_state_dict(jointly.trained_weights())
    return bank
