"""What a fine-tuning is asked for, and the finished search that its networks come from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas.config import RunConfig
from nas.workflows.stored_run import FINETUNING, stored_config
from results.journal import Evaluation, read_journal
from results.manifest import read_manifest
from results.report.data import Chosen, FrontMember, ReportData, read_result
from results.store import CONFIG, JOURNAL, MANIFEST, RESULT, is_run
from search_space.errors import CorruptFileError, RunError, UsageError
from search_space.files import read_mapping
from search_space.metrics import LATENCY
from supernet.training.config import TrainConfig

CHOSEN, FRONT = "chosen", "front"
TRIALS = 16


class FinetuneConfig(BaseModel):
    """Everything that decides a fine-tuning.

    run: folder of the search, whose own configuration is ``search``. networks: digests.
    trials: trainings in all; epochs: of each that is not stopped early. seed: of what is tried.
    The rest is who trains: ``workers`` trials at a time, as in ``RunConfig``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    networks: tuple[str, ...]
    trials: int = Field(default=TRIALS, ge=1)
    epochs: int = Field(ge=1)
    seed: int = Field(ge=0)
    loader_workers: int = Field(default=0, ge=0)
    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    address: str | None = None
    storage: str | None = None
    search: RunConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain form, every default spelled out."""
        return {**self.model_dump(mode="json"), "search": self.search.to_dict()}

    @property
    def recipe(self) -> TrainConfig:
        """How the search itself fine-tunes, for as many epochs as are asked for."""
        recipe = self.search.finetune
        named = {"teacher": recipe.teacher, "teacher_weights": recipe.teacher_weights}
        # workers are in other folders
        files: dict[str, Any] = {
            name: str(Path(value).resolve())
            for name, value in named.items()
            if value and Path(value).exists()
        }
        return replace(recipe, epochs=self.epochs, **files)


@dataclass(frozen=True)
class FinishedSearch:
    """A finished search with images: its folder, configuration and result."""

    path: Path
    config: RunConfig
    fingerprint: str
    test_fingerprint: str | None
    result: ReportData
    chosen: Chosen

    @classmethod
    def open(cls, run: Path) -> FinishedSearch:
        """Raises RunError where ``run`` is none; CorruptFileError."""
        config, path = stored_config(run), run.resolve()
        if config.architecture is not None:
            raise RunError(
                f"{run} trained one network and searched nothing; give a run of `nas search`."
            )
        if config.data is None:
            raise RunError(
                f"{run} searched without images, so there is nothing to train on; search with "
                "--data, or train its network with: nas train --data SOURCE --architecture "
                "EXPORT/config.json"
            )
        manifest = read_manifest(path / MANIFEST)
        if manifest.get("status") == "trained":
            raise RunError(
                f"{run} holds a supernet and no search; search first: nas search --supernet {run}"
            )
        if manifest.get("status") != "complete" or not (path / RESULT).exists():
            raise RunError(
                f"{run} is not finished. Finish it first: nas search --config {run / CONFIG} "
                f"--name {path.name} --resume"
            )
        manifest = read_manifest(path / MANIFEST, ("phases", "data"))
        result = read_result(path / RESULT)
        if result.chosen is None:
            raise RunError(f"{run} chose no network; there is none to fine-tune.")
        data, test_data = manifest["data"], manifest.get("test_data")
        return cls(path, config, data, test_data, result, result.chosen)

    def evaluations(self) -> dict[str, Evaluation]:
        """Networks that were evaluated, by digest."""
        found = read_journal(self.path / JOURNAL)
        return {evaluation.digest: evaluation for evaluation in found if evaluation.status == "ok"}

    def networks(self, asked: str) -> tuple[str, ...]:
        """Digests for ``chosen``, ``front``, or a list of digests that may be shortened.

        Raises UsageError naming the nearest digest and where to find them.
        """
        if asked == CHOSEN:
            return (self.chosen.digest,)
        if asked == FRONT:
            return self._front()
        known = self.evaluations()
        found = [self._find(digest.strip(), known) for digest in asked.split(",")]
        return tuple(dict.fromkeys(found))

    def _front(self) -> tuple[str, ...]:
        """Members of the front that meet the latency budget as measured, in the front's order."""
        limit = self.result.targets.get(LATENCY, math.inf)
        within = [member for member in self.result.front if _latency(member) <= limit]
        return tuple(m.digest for m in within) or (self.chosen.digest,)

    def _find(self, digest: str, known: Mapping[str, Evaluation]) -> str:
        found = [each for each in known if digest and each.startswith(digest)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"--networks {digest!r} begins {len(found)} digests: {', '.join(found)}; give more "
                "of one."
            )
        nearest = difflib.get_close_matches(digest, known, n=1, cutoff=0.0)
        hint = f" Nearest: {nearest[0]}." if nearest else ""
        raise UsageError(
            f"--networks {digest!r} is no architecture that {self.path.name} evaluated.{hint} "
            "`--networks front --dry-run` lists those of its front, and "
            f"{self.path / JOURNAL} has all."
        )


def _latency(member: FrontMember) -> float:
    latency = member.measured.get(LATENCY, member.predicted.get(LATENCY))
    return math.inf if latency is None else latency


def resolve_finetuning(
    search: FinishedSearch,
    given: Mapping[str, Any],
    stored: Mapping[str, Any] | None = None,
) -> FinetuneConfig:
    """Configuration from what was given over what is ``stored`` over the search's own settings.

    ``given`` by the names of the options, with None for what was not given. Raises UsageError.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if "networks" in asked:
        asked["networks"] = search.networks(asked["networks"])
    defaults: dict[str, Any] = {
        "epochs": search.config.finetune.epochs,
        "seed": search.config.seed,
        "loader_workers": search.config.loader_workers,
    }
    if stored is None and "networks" not in asked:
        defaults["networks"] = search.networks(CHOSEN)
    fixed = {"run": str(search.path), "search": search.config.to_dict()}
    try:
        config = FinetuneConfig.model_validate({**defaults, **(stored or {}), **asked, **fixed})
    except ValidationError as error:
        lines = (
            f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg']}." for e in error.errors()
        )
        raise UsageError("\n".join(lines)) from None
    if config.trials < len(config.networks):
        raise UsageError(
            f"--trials {config.trials} is too few for {len(config.networks)} networks, each of "
            "which begins with the search's own settings; ask for more trials or fewer networks."
        )
    return config


def stored_finetuning(path: Path) -> dict[str, Any] | None:
    """What ``path`` was begun with, nothing where it was not; raises CorruptFileError."""
    if not is_run(path):
        return None
    stored = read_mapping(path / CONFIG)
    if not stored.keys() >= FINETUNING:
        raise CorruptFileError(f"{path} is no fine-tuning; choose another --name.")
    return stored
