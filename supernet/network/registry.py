"""The modules of mixers, blocks, stems, transitions and heads by name.

Ours register here, and their rules in ``search_space``; those of another package register both at
once. Every test, table and count then covers them.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Generic, TypeVar

from search_space.blocks import BLOCKS, BlockKind
from search_space.errors import UnknownNameError
from search_space.macro import HEADS, STEMS, TRANSITIONS, Part
from search_space.mixers import MIXERS, MixerSpec
from search_space.registry import Named, Registry
from supernet.network.axes import StaticModule

S = TypeVar("S", bound=Named)
C = TypeVar("C", bound=type[StaticModule])


class Modules(Generic[S]):
    """Module classes by the names of a registry of rules.

    Args:
        rules: The registry.
        arguments: Names that a class must be made with, of its rules; unchecked if None.
    """

    def __init__(
        self, rules: Registry[S], arguments: Callable[[S], tuple[str, ...]] | None = None
    ) -> None:
        self.rules, self.arguments = rules, arguments
        self._classes: dict[str, type[StaticModule]] = {}

    def __call__(self, rules: str | S) -> Callable[[C], C]:
        """Makes a module class that of a name, as a class decorator.

        Args:
            rules: The rules of a new name, or a name whose rules are registered.

        Raises:
            TypeError: The class cannot be made with the arguments that the rules name.
            ValueError: The name is taken.
        """

        def register(cls: C) -> C:
            known = self.rules[rules] if isinstance(rules, str) else rules
            if self.arguments is not None:
                wanted = self.arguments(known)
                try:
                    signature(cls).bind(**dict.fromkeys(wanted))
                except TypeError as error:
                    raise TypeError(
                        f"{cls.__name__}.__init__ must take {', '.join(wanted)}: {error}"
                    ) from None
            if known is rules:
                self.rules.add(known)
            name = known.name
            if name in self._classes:
                raise ValueError(f"a {self.rules.noun} named {name!r} is registered already")
            self._classes[name] = cls
            return cls

        return register

    def __getitem__(self, name: str) -> type[StaticModule]:
        """Returns the module class of a name; raises as the registry of the rules does."""
        _ = self.rules[name]  # imports the package that adds it
        if name not in self._classes:
            raise UnknownNameError(f"module of a {self.rules.noun}", name, self._classes)
        return self._classes[name]

    def names(self) -> list[str]:
        """Returns the names that have a module, sorted."""
        return sorted(self._classes)


def _of_mixer(rules: MixerSpec) -> tuple[str, ...]:
    return "dim", *rules.params, *(("shifted",) if rules.alternates else ())


register_mixer: Modules[MixerSpec] = Modules(MIXERS, _of_mixer)
register_block: Modules[BlockKind] = Modules(BLOCKS)
register_stem: Modules[Part] = Modules(STEMS)
register_transition: Modules[Part] = Modules(TRANSITIONS)
register_head: Modules[Part] = Modules(HEADS)
