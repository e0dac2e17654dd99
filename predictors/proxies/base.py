"""One interface for all training-free proxies: a network goes in, a number or a reason comes out.

A proxy is a class under ``@register_proxy``; ``proxy(name)`` finds it. Closed-form proxies read a
network's structure, the others build it, some times over, with fresh weights.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import timm
import torch
from torch import Tensor, nn

from predictors.proxies.structure import Structure, trace
from search_space import Architecture
from search_space.errors import NasError, UnknownNameError
from supernet import build


class UndefinedProxyError(NasError):
    """Raised where a proxy has no value for a network; the message says why."""


@dataclass(frozen=True)
class Score:
    """A proxy's value: the mean over repeats and their sample standard deviation.

    ``spread`` is None where nothing is random. Where ``value`` is None, ``reason`` says why.
    """

    value: float | None
    spread: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ScoreSettings:
    """Settings of proxies that run the network.

    Repeat i takes weights and inputs of ``seed + i``, and ``batch_size`` images where a proxy needs
    several. ``image_size`` is the side of the square images; None means the network's own.
    """

    seed: int = 0
    repeats: int = 5
    batch_size: int = 16
    device: str = "cpu"
    image_size: int | None = None


DEFAULTS = ScoreSettings()


@dataclass(frozen=True, eq=False)
class Network:
    """A network that proxies may build as often as they need.

    ``make`` makes a new module with freshly drawn weights, for square images of side
    ``image_size``.

    Example:
        >>> network = Network.of_architecture(known("swin_t"))
        >>> proxy("combined").score(network).value
    """

    name: str
    image_size: int
    make: Callable[[], nn.Module]

    @classmethod
    def of_architecture(
        cls, architecture: Architecture, num_classes: int = 1000, name: str = ""
    ) -> Network:
        """Wraps an architecture; ``name`` is its digest by default."""
        return cls(
            name or architecture.digest,
            architecture.resolution,
            lambda: build(architecture, num_classes),
        )

    @classmethod
    def of_timm(cls, name: str, image_size: int | None = None) -> Network:
        """Wraps a model of timm with freshly drawn weights; ``image_size`` None means its own.

        Raises:
            UnknownNameError: timm has no such model.
        """
        base = name.partition(".")[0]
        if not timm.is_model(base):
            raise UnknownNameError("timm model", name, timm.list_models())
        options: dict[str, Any] = {"pretrained": False, "num_classes": 1000}

        def make() -> nn.Module:
            return timm.create_model(base, **options)

        with torch.device("meta"):
            config: Any = make().pretrained_cfg
        own_size = int(config["input_size"][-1])
        if image_size is not None and image_size != own_size and config.get("fixed_input_size"):
            options["img_size"] = image_size  # such models are built for one size
        return cls(name, image_size or own_size, make)

    def build(self, seed: int, device: str = "cpu") -> nn.Module:
        """Builds the module with weights of ``seed``, in eval mode; global random state stays."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.make()
        return module.eval().to(device)

    def at(self, image_size: int | None) -> Network:
        """Returns the same network for images of another side."""
        if image_size is None or image_size == self.image_size:
            return self
        return Network(self.name, image_size, self.make)

    @cached_property
    def structure(self) -> Structure:
        """Layers, longest path and counts; nothing is computed and no weights are made."""
        with torch.device("meta"):
            module = self.make().eval()
        return trace(module, (1, 3, self.image_size, self.image_size))


class Proxy(ABC):
    """A number that promises something about accuracy without training.

    Class attributes:
        name: Name on the command line and in reports.
        summary: What it is, with its source.
        applies: What it does on layer norms, attention and gates.
        larger_is_better: Whether accuracy is expected to grow with it.
        closed_form: Whether structure alone decides it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    applies: ClassVar[str]
    larger_is_better: ClassVar[bool] = True
    closed_form: ClassVar[bool] = False

    @abstractmethod
    def score(self, network: Network, settings: ScoreSettings = DEFAULTS) -> Score:
        """Computes the value of ``network``; it is never NaN."""


class ClosedFormProxy(Proxy):
    """A proxy of structure alone; nothing about it is random."""

    closed_form = True

    @abstractmethod
    def value(self, structure: Structure) -> float:
        """Computes the number.

        Raises:
            UndefinedProxyError: There is none for this structure.
        """

    def score(self, network: Network, settings: ScoreSettings = DEFAULTS) -> Score:
        return _score(lambda: [self.value(network.at(settings.image_size).structure)])


class SampledProxy(Proxy):
    """A proxy of freshly drawn weights and inputs, averaged over repeats."""

    @abstractmethod
    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        """Computes the value for one draw of weights and images, of a network in eval mode.

        Images are drawn from N(0, 1), shape (batch, 3, side, side); all that is drawn besides comes
        from ``generator``, on the CPU.

        Raises:
            UndefinedProxyError: There is none for this network.
        """

    def score(self, network: Network, settings: ScoreSettings = DEFAULTS) -> Score:
        network = network.at(settings.image_size)
        side = network.image_size

        def values() -> list[float]:
            result = []
            for repeat in range(settings.repeats):
                generator = torch.Generator().manual_seed(settings.seed + repeat)
                images = torch.randn(settings.batch_size, 3, side, side, generator=generator)
                module = network.build(settings.seed + repeat, settings.device)
                result.append(self.sample(module, images.to(settings.device), generator))
            return result

        return _score(values)


def _score(values: Callable[[], Sequence[float]]) -> Score:
    """Mean and spread of values, or why there are none."""
    try:
        numbers = values()
    except UndefinedProxyError as error:
        return Score(None, reason=str(error))
    if not all(map(math.isfinite, numbers)):
        return Score(None, reason="a repeat gave a number that is not finite")
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Score(statistics.fmean(numbers), spread)


_PROXIES: dict[str, type[Proxy]] = {}


def register_proxy(cls: type[Proxy]) -> type[Proxy]:
    """Registers a proxy under its name, which must be new."""
    if cls.name in _PROXIES:
        raise ValueError(f"a proxy named {cls.name!r} is registered already")
    _PROXIES[cls.name] = cls
    return cls


def proxy_names() -> list[str]:
    """Lists the names of all proxies, closed forms first."""
    return sorted(_PROXIES, key=lambda name: (not _PROXIES[name].closed_form, name))


def proxy(name: str) -> Proxy:
    """Makes the proxy ``name``.

    Raises:
        UnknownNameError: There is none; the message names the nearest.
    """
    if name not in _PROXIES:
        raise UnknownNameError("proxy", name, _PROXIES)
    return _PROXIES[name]()
