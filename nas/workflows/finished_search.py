"""The finished search that a fine-tuning takes its networks and its settings from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas.config import TrainedConfig
from nas.resolving import FINETUNING, refused, stored_config
from nas.workflows.finetune_config import FinetuneConfig
from results.journal import Evaluation, read_journal
from results.report.data import Chosen, ReportData, read_result
from results.store import CONFIG, JOURNAL, MANIFEST, RESULT, is_run, read_manifest
from search_space.errors import CorruptFileError, RunError, UsageError
from search_space.files import read_mapping
from search_space.metrics import LATENCY

CHOSEN, FRONT = "chosen", "front"


@dataclass(frozen=True)
class FinishedSearch:
    """A finished search with images: its folder, configuration and result."""

    path: Path
    config: TrainedConfig
    fingerprint: str
    test_fingerprint: str | None
    result: ReportData
    chosen: Chosen

    @classmethod
    def open(cls, run: Path) -> FinishedSearch:
        """The finished search in the folder ``run``.

        Raises:
            RunError: There is none.
            CorruptFileError: One of its files is damaged.
        """
        config, path = stored_config(run), run.resolve()
        if not isinstance(config, TrainedConfig):
            raise RunError(
                f"{run} searched without images, so there is nothing to train on; search with "
                "--data, or train its network with: nas train --data SOURCE --architecture "
                "EXPORT/config.json"
            )
        if config.architecture is not None:
            raise RunError(
                f"{run} trained one network and searched nothing; give a run of `nas search`."
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
        return {e.digest: e for e in read_journal(self.path / JOURNAL) if e.status == "ok"}

    def networks(self, names: str) -> tuple[str, ...]:
        """Digests for ``chosen``, ``front``, or a list of digests that may be shortened.

        Raises:
            UsageError: Names the nearest digest and where to find them.
        """
        if names == CHOSEN:
            return (self.chosen.digest,)
        if names == FRONT:
            return self._front()
        known = self.evaluations()
        matching = [self._find(digest.strip(), known) for digest in names.split(",")]
        return tuple(dict.fromkeys(matching))

    def _front(self) -> tuple[str, ...]:
        """Members of the front that meet the latency budget as measured, in the front's order."""
        limit = self.result.targets.get(LATENCY, math.inf)
        within = [m for m in self.result.front if (m.figure(LATENCY) or math.inf) <= limit]
        return tuple(m.digest for m in within) or (self.chosen.digest,)

    def _find(self, digest: str, known: Collection[str]) -> str:
        if digest and (found := find_digest(digest, known, "--networks ")) is not None:
            return found
        nearest = difflib.get_close_matches(digest, known, n=1, cutoff=0.0)
        hint = f" Nearest: {nearest[0]}." if nearest else ""
        raise UsageError(
            f"--networks {digest!r} is no architecture that {self.path.name} evaluated.{hint} "
            "`--networks front --dry-run` lists those of its front, and "
            f"{self.path / JOURNAL} has all."
        )


def find_digest(beginning: str, known: Iterable[str], flag: str = "") -> str | None:
    """The one digest among ``known`` that begins so; None where there is none.

    Raises:
        UsageError: There are several.
    """
    matching = [digest for digest in known if digest.startswith(beginning)]
    if len(matching) > 1:
        raise UsageError(
            f"{flag}{beginning!r} begins {len(matching)} digests: {', '.join(matching)}; give more "
            "of one."
        )
    return matching[0] if matching else None


def resolve_finetuning(
    search: FinishedSearch, options: Mapping[str, Any], stored: Mapping[str, Any] | None = None
) -> FinetuneConfig:
    """Configuration from ``options`` over what is ``stored`` over the search's own settings.

    Raises:
        UsageError: Names the option, its value and the rule.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if "networks" in options:
        options["networks"] = search.networks(options["networks"])
    defaults: dict[str, Any] = {
        "epochs": search.config.finetune.epochs,
        "seed": search.config.seed,
        "loader_workers": search.config.loader_workers,
    }
    if stored is None and "networks" not in options:
        defaults["networks"] = search.networks(CHOSEN)
    fixed = {"run": str(search.path), "search": search.config.to_dict()}
    try:
        config = FinetuneConfig.model_validate({**defaults, **(stored or {}), **options, **fixed})
    except ValidationError as error:
        raise UsageError("\n".join(refused(error, FinetuneConfig))) from None
    if config.trials < len(config.networks):
        raise UsageError(
            f"--trials {config.trials} is too few for {len(config.networks)} networks, each of "
            "which begins with the search's own settings; ask for more trials or fewer networks."
        )
    return config


def stored_finetuning(path: Path) -> dict[str, Any] | None:
    """Configuration that ``path`` was begun with; None where it was not.

    Raises:
        CorruptFileError: It is another run's, or damaged.
    """
    if not is_run(path):
        return None
    stored = read_mapping(path / CONFIG)
    if not stored.keys() >= FINETUNING:
        raise CorruptFileError(f"{path} is no fine-tuning; choose another --name.")
    return stored
