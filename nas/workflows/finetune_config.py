"""Configuration of a fine-tuning: all that decides its result, and by which flags it is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from nas import flags
from nas.config import TrainedConfig
from nas.config_parts import Address, Configuration, Storage
from nas.flags import Flag
from search_space.names import Digest
from supernet.training.config import TrainConfig

TRIALS = 16


class FinetuneConfig(Configuration):
    """Everything that decides a fine-tuning.

    ``run`` is the folder of the search, whose own configuration is ``search``, and ``networks``
    are digests; ``workers`` trials are trained at a time, as in ``TrainedConfig``.
    """

    run: str
    networks: tuple[Digest, ...]
    trials: Annotated[int, Flag("--trials", "Trainings in all (default 16).")] = Field(
        default=TRIALS, ge=1
    )
    epochs: Annotated[int, Flag("--epochs", "Of each (default: the search's own).")] = Field(ge=1)
    seed: Annotated[int, Flag("--seed", "Of what is tried (default: the search's).")] = Field(
        ge=0, le=flags.SEED
    )
    loader_workers: Annotated[
        int, Flag("--loader-workers", "Data-loading processes of each trial.")
    ] = Field(default=0, ge=0)
    workers: Annotated[int, Flag("--workers", "Trials at a time (default 1).")] = Field(
        default=1, ge=1
    )
    gpus_per_worker: Annotated[
        float | None,
        Flag("--gpus-per-worker", "GPUs of each trial (default: 1 where the cluster has any)."),
    ] = Field(default=None, ge=0, allow_inf_nan=False)
    address: Address = None
    storage: Storage = None
    search: TrainedConfig

    @property
    def recipe(self) -> TrainConfig:
        """The search's own fine-tuning, for as many epochs as this one has."""
        return replace(self.search.finetune, epochs=self.epochs)
