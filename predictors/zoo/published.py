"""Published networks of timm: ``imagenet.csv`` with their accuracy, which names its source.

Where several pretrained weights of one network were evaluated on images of one size, the file has
the most accurate: latencies do not depend on weights. Multiply-adds are those of the form that
runs (``networks.deployed``), counted by ``operators.trace``.
"""

from __future__ import annotations

import csv
import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from search_space import Architecture
from search_space.errors import UsageError
from search_space.known import known
from supernet.network.timm_models import PUBLISHED

_DESIGNS = {theirs: ours for ours, theirs in PUBLISHED.items()}


@dataclass(frozen=True)
class PublishedModel:
    """One network with pretrained weights, and what they reach on images of one size.

    Args:
        name: timm's name of the network.
        tag: timm's name of the weights; ``timm.create_model(f"{name}.{tag}")`` loads them.
        image_size: Side of the images that it was evaluated on.
        top1: Top-1 accuracy on the validation images of ImageNet-1k, percent.
        num_params: Number of parameters, of 1000 classes.
        macs: Multiply-adds for one image of ``image_size``.
    """

    name: str
    tag: str
    image_size: int
    top1: float
    num_params: int
    macs: int

    @property
    def full_name(self) -> str:
        """Name of network and weights, as ``timm.create_model`` takes it."""
        return f"{self.name}.{self.tag}"

    @property
    def key(self) -> str:
        """Names what runs, whatever its weights."""
        return f"{self.name}@{self.image_size}"

    @property
    def design(self) -> str | None:
        """The known design that it is; None where it is no point of a space of ours."""
        return _DESIGNS.get(self.name)

    @property
    def architecture(self) -> Architecture | None:
        """The known design for images of ``image_size``, or None."""
        return (
            None if self.design is None else replace(known(self.design), resolution=self.image_size)
        )


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """Reads all published networks, the most accurate first."""
    text = (resources.files("predictors.zoo") / "imagenet.csv").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    result = []
    for row in csv.DictReader(lines):
        name, _, tag = row["model"].partition(".")
        params, macs = (round(float(row[column]) * 1e6) for column in ("params_m", "macs_m"))
        size, top1 = int(row["image_size"]), float(row["top1"])
        result.append(PublishedModel(name, tag, size, top1, params, macs))
    return tuple(result)


@cache
def source() -> str:
    """Returns a line that says where the accuracies come from."""
    text = (resources.files("predictors.zoo") / "imagenet.csv").read_text("utf-8")
    return text.splitlines()[0].removeprefix("#").strip()


def named(pattern: str, models: Iterable[PublishedModel]) -> list[PublishedModel]:
    """Selects the models whose name, with or without that of the weights, ``pattern`` matches.

    Args:
        pattern: As of files: ``resnet*``, ``*.fb_in1k``; several are separated by commas.
        models: What is selected from, in its order.

    Raises:
        UsageError: A pattern matches none; names the nearest.
    """
    models = list(models)
    wanted: set[str] = set()
    for part in filter(None, map(str.strip, pattern.split(","))):
        found = {
            model.full_name
            for model in models
            if any(fnmatch.fnmatchcase(name, part) for name in (model.name, model.full_name))
        }
        if not found:
            plain = part.strip("*").partition(".")[0]
            names = sorted({model.name for model in models})
            near = difflib.get_close_matches(plain, names, n=5, cutoff=0.0)
            raise UsageError(
                f"no model of the zoo is called {part!r}; nearest are {', '.join(near)}. Patterns "
                "are those of files, as in 'resnet*', and several stand between commas."
            )
        wanted |= found
    return [model for model in models if model.full_name in wanted]
