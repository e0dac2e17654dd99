"""Configuration of a run: all that decides its result, and by which flags it is given.

There are two kinds, with images and without. A configuration is stored as ``config.yaml`` in the
run, and running that file again reproduces the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from nas import flags
from nas.config_ignored import ignored
from nas.config_parts import (
    ADDITIVE_SCORES,
    Address,
    Configuration,
    InheritConfig,
    LatencyConfig,
    Limits,
    LocalPath,
    NameOrPath,
    OtherParent,
    ParentFiles,
    ParentNames,
    Quantity,
    ScoredSearchConfig,
    Storage,
    SupernetTraining,
    TrainedSearchConfig,
    Training,
    parts_of,
)
from nas.flags import Flag
from results.export import OPSET, OPSETS
from search.samplers.registry import EXACT
from search_space.errors import NasError, UnknownNameError, UsageError
from search_space.files import load_space
from search_space.metrics import (
    LATENCY,
    MEMORY,
    TABLE,
    Metric,
    metric_of_option,
    on_device,
    options,
)
from search_space.precision import SEARCHED, with_precisions
from search_space.space import SearchSpace
from search_space.space_definition import space_from_dict
from search_space.units import parse_latency, parse_throughput
from supernet.training.config import TrainConfig

# What may change when a run is continued: nothing that decides its result, but for the draws of a
# training that goes on with another number of workers, since each draws subnets of its own.
MAY_DIFFER = frozenset(
    {"loader_workers", "workers", "gpus_per_worker", "address", "storage", "loggers"}
)


class RunConfig(Configuration):
    """Everything that decides a run; with images it is a ``TrainedConfig``.

    ``target_latency`` and ``target_throughput`` are text with a unit, ``max`` has further upper
    limits by the metrics' options, ``min`` lower ones (one limit of any kind is there, except where
    nothing is searched), and ``minimize`` says what the front is a trade-off of. ``space`` is a
    preset's name or a whole space. ``costs`` are Parquet files of further additive metrics, by the
    options to limit them with.
    """

    data: NameOrPath | None = None
    space: Annotated[
        str | dict[str, Any], Flag("--space", "Search space: a preset or a YAML file.", "NAME|FILE")
    ]
    device: Annotated[
        str, Flag("--device", "Device that the latency is for (default cpu).", "NAME")
    ] = "cpu"
    target_latency: Annotated[
        Quantity | None, Flag("--target-latency", "Upper limit of the latency, with a unit.", "5ms")
    ] = None
    target_throughput: Annotated[
        Quantity | None, Flag("--target-throughput", "Lower limit of images per second.", "2000/s")
    ] = None
    max: Annotated[
        Limits,
        Flag(
            "--max",
            f"Upper limit of {', '.join(options(TABLE))} or latency@DEVICE, as in params=5M.",
            "METRIC=LIMIT",
        ),
    ] = Field(default={})
    min: Annotated[
        Limits, Flag("--min", "Lower limit of the same, as in latency=3ms.", "METRIC=LIMIT")
    ] = Field(default={})
    costs: Annotated[
        dict[str, LocalPath],
        Flag(
            "--cost",
            "A metric of your own that adds up over components, as a Parquet table, to limit or "
            "minimise by its name: --cost energy=table.parquet --max energy=5mJ.",
            "NAME=FILE",
        ),
    ] = Field(default={})
    minimize: Annotated[
        tuple[str, ...],
        Flag(
            "--minimize",
            "What the front trades quality for (default latency); may be given several times.",
            "METRIC",
        ),
    ] = ("latency",)
    opset: Annotated[
        int,
        Flag(
            "--opset",
            f"Operator set of the ONNX export (default {OPSET}); older runtimes load older ones.",
        ),
    ] = Field(default=OPSET, ge=OPSETS[0], le=OPSETS[1])
    seed: Annotated[int, Flag("--seed", "Default 0.")] = Field(default=0, ge=0, le=flags.SEED)
    latency: LatencyConfig = LatencyConfig()

    def limits(self, batch_size: int = 1) -> dict[str, float]:
        """Upper limits by metric name, in the metric's unit; a throughput is one of latency.

        Where several limit one metric, the strictest holds.
        """
        limits = self._bounds(self.max, min)
        latencies = []
        if self.target_latency is not None:
            latencies.append(parse_latency(self.target_latency))
        if self.target_throughput is not None:
            latencies.append(1e3 * batch_size / parse_throughput(self.target_throughput))
        if latencies:
            limits[LATENCY] = min(*latencies, limits.get(LATENCY, latencies[0]))
        return limits

    def lower_limits(self) -> dict[str, float]:
        """Lower limits by metric name, in the metric's unit."""
        return self._bounds(self.min, max)

    def minimised(self) -> tuple[str, ...]:
        """Metrics to minimise beside what tells networks apart, by metric name."""
        return tuple(dict.fromkeys(self._name(self._metric(text)) for text in self.minimize))

    @cached_property
    def own_costs(self) -> dict[str, Metric]:
        """Metrics of ``costs`` by their options.

        Raises:
            UsageError, CorruptFileError: A table cannot be read, or its name is taken.
        """
        if not self.costs:
            return {}
        from predictors.tables.cost_table import load_cost

        return {option: load_cost(option, Path(file)) for option, file in self.costs.items()}

    def _bounds(
        self, texts: Mapping[str, str], stricter: Callable[[float, float], float]
    ) -> dict[str, float]:
        limits: dict[str, float] = {}
        for option, text in texts.items():
            metric = self._metric(option)
            name, limit = self._name(metric), metric.unit.parse(text)
            limits[name] = stricter(limit, limits.get(name, limit))
        return limits

    def _metric(self, option: str) -> Metric:
        """The metric with a table that ``option`` names."""
        return metric_of_option(option, TABLE, self.own_costs)

    def _name(self, metric: Metric) -> str:
        """The metric's name; the searched device's latency has the short one."""
        return LATENCY if metric.name == on_device(LATENCY, self.device) else metric.name

    def search_space(self) -> SearchSpace:
        """The space, made from its name or its plain form, in the precisions that are searched."""
        try:
            if isinstance(self.space, str):
                space = load_space(self.space)
            else:
                space = space_from_dict(self.space)
        except NasError as error:
            raise error.located("space") from None
        searched = self.latency.precision
        return with_precisions(space, searched) if searched in SEARCHED else space

    def useless(self) -> dict[str, str]:
        """Fields that this run would ignore, by path, with the reason and the fix."""
        return {}


class TrainingFreeConfig(RunConfig):
    """A search without images: nothing is trained, and networks of ``num_classes`` are scored."""

    data: None = None
    num_classes: Annotated[
        int, Flag("--num-classes", "Classes, without --data (default 1000).")
    ] = Field(default=1000, ge=1, le=flags.NUM_CLASSES)
    search: ScoredSearchConfig = ScoredSearchConfig()

    def useless(self) -> dict[str, str]:
        if self.search.score == "deepmad":
            return {}
        return {"search.max_effectiveness": "without --score deepmad; give that, or leave it out"}

    def check_precision(self) -> None:
        """Refuses int8, which asks for images; raises UsageError."""
        if self.latency.precision in SEARCHED:
            raise UsageError(
                f"--precision {self.latency.precision} finds ranges of activations on training "
                "images, and no score tells int8 from float; give --data, or leave it out."
            )

    def check_sampler(self) -> None:
        """Refuses a sampler that cannot do this search.

        Raises:
            UnknownNameError: It needs evaluated networks.
            UsageError: ``exact`` has no proof for the score or for what is minimised.
        """
        search, minimised = self.search, self.minimised()
        if search.sampler not in ("evolution", EXACT):
            raise UnknownNameError("sampler without --data", search.sampler, ("evolution", EXACT))
        if search.sampler != EXACT:
            return
        scores = f"{', '.join(ADDITIVE_SCORES[:-1])} or {ADDITIVE_SCORES[-1]}"
        if search.score not in ADDITIVE_SCORES:
            raise UsageError(
                f"--sampler exact proves optima of what adds up over a network's parts, and the "
                f"score {search.score} does not; give --score {scores}, or leave --sampler out."
            )
        if len(minimised) != 1 or MEMORY in minimised:
            raise UsageError(
                f"--sampler exact trades the score for one quantity that adds up, not for "
                f"{' and '.join(minimised)}; limit the others by --max, or leave --sampler out."
            )


class TrainedConfig(RunConfig):
    """A search with images, or a training alone.

    ``supernet`` names another run whose trained supernet is used instead of training one. With
    ``parent``, a trained network, there is none: ``adapt`` trains the parent on the images,
    ``inherit`` says how networks around it get their weights, and ``finetune`` trains the finalists
    with the parent as teacher. ``mean`` and ``std`` are those of the parent's images. ``parents``
    are tried beside it, and the best takes its place. A ``parent`` may be several networks, with
    commas between: routes through them are searched then, and ``space`` is that of the largest.
    ``architecture`` is the plain form of the one network to train instead of searching.
    ``fit`` says how images become squares, and with ``mirror: never`` training mirrors none.
    ``finetune`` takes optimiser, learning rate, batch size and weight decay from ``train`` unless
    it says otherwise. ``workers``, each with ``gpus_per_worker`` and ``loader_workers``
    data-loading processes, train the supernet; more than one on the Ray cluster at ``address``,
    with checkpoints in ``storage``.
    """

    data: Annotated[
        NameOrPath,
        Flag(
            "--data", "digits, an image folder, Parquet files, or a name that timm opens.", "SOURCE"
        ),
    ]
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    image_column: Annotated[
        str, Flag("--image-column", "Parquet column of images (default: image).")
    ] = "image"
    label_column: Annotated[
        str, Flag("--label-column", "Column of labels, of Parquet or labels.csv (default: label).")
    ] = "label"
    data_root: Annotated[
        LocalPath | None, Flag("--data-root", "Folder of a data set that timm opens.", "DIR")
    ] = None
    data_download: Annotated[bool, Flag("--data-download", "Let timm download it.")] = False
    fit: Annotated[
        Literal["crop", "squeeze", "pad"],
        Flag("--fit", "How images become squares (default crop: the ends are cut off)."),
    ] = "crop"
    mirror: Annotated[
        Literal["random", "never"],
        Flag("--mirror", "Whether training mirrors images (default random, but for digits)."),
    ] = "random"
    parent: Annotated[
        ParentNames | None,
        Flag(
            "--from",
            "Start from a trained network: a known design, a timm model, an export or a run; or "
            "from several of one family, which are stitched together.",
            "NAME|FOLDER[,…]",
        ),
    ] = None
    parent_weights: Annotated[
        ParentFiles | None,
        Flag("--from-weights", "Their weights, where timm shall not fetch them.", "FILE[,…]"),
    ] = None
    parents: Annotated[
        tuple[OtherParent, ...],
        Flag(
            "--parents",
            "Try others as the parent for a while, and keep the best: so many of the zoo's "
            "frontier, or one by its name; may be given several times.",
            "N|NAME[=FILE]",
        ),
    ] = ()
    resolution: Annotated[
        int | None,
        Flag(
            "--resolution",
            "Side of the images that the parent is trained at (default: its own, or twice that of "
            "smaller images).",
        ),
    ] = Field(default=None, ge=1, le=2048)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    supernet: Annotated[
        LocalPath | None, Flag("--supernet", "Use the supernet that this run trained.", "RUN")
    ] = None
    architecture: Annotated[
        dict[str, Any] | None,
        Flag("--architecture", "Train and export this one network instead.", "NAME|FILE"),
    ] = None
    loader_workers: Annotated[
        int, Flag("--loader-workers", "Data-loading processes (default 0).")
    ] = Field(default=0, ge=0)
    workers: Annotated[int, Flag("--workers", "Workers that train, by Ray (default 1).")] = Field(
        default=1, ge=1
    )
    gpus_per_worker: Annotated[
        float | None,
        Flag("--gpus-per-worker", "GPUs of each worker (default: 1 where the cluster has any)."),
    ] = Field(default=None, ge=0, allow_inf_nan=False)
    address: Address = None
    storage: Storage = None
    loggers: Annotated[
        tuple[Literal["tensorboard", "mlflow", "wandb"], ...],
        Flag("--logger", "Where the training's figures go, also to mlflow or wandb."),
    ] = ("tensorboard",)
    train: SupernetTraining = TrainConfig()
    search: TrainedSearchConfig = TrainedSearchConfig()
    inherit: InheritConfig = InheritConfig()
    adapt: Annotated[
        Training, Flag("--adapt-epochs", "Epochs of the parent, at most.", part="epochs")
    ] = TrainConfig(
        epochs=10, warmup_epochs=0.5, lr=1e-3, batch_size=64, layer_decay=0.9, patience=3
    )
    finetune: Annotated[
        Training, Flag("--finetune-epochs", "Epochs for each finalist.", part="epochs")
    ] = TrainConfig(epochs=10, warmup_epochs=1.0)

    @property
    def is_stitched(self) -> bool:
        """Whether several trained networks are stitched together."""
        return self.parent is not None and len(parts_of(self.parent)) > 1

    def image_options(self) -> dict[str, Any]:
        """Arguments of ``supernet.data.open_data`` besides the source and the resolution."""
        normalisation = None
        if self.mean is not None and self.std is not None:
            normalisation = (self.mean, self.std)
        return {
            **self.source_options(),
            "normalisation": normalisation,
            "validation_fraction": self.validation_fraction,
            "seed": self.seed,
            "fit": self.fit,
            "mirror": self.mirror == "random",
        }

    def source_options(self) -> dict[str, Any]:
        """Arguments of ``supernet.data.sources.open_source`` besides the source."""
        return {
            "image_column": self.image_column,
            "label_column": self.label_column,
            "root": self.data_root,
            "download": self.data_download,
        }

    @property
    def data_name(self) -> str:
        """Name of the images: a path's last part."""
        return Path(self.data).name

    def useless(self) -> dict[str, str]:
        return dict(ignored(self))


def kind_of(data: Mapping[str, Any]) -> type[TrainingFreeConfig] | type[TrainedConfig]:
    """The kind of configuration that plain data are: with images where ``data`` is there."""
    return TrainingFreeConfig if data.get("data") is None else TrainedConfig
