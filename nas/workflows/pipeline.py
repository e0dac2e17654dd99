"""A run from data and budget to a deployed network; what is missing is made.

Phases: latency table, supernet, search, re-measurement, fine-tuning, export, report. Each leaves
its result in the run directory and finds it there when the run is continued, so a run that was
killed anywhere ends as if it had not been.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from nas.cli.console import Console
from nas.config import RunConfig
from nas.workflows.network_training import NETWORK, NetworkTraining
from nas.workflows.run import Run
from nas.workflows.starting import new_manifest, open_run
from nas.workflows.trained_search import CHECKPOINTS, TrainedSearch
from nas.workflows.training_free import TrainingFreeSearch
from results.report.data import ReportData
from results.store import JOURNAL, SUPERNET
from search_space.errors import UsageError

R = TypeVar("R", bound=Run)
_PACKAGES = ("nas", "torch", "timm", "numpy", "onnx", "onnxruntime")


def run_search(
    config: RunConfig,
    path: Path,
    *,
    resume: bool = False,
    command: str = "",
    console: Console | None = None,
) -> ReportData:
    """Run, or continue, the search that ``config`` describes in the directory ``path``.

    Returns what the report shows; the files lie in ``path``. Raises a NasError for everything
    that the user can mend: RunError where the run exists, InfeasibleError where no architecture
    meets the limits, DataError, ExportError. A new run that fails before anything was trained is
    removed again.
    """
    console = console or Console()
    if config.architecture is not None:
        raise UsageError(
            "this configuration names one architecture to train, and a search would ignore it; use "
            "nas train, or take 'architecture' out."
        )
    kind: type[Run] = TrainingFreeSearch if config.data is None else TrainedSearch
    return _start(config, path, resume, command, console, kind, lambda run: run.all_phases())


def run_training(
    config: RunConfig,
    path: Path,
    *,
    resume: bool = False,
    command: str = "",
    console: Console | None = None,
) -> ReportData:
    """Train one architecture where ``config`` names one, otherwise only the supernet.

    ``run_search`` with ``supernet`` set to ``path`` then uses the supernet.
    """
    console = console or Console()
    if config.architecture is not None:
        return _start(
            config, path, resume, command, console, NetworkTraining, NetworkTraining.all_phases
        )
    return _start(
        config, path, resume, command, console, TrainedSearch, TrainedSearch.training_only
    )


def _start(
    config: RunConfig,
    path: Path,
    resume: bool,
    command: str,
    console: Console,
    kind: type[R],
    steps: Callable[[R], ReportData],
) -> ReportData:
    first = not path.parent.exists()
    manifest = new_manifest(config.seed, command, _PACKAGES)
    with open_run(path, config.to_dict(), manifest, console, resume=resume) as (directory, new):
        try:
            return steps(kind(config, directory, console))
        except Exception:
            if new and not _can_be_continued(path):
                shutil.rmtree(path)
                if first:
                    with suppress(OSError):  # another run may have begun beside it
                        path.parent.rmdir()
            raise


def _can_be_continued(path: Path) -> bool:
    """Whether more than the latency table, which is cached elsewhere, would be lost with it."""
    trained = (path / folder / CHECKPOINTS for folder in (SUPERNET, NETWORK))
    return (path / JOURNAL).exists() or any(each.exists() for each in trained)
