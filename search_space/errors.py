"""Errors that a user can cause.

Everything that wrong input, a wrong file or an impossible wish can raise derives from
``NasError``; the command line prints its message and nothing else. A message gives the
value, the rule and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class NasError(Exception):
    """Root of every error that a user can cause."""

    def located(self, where: object) -> Self:
        """The same error with the file or field that it was found in before its message."""
        self.args = (f"{where}: {self}",)
        return self


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class InvalidArchitectureError(NasError, ValueError):
    """An architecture breaks a rule of its own, or lies outside the space it is used with."""


class InvalidSpaceError(NasError, ValueError):
    """A search space definition breaks a rule."""


class UnknownNameError(NasError, ValueError):
    """A name (device, space, mixer, preset …) that nothing is registered under.

    Args:
        kind: Of what the name is.
        name: The name.
        known: All names of this kind.
        further: A sentence on how others become known.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], further: str = "") -> None:
        names = sorted(known)
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        text = f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."
        super().__init__(f"{text} {further}".rstrip())


class InvalidQuantityError(NasError, ValueError):
    """A quantity without a unit, with the wrong unit, or not a number."""


class UsageError(NasError, ValueError):
    """Options or a configuration with a missing, unknown or impossible entry."""


class DataError(NasError):
    """Images or labels that cannot be used."""


class RunError(NasError):
    """A run directory that cannot be used as asked."""


class InfeasibleError(NasError):
    """No architecture meets the constraints; the message names the closest."""


class CorruptFileError(NasError):
    """A file that was cut short, altered, or is not what its name says."""


class ExportError(NasError):
    """An exported network does not compute what the subnet computes."""
