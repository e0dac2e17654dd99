"""Parts of configurations: types of values, conditions of latencies, what a search looks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from nas import flags
from nas.flags import Flag
from search.samplers.registry import DEFAULT as DEFAULT_SAMPLER
from search_space.errors import UsageError
from search_space.metrics import EVALUATION, LOSS, options
from search_space.precision import SEARCHED, check_offered
from supernet.training.config import TrainConfig

OBJECTIVES = options(EVALUATION)


def absolute(path: str) -> str:
    """A path that means the same from every folder; addresses such as ``s3://…`` stay."""
    return path if "://" in path else str(Path(path).resolve())


def absolute_if_there(name: str) -> str:
    """A name stays as it is, unless something lies at that path."""
    return absolute(name) if Path(name).exists() else name


def named_file(text: str) -> tuple[str, str | None]:
    """The parts of ``NAME=FILE``; the name of a folder may itself have such a sign."""
    if Path(text).exists() or "=" not in text:
        return text, None
    name, _, file = text.partition("=")
    return name, file


def parts_of(text: str) -> list[str]:
    """Names with commas between; the name of a file or folder may itself have commas."""
    return [text] if Path(text).exists() else [part.strip() for part in text.split(",")]


def parent_sources(names: str, files: str | None) -> list[tuple[str, str | None]]:
    """The networks of ``--from``, each with the file of its weights in ``--from-weights``.

    Raises:
        UsageError: There are more or less files than networks, or a name is empty.
    """
    found = parts_of(names)
    if not all(found):
        raise UsageError(f"--from {names!r} has an empty name; write it as in A,B without gaps.")
    given = [None] * len(found) if files is None else [part or None for part in parts_of(files)]
    if len(given) != len(found):
        raise UsageError(
            f"--from-weights {files} are {len(given)} files for {len(found)} networks of --from "
            f"{names}; give one of each, in the same order, and nothing between two commas for a "
            "network whose weights are fetched, or lie in its folder."
        )
    return list(zip(found, given, strict=True))


def _absolute_names(text: str) -> str:
    return ",".join(map(absolute_if_there, parts_of(text)))


def _absolute_files(text: str) -> str:
    return ",".join(absolute(part) if part else "" for part in parts_of(text))


def _other_parent(text: str) -> str:
    name, file = named_file(text)
    if not name or file == "":
        raise ValueError("it must be a number, NAME or NAME=FILE, as in resnet18=resnet18.pth")
    if file is None:
        return name if name.isdigit() else absolute_if_there(name)
    return f"{name}={absolute(file)}"


def _with_absolute_files(config: TrainConfig) -> TrainConfig:
    named = {"teacher": config.teacher, "teacher_weights": config.teacher_weights}
    files: dict[str, Any] = {k: absolute_if_there(v) for k, v in named.items() if v}
    return replace(config, **files)


def _as_text(value: object) -> object:
    """YAML reads 5 as a number; whether it needs a unit is for later."""
    return str(value) if isinstance(value, int | float) else value


Quantity = Annotated[str, BeforeValidator(_as_text)]
"""Text with a unit."""
LocalPath = Annotated[str, AfterValidator(absolute)]
NameOrPath = Annotated[str, AfterValidator(absolute_if_there)]
ParentNames = Annotated[str, AfterValidator(_absolute_names)]
"""A trained network, or several with commas between."""
ParentFiles = Annotated[str, AfterValidator(_absolute_files)]
OtherParent = Annotated[str, BeforeValidator(_as_text), AfterValidator(_other_parent)]
"""How many networks of the zoo, or one by name, perhaps with a file of its weights."""
Address = Annotated[
    str | None,
    Flag("--address", "Ray cluster to train on (default: start one on this machine).", "auto|HOST"),
]
Storage = Annotated[
    LocalPath | None,
    Flag(
        "--storage", "Where all workers find checkpoints (default: the run's folder).", "URL|FOLDER"
    ),
]
Limits = dict[str, Quantity]
Training = Annotated[TrainConfig, AfterValidator(_with_absolute_files)]
SupernetTraining = Annotated[
    Training,
    Flag("--epochs", "Epochs of supernet training.", part="epochs"),
    Flag("--train-batch-size", "Images per training step.", part="batch_size"),
    Flag("--lr", "Peak learning rate of supernet training.", part="lr"),
    Flag(
        "--strategy",
        "Which subnets a step trains (default multi_architecture).",
        "NAME",
        part="strategy",
    ),
    Flag("--shrinking", "When: none, delayed or progressive.", "NAME", part="shrinking"),
    Flag(
        "--recalibration-images",
        "Training images that give batch norms of candidates their averages (default 1024).",
        part="recalibration_images",
    ),
    Flag(
        "--class-weights",
        "balanced: the loss of rare classes counts more (default none).",
        "NAME",
        part="class_weights",
    ),
    Flag(
        "--sampling",
        "balanced: all classes are shown alike often (default shuffled).",
        "NAME",
        part="sampling",
    ),
    Flag("--teacher", "A timm model or an export to learn from.", "NAME|FOLDER", "teacher"),
    Flag(
        "--teacher-weights",
        "Its weights, where it is a timm model.",
        "FILE",
        part="teacher_weights",
    ),
]


class Configuration(BaseModel):
    """A part of a configuration: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain form, every default spelled out."""
        return self.model_dump(mode="json")


class LatencyConfig(Configuration):
    """Conditions that latencies hold under; None means what is usual for the device.

    Where winners can be measured here, nothing is left free by default.
    """

    batch_size: Annotated[
        int | None, Flag("--batch-size", "Images per forward pass (default 1).")
    ] = Field(default=None, ge=1, le=flags.BATCH_SIZE)
    precision: Annotated[
        str | None,
        Flag(
            "--precision",
            "Of the network: int8, mixed (each block int8 or fp32) or a float format (default: "
            "what is usual on the device).",
            "fp32|bf16|fp16|int8|mixed",
        ),
    ] = None
    runtime: Annotated[
        str | None,
        Flag(
            "--runtime",
            "eager, cudagraph, inductor, onnxruntime, openvino, tensorrt, or one that an installed "
            "package adds (default: the device's usual).",
            "NAME",
        ),
    ] = None
    threads: Annotated[int | None, Flag("--threads", "CPU threads (default: torch's).")] = Field(
        default=None, ge=1, le=flags.THREADS
    )
    interpolate: Annotated[
        bool, Flag("--interpolate", "Fill a measured table's gaps from its shapes.")
    ] = False
    margin: Annotated[
        float | None,
        Flag(
            "--margin",
            "Share of the latency budget to leave free, in place of what --confidence asks for.",
        ),
    ] = Field(default=None, ge=0, lt=1)
    confidence: Annotated[
        float,
        Flag(
            "--confidence",
            "Share of networks like those found that must meet the latency budget, where latencies "
            "cannot be checked here.",
        ),
    ] = Field(default=0.8, ge=0.5, le=0.95)

    def conditions(self) -> dict[str, Any]:
        """Options of ``predictors.devices.find_device``.

        Networks in int8 have float inputs and outputs, and a runtime that has kernels for them.
        """
        options = self.model_dump(exclude={"interpolate", "margin", "confidence"})
        if self.precision is not None:
            check_offered(self.precision)
        if self.precision in SEARCHED:
            options |= {"precision": "fp32", "runtime": self.runtime or "onnxruntime"}
        return options


_SAMPLER = Flag(
    "--sampler",
    "What proposes architectures: nsga2, optuna-TPE, random, …; without --data evolution or exact, "
    "which proves that nothing is better.",
    "NAME",
)
ADDITIVE_SCORES = ("deepmad", "entropy", "params", "macs")
"""Scores that add up over a network's parts, as far as exact search needs it."""


class TrainedSearchConfig(Configuration):
    """Length of a search with images, and its aims beside the latency.

    Of ``window`` candidates the results may be unknown when others are proposed; with the seed it
    decides which are proposed, whatever the number of workers. Few images do not tell networks
    apart by the objective ``accuracy``; ``balanced_accuracy``, the mean over classes of the share
    of their images that is right, is for unbalanced classes.
    """

    evaluations: Annotated[int, Flag("--evaluations", "Architectures to evaluate.")] = Field(
        default=400, ge=1
    )
    sampler: Annotated[str, _SAMPLER] = DEFAULT_SAMPLER
    population: Annotated[int, Flag("--population", "Candidates that the sampler begins with.")] = (
        Field(default=24, ge=4, le=flags.POPULATION)
    )
    window: int | None = Field(default=None, ge=1)
    optuna_storage: Annotated[
        LocalPath | None,
        Flag("--optuna-storage", "Database or journal of Optuna's study.", "URL|FILE"),
    ] = None
    warm_start: Annotated[
        tuple[LocalPath, ...],
        Flag(
            "--warm-start",
            "Evaluate the front of this run over the same space first; may be given several times.",
            "RUN",
        ),
    ] = ()
    halvings: Annotated[
        int,
        Flag(
            "--halvings",
            "Give up bad candidates early: all of a batch see a part of the validation images, the "
            "better half twice as many, and so on, this often (default 0).",
        ),
    ] = Field(default=0, ge=0, le=10)
    finalists: Annotated[int, Flag("--finalists", "Front members to fine-tune (default 3).")] = (
        Field(default=3, ge=1)
    )
    objective: Annotated[
        Literal[OBJECTIVES],  # type: ignore[valid-type]
        Flag("--objective", "What to search for, on the validation images (default loss)."),
    ] = LOSS


class InheritConfig(Configuration):
    """How networks around a trained parent get their weights, and how they are judged by a table.

    ``images`` training images are what weights are fitted to, and ``table_images`` others what the
    table of replaced blocks is measured on.
    """

    importance: Annotated[
        str,
        Flag("--importance", "What decides which units of a block are kept.", "NAME"),
    ] = "reconstruction"
    images: int = Field(default=1024, ge=16)
    table_images: int = Field(default=2048, ge=16)
    distil_steps: Annotated[
        int,
        Flag("--distil-steps", "Steps in which other blocks learn what the parent's do."),
    ] = Field(default=400, ge=1)
    refine_steps: Annotated[
        int,
        Flag(
            "--refine-steps",
            "Steps in which cut blocks, too, learn what the parent's do (default 0).",
        ),
    ] = Field(default=0, ge=0)
    joint_epochs: Annotated[
        int,
        Flag(
            "--joint-epochs",
            "Epochs in which all alternatives are trained together, the parent being their "
            "teacher, before they are judged (default 0).",
        ),
    ] = Field(default=0, ge=0)
    beyond: Annotated[
        bool, Flag("--beyond", "Search although the parent meets the budget as it is.")
    ] = False
    run: Annotated[
        LocalPath | None,
        Flag(
            "--inherit",
            "Use the parent, weights and quality table of this run: another budget or device then "
            "costs seconds.",
            "RUN",
        ),
    ] = None
    zoo_seconds: Annotated[
        float,
        Flag(
            "--zoo-seconds",
            "Time to find latencies of published networks, which the report shows beside the "
            "front (default 0: those that `nas zoo` has found before).",
        ),
    ] = Field(default=0.0, ge=0)


class ScoredSearchConfig(Configuration):
    """Aims of a search without images; ``exact`` proves fronts of scores that add up over parts."""

    score: Annotated[
        Literal["combined", "deepmad", "entropy", "params", "macs"],
        Flag("--score", "What to maximise without --data (default combined)."),
    ] = "combined"
    sampler: Annotated[str, _SAMPLER] = "evolution"
    max_effectiveness: Annotated[
        float, Flag("--max-effectiveness", "Largest ρ with --score deepmad (default 0.5).")
    ] = Field(default=0.5, gt=0, allow_inf_nan=False)
    rerank: Annotated[
        int, Flag("--rerank", "Order so many by ranks of score, κ and L^E, without --data.")
    ] = Field(default=0, ge=0)
