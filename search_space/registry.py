"""Registries: what an architecture may be made of, by name, and the rules of their parameters.

Only names and rules live in this package, so that an architecture can check itself without torch;
modules are registered under the same names in ``supernet.network``. Other packages add to a
registry by an entry point of the name in its group, whose module is imported when the name is first
asked for, and registers rules and module class:

    [project.entry-points."nas.mixers"]
    my_mixer = "my_package.my_mixer"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from search_space.errors import UnknownNameError, UsageError

ParamValue = int | bool | float | str
FLOAT, INT8 = "float", "int8"
PRECISIONS = (FLOAT, INT8)
POSITIVE = 5e-324
"""The least positive number, as the minimum of those that must be above 0."""


@dataclass(frozen=True)
class Param:
    """Rule for one parameter, of the type of its default: a flag, an integer, a number or a name.

    Args:
        default: Value of those who give none.
        minimum: Of integers and numbers.
        maximum: Likewise, None for no limit.
        odd: Whether integers must be odd.
        choices: Names that are allowed.
        later: Whether the plain form leaves the parameter out where it has its default, as is
            needed of one that comes later than files which do not name it.
    """

    default: ParamValue
    minimum: float = 1
    maximum: float | None = None
    odd: bool = False
    choices: tuple[str, ...] = ()
    later: bool = False

    def problem(self, value: object) -> str | None:
        """Says why ``value`` is not allowed, or returns None."""
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else "must be true or false"
        if isinstance(self.default, str):
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}"
        if isinstance(self.default, float):
            if not is_number(value) or value < self.minimum:  # type: ignore[operator]
                rule = "a positive number" if self.minimum == POSITIVE else "a number"
                least = f" of at least {self.minimum:g}" if self.minimum != POSITIVE else ""
                return f"must be {rule}{least}"
        elif not is_int(value):
            return "must be an integer"
        assert isinstance(value, (int, float))
        if value < self.minimum:
            return f"must be at least {self.minimum:g}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum:g}"
        if self.odd and value % 2 == 0:
            return "must be odd"
        return None

    def normal(self, value: ParamValue) -> ParamValue:
        """Returns ``value`` so that equal ones have equal JSON: 2 and 2.0, 0.0 and −0.0."""
        return float(value) + 0.0 if isinstance(self.default, float) else value


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


class Named(Protocol):
    """Whatever a registry holds."""

    @property
    def name(self) -> str: ...


S = TypeVar("S", bound=Named)


class Registry(Generic[S]):
    """Rules by name: ours, and those of other packages.

    Args:
        noun: What the rules are of, for messages.
        group: Entry points by which other packages add some.
    """

    def __init__(self, noun: str, group: str) -> None:
        self.noun, self.group = noun, group
        self._rules: dict[str, S] = {}

    def add(self, rules: S) -> S:
        """Makes a name known, which must be new; raises ValueError."""
        if rules.name in self._rules:
            raise ValueError(
                f"a {self.noun} named {rules.name!r} is registered already; give another name, or, "
                f"where its rules stand in search_space, register the class by its name alone"
            )
        self._rules[rules.name] = rules
        return rules

    def names(self) -> list[str]:
        """Returns all known names, sorted: ours, and those of other packages."""
        return sorted({*self._rules, *self._points()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> S:
        """Returns the rules of ``name``.

        Raises:
            UnknownNameError: There are none; names the nearest.
            UsageError: Another package's cannot be imported, or registers no such name.
        """
        if name not in self._rules and name in self._points():
            self._import(self._points()[name])
        if name not in self._rules:
            further = "Another package's is known once that package is installed here."
            raise UnknownNameError(self.noun, str(name), self.names(), further)
        return self._rules[name]

    def files(self) -> list[Path]:
        """Lists the source files of what other packages add, in the order of names."""
        result = []
        for _, point in sorted(self._points().items()):
            with suppress(ImportError):  # of no use, and so of no matter
                spec = find_spec(point.module)
                if spec is not None and spec.origin is not None:
                    result.append(Path(spec.origin))
        return result

    def _points(self) -> Mapping[str, EntryPoint]:
        return points(self.group)

    def _import(self, point: EntryPoint) -> None:
        package = point.dist.name if point.dist is not None else point.module
        try:
            point.load()
            if point.name in self._rules:
                return
            problem = f"{point.value} registers no {self.noun} of this name"
        except Exception as error:  # whatever the import of a foreign module raises
            problem = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{self.noun} {point.name!r} of the package {package!r} cannot be used ({problem}); "
            f"correct it and install the package again, or remove it: pip uninstall {package}"
        )


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Function(Generic[F]):
    """A function by its name."""

    name: str
    call: F


class Functions(Registry[Function[F]]):
    """Functions by name, of which one is registered by a decorator.

    Example:
        >>> ways: Functions[Callable[[float], float]] = Functions("way to round", "nas.ways")
        >>> ways.register("down")(math.floor)
    """

    def register(self, name: str) -> Callable[[F], F]:
        """Registers a function under a name, which must be new; it is a decorator."""

        def decorate(function: F) -> F:
            self.add(Function(name, function))
            return function

        return decorate


@cache
def points(group: str) -> dict[str, EntryPoint]:
    """Returns the entry points of a group by name."""
    return {point.name: point for point in entry_points(group=group)}
