"""The configuration of a run, resolved from flags, environment, file and defaults.

What decides the result is here and nothing else; it is stored as ``config.yaml`` in the run, and
running that file again reproduces the run.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas import bounds
from search import window_for
from search.samplers.registry import DEFAULT as DEFAULT_SAMPLER
from search.samplers.registry import check_sampler
from search_space.architecture import Architecture
from search_space.errors import NasError, UsageError
from search_space.files import load_space, read_mapping
from search_space.metrics import LATENCY, Metric, metric_of_option, on_device
from search_space.space import SearchSpace
from search_space.units import parse_latency, parse_throughput
from supernet.data.augmentation import AugmentConfig
from supernet.training.config import TrainConfig

POPULATION = 24

_TARGETS = ("target_latency", "target_throughput")

# What may change when a run is continued: nothing that decides its result, but for the draws of a
# training that goes on with another number of workers, since each draws subnets of its own.
MAY_DIFFER = frozenset({"loader_workers", "workers", "gpus_per_worker", "address", "storage"})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LatencyConfig(_Model):
    """Conditions that latencies hold under; None means what is usual for the device.

    interpolate: take entries that a table lacks from its measured ones of other shapes.
    margin: share of the latency budget that is left free; None means the table's expected error
        where winners cannot be measured here, otherwise nothing.
    """

    batch_size: int | None = Field(default=None, ge=1, le=bounds.BATCH_SIZE)
    precision: str | None = None
    runtime: str | None = None
    threads: int | None = Field(default=None, ge=1, le=bounds.THREADS)
    interpolate: bool = False
    margin: float | None = Field(default=None, ge=0, lt=1)


class SearchConfig(_Model):
    """How long the search is, and what it looks for beside the latency.

    With images: evaluations: architectures evaluated in all. sampler: who proposes them, by the
    names of ``search.samplers``; population: its first candidates. window: candidates that may be
    proposed before the results of earlier ones are known (None for what keeps the workers busy);
    with the seed it decides which are proposed, whatever the number of workers. optuna_storage:
    database URL or journal file of an Optuna sampler's study. warm_start: runs whose fronts are
    evaluated first. halvings: how often a batch of candidates is halved before the last of them
    see all validation images. finalists: front members that are fine-tuned. objective: validation
    ``loss``, or ``accuracy``, which few images do not tell apart, or ``balanced_accuracy``, the
    mean over classes of the share of their images that is right, for unbalanced classes.

    Without: score: the closed-form score to maximise. max_effectiveness: largest ρ where the score
    is DeepMAD's. rerank: so many of the best by score are ordered anew with the proxies that run
    networks.
    """

    evaluations: int = Field(default=400, ge=1)
    sampler: str = DEFAULT_SAMPLER
    population: int = Field(default=POPULATION, ge=4, le=bounds.POPULATION)
    window: int | None = Field(default=None, ge=1)
    optuna_storage: str | None = None
    warm_start: tuple[str, ...] = ()
    halvings: int = Field(default=0, ge=0, le=10)
    finalists: int = Field(default=3, ge=1)
    objective: Literal["loss", "accuracy", "balanced_accuracy"] = "loss"
    score: Literal["combined", "deepmad"] = "combined"
    max_effectiveness: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    rerank: int = Field(default=0, ge=0)


class RunConfig(_Model):
    """Everything that decides a run.

    Without ``data`` nothing is trained, and networks of ``num_classes`` are searched by a score.
    ``target_latency`` and ``target_throughput`` are text with a unit, ``max`` has further upper
    limits by the options of metrics, ``min`` lower ones (one limit of any kind is there, except
    where just a supernet is trained), and ``minimize`` says what the front is a trade-off of.
    ``space`` is a preset's name or a whole space. ``supernet`` names another run whose trained
    supernet is used instead of training one. ``architecture`` is the plain form of the one
    network to train instead of searching.

    ``finetune`` takes optimiser, learning rate, batch size and weight decay from ``train`` unless
    it says otherwise.

    ``workers``, each with ``gpus_per_worker`` and ``loader_workers`` data-loading processes, train
    the supernet; more than one on the Ray cluster at ``address``, with checkpoints in ``storage``.
    """

    data: str | None = None
    space: str | dict[str, Any]
    device: str = "cpu"
    target_latency: str | None
    target_throughput: str | None = None
    max: dict[str, str] = {}
    min: dict[str, str] = {}
    minimize: tuple[str, ...] = ("latency",)
    seed: int = Field(default=0, ge=0, le=bounds.SEED)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    image_column: str = "image"
    label_column: str = "label"
    supernet: str | None = None
    architecture: dict[str, Any] | None = None
    num_classes: int = Field(default=1000, ge=1, le=bounds.NUM_CLASSES)
    loader_workers: int = Field(default=0, ge=0)
    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    address: str | None = None
    storage: str | None = None
    latency: LatencyConfig = LatencyConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    finetune: TrainConfig = TrainConfig(epochs=10, warmup_epochs=1.0)

    def limits(self, batch_size: int = 1) -> dict[str, float]:
        """Upper limits by metric name, in the metric's unit; a throughput is one of latency."""
        limits = {}
        if self.target_latency is not None:
            limits[LATENCY] = parse_latency(self.target_latency)
        if self.target_throughput is not None:
            of_batch = 1e3 * batch_size / parse_throughput(self.target_throughput)
            limits[LATENCY] = min(of_batch, limits.get(LATENCY, math.inf))
        for metric, limit in self._named(_bounds(self.max)).items():
            limits[metric] = min(limit, limits.get(metric, math.inf))
        return limits

    def lower_limits(self) -> dict[str, float]:
        """Lower limits by metric name, in the metric's unit."""
        return self._named(_bounds(self.min))

    def minimised(self) -> tuple[str, ...]:
        """Metrics to minimise beside what tells networks apart, by metric name."""
        return tuple(self._named({_limited(name).name: 0.0 for name in self.minimize}))

    def _named(self, limits: dict[str, float]) -> dict[str, float]:
        """With the searched device's latency by its short name, however it was asked for."""
        own = on_device(LATENCY, self.device)
        return {LATENCY if metric == own else metric: v for metric, v in limits.items()}

    def search_space(self) -> SearchSpace:
        if isinstance(self.space, str):
            return load_space(self.space)
        try:
            return SearchSpace.from_dict(self.space)
        except NasError as error:
            raise error.located("space") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain form, every default spelled out."""
        data = self.model_dump(mode="json")
        for part in ("train", "finetune"):
            data[part] = getattr(self, part).to_dict()
        return data


def _bounds(texts: Mapping[str, str]) -> dict[str, float]:
    """Limits by metric name; raises UnknownNameError and InvalidQuantityError."""
    return {(metric := _limited(name)).name: metric.unit.parse(t) for name, t in texts.items()}


def _limited(option: str) -> Metric:
    """The metric with a table that ``option`` names; raises UnknownNameError."""
    return metric_of_option(option, "table")


def resolve(
    given: Mapping[str, Any], file: str | None = None, *, with_budget: bool = True
) -> RunConfig:
    """Configuration from what was given on the command line over a file over the defaults.

    ``given`` may have dotted keys (``train.epochs``); None means not given. A space in a file
    of its own is stored whole, and the seed is passed on to both trainings. A limit must be
    there, or a target is left out, by ``with_budget``. Raises UsageError that names the key, the
    value and the rule.
    """
    data: dict[str, Any] = {} if file is None else read_mapping(Path(file))
    for key, value in given.items():
        if value is None:
            continue
        target = data
        *parents, leaf = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UsageError(f"{file}: {parent!r} must be a mapping.")
        bound = leaf in ("max", "min")
        if bound:
            there = target.get(leaf) or {}
            if not isinstance(there, dict):
                raise UsageError(f"{file}: {leaf}={there!r} must be a mapping, as in params: 5M.")
            value = {**there, **value}
        target[leaf] = value
    _check_mode(given, data)
    if not with_budget:
        data["target_latency"] = data["target_throughput"] = None
    elif data.get("target_throughput") is not None:
        data.setdefault("target_latency", None)
    elif data.get("target_latency") is None:
        if data.get("max") or data.get("min"):
            data["target_latency"] = None  # other limits will do
        else:
            data.pop("target_latency", None)  # so that it is reported as missing
    if data.get("data") is None:
        _check_without_data(data, with_budget)
        data.setdefault("space", "tiny")
    elif data["data"] == "digits" or data.get("architecture") is not None:
        data.setdefault("space", "digits")
    _fix_window(data)
    if isinstance(data.get("space"), str):
        space = load_space(data["space"])
        if Path(data["space"]).suffix:
            data["space"] = space.to_dict()
    seed = data.get("seed", 0)
    for part in ("train", "finetune"):
        defaults = RunConfig.model_fields[part].default.to_dict()
        if part == "train" and _is_wide(data):
            defaults |= _WIDER
        if part == "finetune":
            defaults |= {key: data["train"][key] for key in _SHARED}
        if isinstance(data.get(part), dict):
            defaults |= data[part]
        elif part in data:
            where = f"{file}: " if file else ""
            raise UsageError(f"{where}{part}={data[part]!r} must be a mapping.")
        data[part] = defaults | {"seed": seed}
    limits = [data[key] for key in ("max", "min") if isinstance(data.get(key), dict)]
    for group in (data, *limits):
        for key in _TARGETS if group is data else list(group):
            # YAML reads 5 as a number; whether it needs a unit is for later
            if isinstance(group.get(key), (int, float)):
                group[key] = str(group[key])
    try:
        config = RunConfig.model_validate(data)
        # units and names are checked now, not after training
        config.limits(), config.lower_limits(), config.minimised()
        if config.data is not None:
            check_sampler(config.search.sampler, config.search.optuna_storage)
        if not isinstance(config.space, str):
            config.search_space()
    except ValidationError as error:
        raise UsageError(_explain(error, file)) from None
    except NasError as error:  # a rule of a training, a quantity
        raise UsageError(str(error.located(file) if file else error)) from None
    return config


def _fix_window(data: dict[str, Any]) -> None:
    """Decide the window once: a run that goes on with other workers must propose the same."""
    search = data.setdefault("search", {})
    if data.get("data") is None or not isinstance(search, dict) or search.get("window") is not None:
        return
    workers, population = data.get("workers", 1), search.get("population", POPULATION)
    if isinstance(workers, int) and isinstance(population, int):  # else an error comes later
        search["window"] = window_for(max(1, workers), max(2, population // 2))


def _is_wide(data: Mapping[str, Any]) -> bool:
    """Whether networks are wider than those of the ``digits`` space."""
    if data.get("architecture") is None:
        return data.get("space") != "digits"
    widest = load_space("digits").stages[-1].widths[-1]
    return max(Architecture.from_dict(data["architecture"]).widths) > widest


# What means nothing without images, and what means nothing with them, by the names of the flags.
_WITH_DATA = {
    "train.epochs": "--epochs",
    "train.batch_size": "--train-batch-size",
    "train.lr": "--lr",
    "search.evaluations": "--evaluations",
    "search.objective": "--maximize",
    "search.sampler": "--sampler",
    "search.population": "--population",
    "search.optuna_storage": "--optuna-storage",
    "search.warm_start": "--warm-start",
    "train.strategy": "--strategy",
    "train.shrinking": "--shrinking",
    "train.teacher": "--teacher",
    "train.teacher_weights": "--teacher-weights",
    "search.halvings": "--halvings",
    "search.finalists": "--finalists",
    "finetune.epochs": "--finetune-epochs",
    "loader_workers": "--loader-workers",
    "workers": "--workers",
    "gpus_per_worker": "--gpus-per-worker",
    "address": "--address",
    "storage": "--storage",
    "image_column": "--image-column",
    "label_column": "--label-column",
    "supernet": "--supernet",
}
_WITHOUT_DATA = {
    "search.score": "--score",
    "search.max_effectiveness": "--max-effectiveness",
    "search.rerank": "--rerank",
    "num_classes": "--num-classes",
}


def _check_mode(given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raises UsageError for options that the kind of run would ignore."""
    images = data.get("data") is not None
    for key, flag in (_WITHOUT_DATA if images else _WITH_DATA).items():
        if given.get(key) is not None:
            raise UsageError(
                f"{flag} {given[key]} does nothing {'with' if images else 'without'} --data; "
                f"{'leave one of them out' if images else 'give --data, or leave it out'}."
            )
    score = data.get("search", {}).get("score") if isinstance(data.get("search"), dict) else None
    if given.get("search.max_effectiveness") is not None and score != "deepmad":
        raise UsageError(
            f"--max-effectiveness {given['search.max_effectiveness']} does nothing without --score "
            "deepmad; give that, or leave it out."
        )
    _check_workers(given, data)
    for key in ("space", "train.strategy", "train.shrinking"):
        if given.get(key) is not None and data.get("architecture") is not None:
            raise UsageError(
                f"--{key.removeprefix('train.')} {given[key]} does nothing with --architecture; "
                "leave one of them out."
            )


def _check_workers(given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raises UsageError for options of workers that there are none of."""
    several = data.get("workers") not in (None, 1)
    if several and given.get("workers") is not None and data.get("architecture") is not None:
        raise UsageError(
            f"--workers {given['workers']} does nothing with --architecture, which one process "
            "trains; leave one of them out."
        )
    for key in () if several else ("gpus_per_worker", "address", "storage"):
        if given.get(key) is not None:
            raise UsageError(
                f"{_WITH_DATA[key]} {given[key]} does nothing with one worker; give --workers, or "
                "leave it out."
            )


def _check_without_data(data: Mapping[str, Any], with_budget: bool) -> None:
    """Raises UsageError for what needs images."""
    if not with_budget:
        raise UsageError("'data' is missing; give --data, or set it in a --config file.")
    if data.get("supernet") is not None:
        raise UsageError(
            f"supernet {data['supernet']} needs the images that judge its subnets; give --data."
        )


# The defaults are those of the narrow `digits` space; hundreds of channels diverge at its rate.
_WIDER = {"lr": 5e-4, "batch_size": 64, "weight_decay": 0.05}
# A fine-tuning at a tenth of the training's rate gains little (``finetuning.py``).
_SHARED = ("optimizer", "lr", "batch_size", "weight_decay")
_FLAGS = {"data": "--data", "space": "--space", "target_latency": "--target-latency or --max"}


def _explain(error: ValidationError, file: str | None) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _known_keys(item["loc"][:-1])
            nearest = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.4)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            lines.append(f"unknown key {key!r}.{hint} Known: {', '.join(known)}.")
        elif item["type"] == "missing":
            flag = _FLAGS.get(key, f"the key {key!r}")
            lines.append(f"{key!r} is missing; give {flag}, or set it in a --config file.")
        else:
            lines.append(f"{key}={item['input']!r}: {item['msg']}.")
    where = f"{file}: " if file else ""
    return where + "\n".join(dict.fromkeys(lines))


def _known_keys(parents: tuple[int | str, ...]) -> list[str]:
    if not parents:
        return sorted(RunConfig.model_fields)
    part = RunConfig.model_fields[str(parents[0])].default
    if isinstance(part, TrainConfig):
        return sorted(AugmentConfig().to_dict() if "augment" in parents else part.to_dict())
    return sorted(type(part).model_fields)
