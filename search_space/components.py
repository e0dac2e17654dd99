"""The straight chain of modules that an architecture is: stem, blocks, downsampling, head.

One list serves the static network, the weight-sharing supernet, the counts and the latency
table, so that all of them speak of the same modules. A ``ModuleSpec`` holds all that a
module's weights and computation depend on besides its input size, and hashes as a table key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search_space.architecture import Architecture, Block, Macro, feature_sizes
from search_space.mixers import mixer_spec

OptionValue = int | float | bool | str | tuple[tuple[str, int | bool], ...]


@dataclass(frozen=True)
class ModuleSpec:
    """Kind (``stem``, ``downsample``, ``block``, ``head``) and keyword options of a module."""

    kind: str
    options: tuple[tuple[str, OptionValue], ...]

    @classmethod
    def of(cls, kind: str, **options: OptionValue) -> ModuleSpec:
        return cls(kind, tuple(sorted(options.items())))

    def as_dict(self) -> dict[str, Any]:
        return dict(self.options)

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
    return ModuleSpec.of(
        "stem",
        dim=width,
        kernel=macro.stem_kernel,
        stride=macro.stem_stride,
        norm=macro.norm if macro.stem_norm else "none",
        norm_eps=macro.norm_eps,
    )


def downsample_spec(macro: Macro, width_in: int, width_out: int) -> ModuleSpec:
    return ModuleSpec.of(
        "downsample",
        dim=width_in,
        out_dim=width_out,
        style=macro.downsample,
        kernel=macro.downsample_kernel,
        norm=macro.norm,
        norm_eps=macro.norm_eps,
    )


def block_spec(macro: Macro, width: int, block: Block, position: int) -> ModuleSpec:
    """Returns the spec of a block at a position of its stage; odd ones shift their windows."""
    params = dict(block.mixer.params)
    if mixer_spec(block.mixer.name).alternates:
        params["shifted"] = position % 2 == 1
    return ModuleSpec.of(
        "block",
        dim=width,
        mixer=block.mixer.name,
        params=tuple(sorted(params.items())),
        hidden=block.hidden(width),
        norm=macro.norm,
        norm_eps=macro.norm_eps,
        layer_scale=macro.layer_scale,
    )


def head_spec(macro: Macro, width: int, num_classes: int) -> ModuleSpec:
    return ModuleSpec.of(
        "head",
        dim=width,
        num_classes=num_classes,
        norm=macro.norm,
        norm_eps=macro.head_norm_eps,
        norm_after_pool=macro.head_norm == "after_pool",
    )


def components(architecture: Architecture, num_classes: int = 1000) -> tuple[Component, ...]:
    """Returns the modules of ``architecture`` in the order in which an image passes them."""
    macro = architecture.macro
    sizes = feature_sizes(macro, architecture.resolution)
    chain = [Component("stem", stem_spec(macro, architecture.widths[0]), architecture.resolution)]
    for i, stage in enumerate(architecture.stages):
        if i > 0:
            spec = downsample_spec(macro, architecture.widths[i - 1], stage.width)
            chain.append(Component(f"stages.{i}.downsample", spec, sizes[i - 1]))
        for j, block in enumerate(stage.blocks):
            spec = block_spec(macro, stage.width, block, j)
            chain.append(Component(f"stages.{i}.blocks.{j}", spec, sizes[i]))
    head = head_spec(macro, architecture.widths[-1], num_classes)
    chain.append(Component("head", head, sizes[-1]))
    return tuple(chain)
