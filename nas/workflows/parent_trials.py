"""Several networks are tried as the parent of a search, each for a while; the best is kept.

A trial is the beginning of an adaptation: a classifier is fitted to the images, then all layers are
trained for a fifth of the epochs, and validation images judge both; of few images some steps of a
training undo more than they teach. Each result is a file of the run, so what was tried is not tried
again. The one that is kept is laid over the run's configuration.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nas.cli.console import Console
from nas.config import TrainedConfig
from nas.resolving import KEPT_PARENT
from nas.workflows.adapting import classified, gentle
from nas.workflows.inherited import PARENT, START, copied
from nas.workflows.network_latencies import network_latencies
from nas.workflows.parent_space import named_parents, space_of
from nas.workflows.pretrained_search import PretrainedSearch
from nas.workflows.tried_parents import (
    FINDING,
    FIX,
    MEASURING,
    PARENTS,
    TRYING,
    choose,
    tried_lines,
)
from nas.workflows.with_images import shown
from nas.workflows.zoo_parents import zoo_parents
from predictors.counts import count_architecture
from results.report.inheritance import TriedParent
from results.store import RunDirectory
from search_space.boundary import read_model
from search_space.errors import RunError
from search_space.files import read_mapping
from search_space.metrics import ACCURACY, BALANCED_ACCURACY, format_metric
from supernet import build
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.parents import find_parent
from supernet.network.tensor_files import read_tensors, write_tensors
from supernet.training.evaluation import Quality, evaluate
from supernet.training.train import finetune

CANDIDATES = "candidates.json"
SHARE = 0.2  # of the adaptation's epochs
SECONDS = 120.0  # for latencies of the zoo, where the run says nothing


def kept_parent(config: TrainedConfig, directory: RunDirectory, console: Console) -> TrainedConfig:
    """Tries the parents of a configuration, unless that is done; returns it with the best one.

    Raises:
        UsageError: The weights of one cannot be had.
        InfeasibleError: No network of the zoo is worth a try.
        RunError: The images changed since the run began.
    """
    file = directory.path / KEPT_PARENT
    if not file.exists():
        _Trials(config, directory, console).decide()
    return TrainedConfig.model_validate({**config.to_dict(), **read_mapping(file)})


class _Trials:
    """Trials of one run."""

    def __init__(self, config: TrainedConfig, directory: RunDirectory, console: Console) -> None:
        self.config, self.directory, self.console = config, directory, console
        # of the parent that the configuration names: limits, device, phases
        self.run = PretrainedSearch(config, directory, console)
        self.folder = directory.path / PARENTS
        self.side = self.run.space.resolutions[-1]
        self.changes: dict[str, dict[str, Any]] = {}

    def decide(self) -> None:
        """Writes what the best parent changes in the configuration."""
        self.run.data = self._images(self.config)
        self.run.check_trainings()
        candidates = self._candidates()
        for number, candidate in enumerate(candidates):
            self._prepare(number, candidate, candidates)
        tried = [self._tried(number, candidate) for number, candidate in enumerate(candidates)]
        kept, reason = choose(tried)
        start = self._work(tried.index(kept), kept) / START
        if start.exists():  # it need not be fetched and fitted again
            (self.run.path / PARENT).mkdir(exist_ok=True)
            copied(start, self.run.path / PARENT / START)
        weights = find_parent(kept.name, kept.weights).fingerprint()
        self.directory.update_manifest(parent=weights)
        for line in tried_lines(tried):
            self.console.say(f"  {line}")
        self.console.say(f"  {kept.name} is the parent: {reason}")
        self.directory.write_json(KEPT_PARENT, self._changes(kept))
        for number, one in enumerate(tried):
            shutil.rmtree(self._work(number, one), ignore_errors=True)

    def _candidates(self) -> list[TriedParent]:
        """Networks to try, the configuration's own first, as they were found at the run's begin."""
        file = self.folder / CANDIDATES
        if file.exists():
            return list(read_model(file, list[TriedParent], fix=FIX))
        assert self.config.parent is not None
        names = [(self.config.parent, self.config.parent_weights)]
        names += named_parents(self.config.parents)
        found: dict[str, TriedParent] = {}
        for name, weights in names:
            one = self._candidate(name, weights)
            found.setdefault(one.digest, one)
        if count := sum(int(text) for text in self.config.parents if text.isdigit()):
            with self.run.phase(FINDING) as progress:
                models = zoo_parents(
                    self.run.target,
                    self.run.limits,
                    count,
                    self.side,
                    self.run.num_classes,
                    without=found,
                    seconds=self.config.inherit.zoo_seconds or SECONDS,
                    progress=progress,
                )
            for model in models:
                one = self._candidate(model.full_name, None, model.top1 / 100)
                found[one.digest] = one
        architectures = [self._architecture(one) for one in found.values()]
        with self.run.phase(MEASURING) as progress:
            latencies = network_latencies(
                architectures,
                self.run.target,
                self.run.num_classes,
                seed=self.config.seed,
                progress=progress,
            )
        result = [
            replace(one, latency_ms=ms) for one, ms in zip(found.values(), latencies, strict=True)
        ]
        self.folder.mkdir(exist_ok=True)
        self.directory.write_json(f"{PARENTS}/{CANDIDATES}", [asdict(one) for one in result])
        return result

    def _candidate(self, name: str, weights: str | None, top1: float | None = None) -> TriedParent:
        architecture = replace(find_parent(name, weights).architecture, resolution=self.side)
        counts = count_architecture(architecture, self.run.num_classes)
        return TriedParent(
            name=name,
            digest=architecture.digest,
            weights=weights,
            top1=top1,
            num_params=counts["num_params"],
            macs=counts["macs"],
        )

    def _architecture(self, one: TriedParent) -> Any:
        return replace(find_parent(one.name, one.weights).architecture, resolution=self.side)

    def _prepare(
        self, number: int, candidate: TriedParent, candidates: Iterable[TriedParent]
    ) -> None:
        """Gives a candidate a classifier of the images; weights that are missing end it here."""
        start = self._work(number, candidate) / START
        if start.exists() or self._file(number, candidate).exists():
            return
        named = number <= len(named_parents(self.config.parents))
        with self.directory.phase(TRYING), self.console.phase(f"loading {candidate.name}"):
            parent = find_parent(candidate.name, candidate.weights)
            names = ", ".join(one.name for one in candidates)
            fix = (
                "where there is no network, name those whose weights lie in files, as in --parents "
                f"{candidate.name}=FILE{'' if named else ', instead of a number'}. To be tried "
                f"are {names}."
            )
            network, share = classified(
                parent.load() if number == 0 else parent.load(fix),
                self._architecture(candidate),
                self._images(self._config_of(candidate)),
                seed=self.config.seed,
                device=self.run.compute,
            )
            start.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(start, network.state_dict())
        self.console.say(f"  a classifier alone knows {share:.1%} of training images")

    def _tried(self, number: int, candidate: TriedParent) -> TriedParent:
        """A candidate's result: the one that is stored, or that of a training now."""
        file, config = self._file(number, candidate), self._config_of(candidate)
        data = self._images(config)
        if file.exists():
            known = read_model(file, TriedParent, fix=FIX)
            if known.fingerprint != data.fingerprint:
                raise RunError(
                    f"the images of {config.data!r} changed since {known.name} was tried "
                    f"(fingerprint {known.fingerprint} -> {data.fingerprint}). Restore them, or "
                    "start a new run with another --name."
                )
            return known
        began, work = time.monotonic(), self._work(number, candidate)
        epochs = max(1, round(SHARE * config.adapt.epochs))
        recipe = replace(gentle(config.adapt, data), epochs=epochs, patience=0)
        network = build(
            self._architecture(candidate),
            data.num_classes,
            drop_path_rate=recipe.drop_path_rate,
        )
        network.load_state_dict(read_tensors(work / START))
        validation = eval_batches(data.validation)
        with (
            self.directory.phase(TRYING),
            self.console.phase(f"trying {candidate.name}") as progress,
        ):
            network.to(self.run.compute)
            alone = evaluate(network, validation, amp=recipe.amp)
            finetune(
                network,
                data,
                recipe,
                work,
                progress=shown(progress),
                device=self.run.compute,
                workers=config.loader_workers,
            )
            trained = evaluate(network, validation, amp=recipe.amp)
        balanced = config.search.objective == BALANCED_ACCURACY

        def share(quality: Quality) -> float:
            return quality.balanced_accuracy if balanced else quality.accuracy

        better = max((alone, trained), key=share)
        result = replace(
            candidate,
            accuracy=share(better),
            loss=better.loss,
            by_training=better is trained,
            images=better.images,
            seconds=round(time.monotonic() - began, 1),
            fingerprint=data.fingerprint,
        )
        self.directory.write_json(f"{PARENTS}/{file.name}", asdict(result))
        self.console.say(f"  {format_metric(ACCURACY, result.accuracy)} of validation images")
        return result

    def _config_of(self, candidate: TriedParent) -> TrainedConfig:
        plain = {**self.config.to_dict(), **self._changes(candidate)}
        return TrainedConfig.model_validate(plain)

    def _changes(self, candidate: TriedParent) -> dict[str, Any]:
        """What a parent changes in the configuration: nothing, where it is the one named there."""
        if candidate.name == self.config.parent:
            return {"parents": []}
        if candidate.digest not in self.changes:
            parent = find_parent(candidate.name, candidate.weights)
            self.changes[candidate.digest] = {
                "parents": [],
                "parent": candidate.name,
                "parent_weights": candidate.weights,
                "mean": list(parent.mean),
                "std": list(parent.std),
                "space": space_of(parent, self.side),
            }
        return self.changes[candidate.digest]

    def _images(self, config: TrainedConfig) -> ImageData:
        return open_data(config.data, self.side, **config.image_options())

    def _file(self, number: int, candidate: TriedParent) -> Path:
        return self.folder / f"{self._work(number, candidate).name}.json"

    def _work(self, number: int, candidate: TriedParent) -> Path:
        """Folder of a trial's weights, until the parent is decided."""
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(candidate.name).name)
        return self.folder / f"{number:02}-{name}"


def can_be_continued(path: Path) -> bool:
    """Whether a run has tried a parent, or begun to."""
    folder = path / PARENTS
    return any(folder.glob("[0-9]*.json")) or any(folder.glob("[0-9]*/checkpoints"))
