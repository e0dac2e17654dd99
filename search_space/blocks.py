"""Blocks: registered kinds, and a block as a value of a kind and its parameters.

The rules of our kinds are in ``block_kinds``, which the package imports first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from search_space.errors import InvalidArchitectureError, NasError, UnknownNameError
from search_space.mixers import MIXERS
from search_space.registry import FLOAT, PRECISIONS, Param, ParamValue, Registry

if TYPE_CHECKING:
    from search_space.macro import Macro

ACTIVATIONS = (
    *("gelu", "relu", "relu6", "silu", "hard_swish", "star_relu", "squared_relu", "gelu_tanh"),
)
OptionValue = int | float | bool | str | tuple[tuple[str, Any], ...]
Params = Mapping[str, ParamValue]


@dataclass(frozen=True)
class Place:
    """Where a block sits: what its module depends on besides its own parameters.

    Attributes:
        macro: Macro style of the network.
        width_in: Channels of its input.
        width: Channels of its output.
        stride: Of its stage if it enters it, else 1.
        position: Of the block in its stage, from 0.
    """

    macro: Macro
    width_in: int
    width: int
    stride: int
    position: int


SKIP = "skip"
PROJECTION = "projection"
PRECISION = "precision"


@dataclass(frozen=True)
class BlockKind:
    """Name, parameters and module options of a kind of block.

    Args:
        name: Of the kind.
        params: Rules of its parameters by name; ``precision`` is added to them.
        options: Keyword options of its module, besides ``dim``, of its place and its own
            parameters.
        strided: Whether its module takes ``out_dim`` and ``stride``, so that it can enter a stage.
        has_mixer: Whether it holds a mixer, as its parameter ``mixer``; its own parameters then
            have names that no mixer's have.
        ratios: Parameters that scale a width inside the block; what is left of larger ones when
            they get smaller are the first channels.
    """

    name: str
    params: Mapping[str, Param]
    options: Callable[[Place, Params], dict[str, OptionValue]] = field(
        default=lambda place, params: dict(params)
    )
    strided: bool = False
    has_mixer: bool = False
    ratios: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name != SKIP:
            common = {PRECISION: Param(FLOAT, choices=PRECISIONS, later=True)}
            object.__setattr__(self, "params", {**self.params, **common})


BLOCKS: Registry[BlockKind] = Registry("block", "nas.blocks")


def _checked(noun: str, rules: Mapping[str, Param], params: Params) -> dict[str, ParamValue]:
    """All parameters by name in the order of names, those left out with their defaults."""
    for key, value in params.items():
        if key not in rules:
            raise UnknownNameError(f"parameter of {noun}", str(key), rules)
        problem = rules[key].problem(value)
        if problem is not None:
            raise InvalidArchitectureError(f"{noun}: {key}={value!r} {problem}.")
    values = {key: params.get(key, rule.default) for key, rule in rules.items()}
    return {key: rules[key].normal(value) for key, value in sorted(values.items())}


def _plain(rules: Mapping[str, Param], params: Params) -> dict[str, ParamValue]:
    """Parameters as files hold them: without those that came later and have their default."""
    return {
        key: value
        for key, value in params.items()
        if not (rules[key].later and value == rules[key].default)
    }


@dataclass(frozen=True)
class Mixer:
    """A token mixer and its own parameters, in the order of their names.

    Raises:
        UnknownNameError: There is no such mixer or parameter.
        InvalidArchitectureError: A value breaks its rule.
    """

    name: str
    params: tuple[tuple[str, ParamValue], ...]

    @classmethod
    def of(cls, name: str, /, **params: ParamValue) -> Self:
        """Makes a mixer with ``params``; those left out take the mixer's defaults."""
        return cls(name, tuple(params.items()))

    def __post_init__(self) -> None:
        params = _checked(self.name, MIXERS[self.name].params, dict(self.params))
        object.__setattr__(self, "params", tuple(params.items()))

    def __getitem__(self, key: str) -> ParamValue:
        return dict(self.params)[key]

    @property
    def traits(self) -> dict[str, ParamValue]:
        """Parameters as files hold them."""
        return _plain(MIXERS[self.name].params, dict(self.params))

    @property
    def width_multiple(self) -> int:
        """The number that the width of a block with this mixer must be a multiple of."""
        return MIXERS[self.name].width_multiple(dict(self.params))


@dataclass(frozen=True)
class Block:
    """A block: its kind, the kind's parameters in the order of their names, and its mixer if any.

    Example:
        A block of each sort::

            metaformer(Mixer.of("pooling"), mlp_ratio=2.0)
            Block.of("inverted_residual", expansion=4.0, kernel=5)

    Raises:
        UnknownNameError: There is no such kind or parameter.
        InvalidArchitectureError: A value breaks its rule, or the mixer is missing or too many.
    """

    kind: str
    params: tuple[tuple[str, ParamValue], ...]
    mixer: Mixer | None = None

    @classmethod
    def of(cls, kind: str, mixer: Mixer | None = None, /, **params: ParamValue) -> Self:
        """Makes a block with ``params``; those left out take the kind's defaults."""
        return cls(kind, tuple(params.items()), mixer)

    def __post_init__(self) -> None:
        kind = BLOCKS[self.kind]
        params = _checked(self.kind, kind.params, dict(self.params))
        object.__setattr__(self, "params", tuple(params.items()))
        if kind.has_mixer != (self.mixer is not None):
            rule = "needs a mixer" if kind.has_mixer else "holds no mixer"
            raise InvalidArchitectureError(f"a block of kind {self.kind} {rule}.")

    def __getitem__(self, key: str) -> ParamValue:
        return dict(self.params)[key]

    @property
    def skipped(self) -> bool:
        """Whether there is no module at the block's position."""
        return self.kind == SKIP

    @property
    def label(self) -> str:
        """The name that people know its sort by, as ``block_label`` makes it."""
        return block_label(self.kind, self.mixer.name if self.mixer else None)

    @property
    def width_multiple(self) -> int:
        """The number that the block's width must be a multiple of."""
        return 1 if self.mixer is None else self.mixer.width_multiple

    @property
    def values(self) -> dict[str, ParamValue]:
        """All parameters of mixer and block, the mixer's first."""
        return {**dict(self.mixer.params if self.mixer else ()), **dict(self.params)}

    @property
    def traits(self) -> dict[str, ParamValue]:
        """Parameters of mixer and block as files hold them, the mixer's first."""
        own = _plain(BLOCKS[self.kind].params, dict(self.params))
        return own if self.mixer is None else {**self.mixer.traits, **own}

    @property
    def without_ratios(self) -> Self:
        """The block of the same sort whose inner widths are the kind's defaults."""
        ratios = BLOCKS[self.kind].ratios
        kept = {key: value for key, value in self.params if key not in ratios}
        return type(self).of(self.kind, self.mixer, **kept)

    @property
    def ratios(self) -> tuple[ParamValue, ...]:
        """Values of the parameters that scale inner widths, in the order of the kind."""
        return tuple(self[key] for key in BLOCKS[self.kind].ratios)

    def replaced(self, **params: ParamValue) -> Self:
        """Makes a copy with other values of some of the kind's parameters."""
        return type(self).of(self.kind, self.mixer, **{**dict(self.params), **params})

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain form: mixer or kind and all parameters side by side."""
        if self.mixer is None:
            return {"block": self.kind, **self.traits}
        kind = {} if self.kind == "metaformer" else {"block": self.kind}
        return {**kind, "mixer": self.mixer.name, **self.traits}

    @classmethod
    def from_dict(cls, data: object, where: str = "block") -> Self:
        """Makes a block of its plain form; a mixer without a kind makes a MetaFormer block."""
        if not isinstance(data, Mapping):
            raise InvalidArchitectureError(f"{where}: expected a mapping, got {data!r:.60}.")
        try:
            kind = BLOCKS[str(data.get("block", "metaformer"))]
            mixer = None
            known = ["block", *kind.params]
            if kind.has_mixer:
                if "mixer" not in data:
                    raise InvalidArchitectureError("'mixer' is missing.")
                name = str(data["mixer"])
                known += ["mixer", *MIXERS[name].params]
                values = {key: data[key] for key in MIXERS[name].params if key in data}
                mixer = Mixer.of(name, **values)
            for key in data:
                if key not in known:
                    noun = (
                        f"key of a block with mixer {mixer.name}"
                        if mixer
                        else f"key of {kind.name}"
                    )
                    raise UnknownNameError(noun, str(key), known)
            return cls.of(
                kind.name, mixer, **{key: data[key] for key in kind.params if key in data}
            )
        except NasError as error:
            raise error.located(where) from None


def block_label(kind: str, mixer: str | None) -> str:
    """Returns the name of a sort of blocks: of the mixer in MetaFormer blocks, else of the kind.

    Another kind that holds a mixer is named with it, as in ``moat(attention)``.
    """
    if mixer is None:
        return kind
    return mixer if kind == "metaformer" else f"{kind}({mixer})"


def metaformer(
    mixer: Mixer,
    mlp_ratio: float = 4.0,
    shortcut_scale: bool = False,
    res_post_norm: bool = False,
    position: bool = False,
) -> Block:
    """Makes a MetaFormer block: a mixer followed by an MLP, ``mlp_ratio`` times as wide inside.

    With ``shortcut_scale`` each channel of the shortcuts has a learned scale, which starts at 1.
    With ``res_post_norm`` norms end the residual branches instead of beginning them (SwinV2).
    With ``position`` a depthwise convolution comes first, which tells positions apart (UniFormer).
    """
    return Block.of(
        "metaformer",
        mixer,
        mlp_ratio=mlp_ratio,
        shortcut_scale=shortcut_scale,
        res_post_norm=res_post_norm,
        position=position,
    )


def hidden_width(width: int, ratio: ParamValue) -> int:
    """Returns ``ratio`` times ``width`` as a number of channels, at least 1."""
    return max(1, round(width * float(ratio)))
