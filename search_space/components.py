"""The straight chain of modules that an architecture is: stem, transitions, blocks, head.

One list serves the static network, the weight-sharing supernet, the counts and the latency
table, so that all of them speak of the same modules. A ``ModuleSpec`` holds all that a
module's weights and computation depend on besides its input size, and hashes as a table key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from search_space.architecture import Architecture
from search_space.blocks import BLOCKS, PRECISION, Block, OptionValue, Place, block_label
from search_space.macro import BLOCK_TRANSITION, HEADS, LINEAR, STEMS, TRANSITIONS, Macro
from search_space.mixers import MIXERS
from search_space.registry import FLOAT


@dataclass(frozen=True)
class ModuleSpec:
    """Kind (``stem``, ``downsample``, ``block``, ``head``) and keyword options of a module.

    The option ``style`` is the registered name of the module among those of its kind. The option
    ``precision`` is there where the module computes in int8.
    """

    kind: str
    options: tuple[tuple[str, OptionValue], ...]

    @classmethod
    def of(cls, kind: str, **options: OptionValue) -> ModuleSpec:
        return cls(kind, tuple(sorted(options.items())))

    def as_dict(self) -> dict[str, Any]:
        return dict(self.options)

    @property
    def quantised(self) -> bool:
        """Whether the module computes in int8."""
        return any(name == PRECISION for name, _ in self.options)

    @property
    def in_float(self) -> Self:
        """The spec of the same module in float."""
        if not self.quantised:
            return self
        return replace(self, options=tuple(o for o in self.options if o[0] != PRECISION))

    def computing(self, precision: object) -> Self:
        """Returns the spec of the same module, which computes in ``precision``."""
        own = {} if precision == FLOAT else {PRECISION: precision}
        options = {**self.in_float.as_dict(), **own}
        return replace(self, options=tuple(sorted(options.items())))

    @property
    def label(self) -> str:
        """The kind, and of a block what people know it by: its ``Block``'s label."""
        options = self.as_dict()
        if self.kind != "block":
            return self.kind
        return block_label(options["style"], options.get("mixer"))

    def __str__(self) -> str:
        def show(value: OptionValue) -> str:
            if isinstance(value, tuple):
                return "{" + ",".join(f"{k}={show(v)}" for k, v in value) + "}"
            return str(value)

        return f"{self.kind}(" + ",".join(f"{k}={show(v)}" for k, v in self.options) + ")"


@dataclass(frozen=True)
class Component:
    """One module of a network: where it sits, what it is, and the side of its square input."""

    path: str
    spec: ModuleSpec
    in_size: int


def input_shape(spec: ModuleSpec, in_size: int, batch_size: int = 1) -> tuple[int, int, int, int]:
    """Returns a module's input shape: images ``(B, 3, s, s)`` or maps ``(B, s, s, dim)``."""
    if spec.kind == "stem":
        return batch_size, 3, in_size, in_size
    return batch_size, in_size, in_size, spec.as_dict()["dim"]


def stem_spec(macro: Macro, width: int) -> ModuleSpec:
    """Returns the spec of the stem before a first stage of ``width`` channels."""
    options = STEMS[macro.stem].options(macro)
    spec = ModuleSpec.of("stem", style=macro.stem, dim=macro.stem_width or width, **options)
    return spec.computing(macro.precision)


def transition_spec(macro: Macro, width_in: int, width: int, stride: int) -> ModuleSpec | None:
    """Returns the spec of the module between two stages, or None where there is none."""
    if macro.downsample == BLOCK_TRANSITION or (stride == 1 and width_in == width):
        return None
    projects = stride == 1
    style = "conv" if projects and macro.projection == LINEAR else macro.downsample
    options = TRANSITIONS[style].options(macro)
    if projects:
        options["kernel"] = 1
    spec = ModuleSpec.of(
        "downsample",
        style=style,
        dim=width_in,
        out_dim=width,
        stride=stride,
        **options,
    )
    return spec.computing(macro.precision)


def block_spec(
    macro: Macro,
    width: int,
    block: Block,
    position: int,
    width_in: int | None = None,
    stride: int = 1,
) -> ModuleSpec | None:
    """Returns the spec of a block at a position of its stage, or None where it is skipped.

    Args:
        macro: The macro style.
        width: Channels of the stage.
        block: The block.
        position: Its position in the stage; mixers that alternate are shifted at odd ones.
        width_in: Channels of its input, where it enters the stage.
        stride: Of the stage, where it enters it.
    """
    if block.skipped:
        return None
    kind, width_in = BLOCKS[block.kind], width if width_in is None else width_in
    params = dict(block.params)
    precision = params.pop(PRECISION)
    options = kind.options(Place(macro, width_in, width, stride, position), params)
    if kind.strided:
        options |= {"out_dim": width, "stride": stride}
    if block.mixer is not None:
        traits = block.mixer.traits  # so that specs of before a parameter came stay as they were
        if MIXERS[block.mixer.name].alternates:
            traits["shifted"] = position % 2 == 1
        options |= {"mixer": block.mixer.name, "params": tuple(sorted(traits.items()))}
    return ModuleSpec.of("block", style=block.kind, dim=width_in, **options).computing(precision)


def head_spec(macro: Macro, width: int, num_classes: int) -> ModuleSpec:
    """Returns the spec of the head after a last stage of ``width`` channels."""
    options = HEADS[macro.head].options(macro)
    spec = ModuleSpec.of("head", style=macro.head, dim=width, num_classes=num_classes, **options)
    return spec.computing(macro.precision)


def components(architecture: Architecture, num_classes: int = 1000) -> tuple[Component, ...]:
    """Returns the modules of ``architecture`` in the order in which an image passes them."""
    macro, side = architecture.macro, architecture.resolution
    chain = [Component("stem", stem_spec(macro, architecture.widths[0]), side)]
    side = STEMS[macro.stem].size(macro, side, macro.stem_stride)

    def add(path: str, spec: ModuleSpec | None) -> None:
        if spec is not None:
            chain.append(Component(path, spec, side))

    enters = macro.downsample == BLOCK_TRANSITION
    for i, (stage, width_in, size, stride) in enumerate(
        zip(
            architecture.stages,
            architecture.widths_before,
            architecture.sizes,
            architecture.strides,
            strict=True,
        )
    ):
        add(f"stages.{i}.downsample", transition_spec(macro, width_in, stage.width, stride))
        for j, block in enumerate(stage.blocks):
            first = enters and j == 0
            if not first:
                side = size
            entry = (width_in, stride) if first else (stage.width, 1)
            add(f"stages.{i}.blocks.{j}", block_spec(macro, stage.width, block, j, *entry))
        side = size
    add("head", head_spec(macro, architecture.widths[-1], num_classes))
    return tuple(chain)
