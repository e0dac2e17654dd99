"""The static network of an architecture, as a citizen of timm.

It is the chain of ``search_space.components`` and nothing else. Registered with timm as
``nas_backbone``, so that an export directory loads with
``timm.create_model("local-dir:…", pretrained=True)``.
"""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from search_space.architecture import Architecture
from search_space.components import components
from search_space.preprocessing import Preprocessing
from supernet.network.axes import StaticModule
from supernet.network.heads import Head
from supernet.network.modules import build_module, drop_path_rates

# Names (timm matches with fnmatch) that weight decay would pull towards a wrong prior; biases,
# norms, layer scales and other one-dimensional parameters are left out by timm itself.
NO_WEIGHT_DECAY = ("*relative_position*", "*.cpb_mlp.*", "*.logit_scale", "*.positions")


class Stage(nn.Module):
    """A transition, if any, and blocks by position; ``(batch, height, width, dim)``."""

    def __init__(self, downsample: nn.Module, blocks: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(OrderedDict((str(j), block) for j, block in blocks.items()))
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Backbone(nn.Module):
    """Vision backbone.

    Images are ``(batch, in_chans, height, width)``, logits ``(batch, num_classes)``. Inner maps
    are channels last, as timm's ``output_fmt`` says.

    Example:
        A known design with a classifier of ten classes::

            network = Backbone(known("swin_t"), num_classes=10)
            logits = network(torch.zeros(1, 3, 224, 224))

    Args:
        architecture: An Architecture or its ``to_dict()`` form.
        in_chans: Channels of the images.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: ``avg``, ``max`` or empty (feature maps).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop path of the last block, growing linearly from 0.

    Raises:
        InvalidArchitectureError: The plain form breaks a rule.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        architecture: Architecture | Mapping[str, Any],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(architecture, Architecture):
            architecture = Architecture.from_dict(architecture)
        self.architecture = architecture
        self.in_chans, self.num_classes = in_chans, num_classes
        self.feature_info = []
        modules: dict[str, StaticModule] = {}
        chain = components(architecture, num_classes)
        for item in chain:
            extra: dict[str, Any] = {}
            if item.spec.kind == "stem":
                extra = {"in_chans": in_chans}
            elif item.spec.kind == "head":
                extra = {"global_pool": global_pool, "drop_rate": drop_rate}
            modules[item.path] = build_module(item.spec, **extra)
        blocks = [item.path for item in chain if item.spec.kind == "block"]
        for path, rate in zip(blocks, drop_path_rates(drop_path_rate, len(blocks)), strict=True):
            modules[path].drop_path_rate = rate
        self.stem = modules["stem"]
        stages = []
        reduction = architecture.macro.stem_stride
        for i, stage in enumerate(architecture.stages):
            paths = {j: f"stages.{i}.blocks.{j}" for j in range(stage.depth)}
            reduction *= architecture.strides[i]
            stages.append(
                Stage(
                    modules.get(f"stages.{i}.downsample") or nn.Identity(),
                    {j: modules[path] for j, path in paths.items() if path in modules},
                )
            )
            self.feature_info.append(
                {"num_chs": stage.width, "reduction": reduction, "module": f"stages.{i}"}
            )
        self.stages = nn.Sequential(*stages)
        head = modules["head"]
        assert isinstance(head, Head)
        self.head = head
        self.num_features = self.head_hidden_size = head.width

    def forward_features(self, x: Tensor) -> Tensor:
        """Computes the last feature map ``(batch, height, width, dim)`` of images."""
        return self.head.features(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turns the result of ``forward_features`` into logits, or the classifier's input."""
        return self.head.classify(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new, freshly initialised one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, self.head.global_pool if global_pool is None else global_pool)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        names = [name for name, _ in self.named_parameters()]
        return {name for pattern in NO_WEIGHT_DECAY for name in fnmatch.filter(names, pattern)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: Any = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^head\.norm", (99999,)),
            ]
        return {"stem": r"^stem", "blocks": blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Computes stage outputs as timm's function of this name does.

        Returns:
            A list of maps, ``(batch, dim, height, width)`` or channels last by ``output_fmt``, or
            the pair (last features, list).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt {output_fmt!r} must be 'NCHW' or 'NHWC'.")
        take, last = feature_take_indices(len(self.stages), indices)
        taken = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                break
            x = stage(x)
            if i in take:
                at_end = norm and i == len(self.stages) - 1
                tap = self.head.features(x) if at_end else x
                taken.append(tap.permute(0, 3, 1, 2) if output_fmt == "NCHW" else tap)
        if intermediates_only:
            return taken
        return self.head.features(x), taken

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the stages ``indices`` do not need."""
        take, last = feature_take_indices(len(self.stages), indices)
        ends_early = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or ends_early:
            self.head.strip()
        if prune_head or ends_early:
            self.reset_classifier(0, "")
        return take


default_cfgs = generate_default_cfgs(
    {
        "nas_backbone": {
            "url": "",
            "num_classes": 1000,
            "pool_size": None,
            **Preprocessing(resolution=224).timm(),
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        }
    }
)


@register_model
def nas_backbone(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """Builds the backbone for timm; needs the model argument ``architecture``."""
    architecture = kwargs.get("architecture")
    if isinstance(architecture, Mapping):
        architecture = kwargs["architecture"] = Architecture.from_dict(architecture)
    stages = range(0 if architecture is None else len(architecture.stages))
    return build_model_with_cfg(
        Backbone,
        "nas_backbone",
        pretrained,
        feature_cfg={"out_indices": tuple(stages), "flatten_sequential": True},
        **kwargs,
    )


def build(architecture: Architecture, num_classes: int = 1000, **options: Any) -> Backbone:
    """Builds the static network of ``architecture``; ``options`` as for Backbone."""
    return Backbone(architecture, num_classes=num_classes, **options)
