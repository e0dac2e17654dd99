"""Names and parameter rules of token mixers.

Only the names and rules of our mixers live here, so that an architecture can check itself without
torch; their modules are in ``supernet/network/mixers``, one file each, under the same names. Other
packages add mixers by an entry point of the mixer's name, whose module is imported when a mixer of
that name is first asked for, and registers rules and module class:

    [project.entry-points."nas.mixers"]
    my_mixer = "my_package.my_mixer"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from search_space.errors import UnknownNameError, UsageError

GROUP = "nas.mixers"

ParamValue = int | bool


@dataclass(frozen=True)
class Param:
    """Rule for one parameter: an integer within bounds, odd where ``odd`` says so, or a flag."""

    default: ParamValue
    minimum: int = 1
    maximum: int | None = None
    odd: bool = False

    def problem(self, value: object) -> str | None:
        """Says why ``value`` is not allowed, or returns None."""
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else "must be true or false"
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be an integer"
        if value < self.minimum:
            return f"must be at least {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum}"
        if self.odd and value % 2 == 0:
            return "must be odd"
        return None


@dataclass(frozen=True)
class MixerSpec:
    """Name, parameters and width rule of a mixer.

    Args:
        name: Of the mixer.
        params: Rules of its parameters by name.
        width_multiple: Of parameters, the number that a block's width must be a multiple of.
        alternates: Whether every second block of a stage is built with ``shifted=True``.
    """

    name: str
    params: Mapping[str, Param]
    width_multiple: Callable[[Mapping[str, ParamValue]], int] = field(default=lambda params: 1)
    alternates: bool = False


_SPECS: dict[str, MixerSpec] = {}


def register_mixer_spec(spec: MixerSpec) -> MixerSpec:
    """Makes a mixer known to architectures and spaces; its name must be new."""
    if spec.name in _SPECS:
        raise ValueError(
            f"a mixer named {spec.name!r} is registered already; give another name, or, where its "
            f"rules stand in search_space/mixers.py, write @register_mixer({spec.name!r})"
        )
    _SPECS[spec.name] = spec
    return spec


@cache
def mixer_points() -> dict[str, EntryPoint]:
    """Returns the entry points of mixers that other packages add, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def mixer_names() -> list[str]:
    """Returns the names of all known mixers, sorted: ours, and those of other packages."""
    return sorted({*_SPECS, *mixer_points()})


def mixer_spec(name: str) -> MixerSpec:
    """Returns the rules of mixer ``name``.

    Raises:
        UnknownNameError: There is none; names the nearest.
        UsageError: Another package's cannot be imported, or registers no such mixer.
    """
    if name not in _SPECS and name in mixer_points():
        _import(mixer_points()[name])
    if name not in _SPECS:
        raise UnknownNameError(
            "mixer",
            name,
            mixer_names(),
            "Another package's is known once that package is installed in this environment.",
        )
    return _SPECS[name]


def mixer_files() -> list[Path]:
    """Lists the source files of the mixers that other packages add, in the order of names."""
    result = []
    for _, point in sorted(mixer_points().items()):
        with suppress(ImportError):  # of no use, and so of no matter
            spec = find_spec(point.module)
            if spec is not None and spec.origin is not None:
                result.append(Path(spec.origin))
    return result


def _import(point: EntryPoint) -> None:
    package = point.dist.name if point.dist is not None else point.module
    try:
        point.load()
        if point.name in _SPECS:
            return
        problem = f"{point.value} registers no mixer of this name"
    except Exception as error:  # whatever the import of a foreign module raises
        problem = f"{type(error).__name__}: {error}"
    raise UsageError(
        f"mixer {point.name!r} of the package {package!r} cannot be used ({problem}); correct "
        f"it and install the package again, or remove it: pip uninstall {package}"
    )


register_mixer_spec(
    MixerSpec(
        "window_attention",
        {"window": Param(7), "head_dim": Param(32)},
        width_multiple=lambda params: int(params["head_dim"]),
        alternates=True,
    )
)
register_mixer_spec(
    MixerSpec(
        "focal_modulation",
        {"levels": Param(2), "window": Param(3, odd=True), "post_norm": Param(False)},
    )
)
register_mixer_spec(
    MixerSpec(
        "gnconv",
        {"order": Param(3, maximum=8), "kernel": Param(7, odd=True)},
        width_multiple=lambda params: 2 ** (int(params["order"]) - 1),
    )
)
register_mixer_spec(MixerSpec("pooling", {"kernel": Param(3, odd=True)}))
register_mixer_spec(MixerSpec("depthwise_conv", {"kernel": Param(7, odd=True)}))
