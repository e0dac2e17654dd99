"""What a configuration of a run with images says in vain: fields that its kind of run ignores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nas import flags
from nas.config_parts import InheritConfig

if TYPE_CHECKING:
    from nas.config import TrainedConfig


def ignored(config: TrainedConfig) -> Iterator[tuple[str, str]]:
    """Fields that a run with images would ignore, by path, with the reason and the fix."""
    one_of_them = "leave one of them out"
    if config.workers == 1:
        for name in ("gpus_per_worker", "address", "storage"):
            yield name, "with one worker; give --workers, or leave it out"
    if config.parent is None:
        paths = (item.path for item in flags.declared(InheritConfig, "inherit."))
        for name in ("parent_weights", "parents", "resolution", "adapt.epochs", *paths):
            yield name, "without --from; give that, or leave it out"
    else:
        for name in ("epochs", "strategy", "shrinking", "batch_size", "lr", "teacher"):
            yield f"train.{name}", f"with --from; {one_of_them}"
        for name in ("supernet", "storage"):
            yield name, f"with --from; {one_of_them}"
    if config.is_stitched:
        search = ("sampler", "population", "halvings", "warm_start", "optuna_storage")
        inherit = ("importance", "distil_steps", "refine_steps", "beyond")
        cluster = ("workers", "address", "gpus_per_worker", "storage")
        names = (*(f"search.{name}" for name in search), *(f"inherit.{name}" for name in inherit))
        for name in ("space", "parents", "costs", *cluster, *names):
            yield name, f"with several networks of --from, whose routes are searched; {one_of_them}"
    if config.parents:
        yield "space", f"with --parents: it is made around the one that is kept; {one_of_them}"
    if config.inherit.run is not None:
        yield "parents", f"with --inherit, whose parent is taken; {one_of_them}"
    if config.architecture is not None:
        training = ("strategy", "shrinking", "recalibration_images")
        for name in ("space", "workers", *(f"train.{name}" for name in training)):
            yield name, f"with --architecture; {one_of_them}"
