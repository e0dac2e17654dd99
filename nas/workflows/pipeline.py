"""A run from data and budget to a deployed network; what is missing is made.

Phases: latency table, supernet, search, re-measurement, fine-tuning, export, report. Each leaves
its result in the run directory and finds it there when the run is continued, so a run that was
killed anywhere ends as if it had not been.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Unpack

from nas.cli.console import Console
from nas.config import RunConfig, TrainedConfig, TrainingFreeConfig
from nas.workflows.network_training import NETWORK, NetworkTraining
from nas.workflows.parent_trials import can_be_continued, kept_parent
from nas.workflows.pretrained_search import PARENT, PretrainedSearch
from nas.workflows.run import Run
from nas.workflows.starting import Start, header, new_manifest, open_run
from nas.workflows.stitched_search import StitchedSearch
from nas.workflows.trained_search import TrainedSearch
from nas.workflows.training_free import TrainingFreeSearch
from nas.workflows.with_images import CHECKPOINTS, SupernetTraining
from results.report.data import ReportData
from results.store import CONFIG, JOURNAL, SUPERNET, RunDirectory
from search_space.errors import UsageError

_PACKAGES = ("nas", "torch", "timm", "numpy", "onnx", "onnxruntime")


def run_search(config: RunConfig, path: Path, **start: Unpack[Start]) -> ReportData:
    """Run, or continue, the search that ``config`` describes in the directory ``path``.

    ``start`` may have ``resume``, ``command`` (for the report) and a ``console``. Returns what the
    report shows; the files lie in ``path``. Raises a NasError for everything that the user can fix:
    RunError where the run exists, InfeasibleError where no architecture meets the limits,
    DataError, ExportError. A new run that fails before anything was trained is removed again.
    """
    if isinstance(config, TrainedConfig):
        if config.architecture is not None:
            raise UsageError(
                "this configuration names one architecture to train, and a search would ignore it; "
                "use nas train, or take 'architecture' out."
            )
        if config.is_stitched:
            return _run(partial(StitchedSearch, config), config, path, start)
        if config.parents:
            return _run(partial(_from_the_best, config), config, path, start)
        kind = TrainedSearch if config.parent is None else PretrainedSearch
        return _run(partial(kind, config), config, path, start)
    assert isinstance(config, TrainingFreeConfig)
    return _run(partial(TrainingFreeSearch, config), config, path, start)


def run_training(config: TrainedConfig, path: Path, **start: Unpack[Start]) -> ReportData:
    """Train one architecture where ``config`` names one, otherwise only the supernet.

    ``run_search`` with ``supernet`` set to ``path`` then uses the supernet.
    """
    kind = SupernetTraining if config.architecture is None else NetworkTraining
    return _run(partial(kind, config), config, path, start)


def _from_the_best(
    config: TrainedConfig, directory: RunDirectory, console: Console
) -> PretrainedSearch:
    """A search from the best of several parents, which are tried first."""
    return PretrainedSearch(kept_parent(config, directory, console), directory, console)


def _run(
    kind: Callable[[RunDirectory, Console], Run], config: RunConfig, path: Path, start: Start
) -> ReportData:
    console, resume = start.get("console") or Console(), start.get("resume", False)
    first = not path.parent.exists()
    manifest = new_manifest(config.seed, start.get("command", ""), _PACKAGES)
    nas = ("nas", "search" if config.limits() or config.lower_limits() else "train")
    of_run = (*nas, "--config", path / CONFIG, "--name")
    comments = header("run", (*of_run, "NEW_NAME"), (*of_run, path.name, "--resume"))
    opened = open_run(path, config.to_dict(), manifest, console, resume=resume, comments=comments)
    with opened as (directory, new):
        try:
            return kind(directory, console).run()
        except Exception:
            if new and not _can_be_continued(path):
                shutil.rmtree(path)
                if first:
                    with suppress(OSError):  # another run may have begun beside it
                        path.parent.rmdir()
            raise


def _can_be_continued(path: Path) -> bool:
    """Whether more than the latency table, which is cached elsewhere, would be lost with it."""
    trained = (path / folder / CHECKPOINTS for folder in (SUPERNET, NETWORK, PARENT))
    several = (path / PARENT).glob(f"*/{CHECKPOINTS}")
    begun = (path / JOURNAL).exists() or any(each.exists() for each in (*trained, *several))
    return begun or can_be_continued(path)
