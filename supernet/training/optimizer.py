"""Optimiser and schedule of a training, from timm's factories, with state known by parameter name.

Names are what a checkpoint can hold and what a sampler that sorts channels can re-order; torch
knows its state by position only. Beside it the exponential moving average of weights over steps
(Polyak & Juditsky, 1992).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from search_space.errors import RunError
from supernet.network.backbone import NO_WEIGHT_DECAY
from supernet.training.checkpoints import AVERAGE, BEST
from supernet.training.config import TrainConfig
from supernet.training.precision import LossScale


class MovingAverage:
    """Averages a network's ``tensors``, by name, with ``decay`` per step.

    Averages of batch norms are averaged as weights are, so that both are of the same steps. The
    first steps, whose weights are worth little, are forgotten sooner: step t has decay
    min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float) -> None:
        self.tensors, self.decay = dict(tensors), decay
        self.values = {name: value.detach().clone() for name, value in tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the tensors after ``step`` (0 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [self.tensors[name] for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)

    def use(self) -> None:
        """Puts the average in the place of the tensors."""
        _overwrite(self.tensors, self.values)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Puts the average in the place of the tensors for a while."""
        kept = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.use()
        try:
            yield
        finally:
            _overwrite(self.tensors, kept)


@torch.no_grad()
def _overwrite(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


class NamedOptimizer:
    """Steps all parameters of ``module``, and their moving average where there is one.

    Raises:
        RunError: timm has no such optimiser or schedule.
    """

    def __init__(
        self,
        module: nn.Module,
        config: TrainConfig,
        steps_per_epoch: int,
        average: MovingAverage | None = None,
    ) -> None:
        self.parameters, self.average = dict(module.named_parameters()), average
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._optimizer, self._scheduler = _made(module, config, steps_per_epoch)

    @property
    def lr(self) -> float:
        """The learning rate of the step under way, of the parameters that have the largest."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def begin(self, step: int, lr_scale: float) -> None:
        """Sets the learning rate of ``step``, ``lr_scale`` of the schedule's; drops gradients."""
        self._scheduler.step_update(step)
        for group in self._optimizer.param_groups:
            group["lr"] *= lr_scale
        self._optimizer.zero_grad(set_to_none=True)

    def unscale(self, scale: LossScale) -> None:
        """Takes the scale of the losses out of the gradients."""
        scale.unscale(self._optimizer)

    @torch.no_grad()
    def step(self, step: int, rates: Mapping[str, torch.Tensor] | None = None) -> None:
        """Changes the parameters by their gradients.

        Args:
            rates: By parameter, of its shape: factors of the learning rate of its elements. They
                act on the change itself, since Adam makes steps of one size of whatever gradient.
        """
        before = {}
        if rates is not None:
            changing = {n: p for n, p in self.parameters.items() if p.grad is not None}
            before = {name: parameter.detach().clone() for name, parameter in changing.items()}
        self._optimizer.step()
        for name, old in before.items():
            parameter = self.parameters[name]
            assert rates is not None
            parameter.copy_(torch.lerp(old, parameter, rates[name].to(old)))
        if self.average is not None:
            self.average.update(step)

    def states(self) -> dict[str, dict[str, torch.Tensor]]:
        """Gives the optimiser's state, and the moving average, by parameter and name."""
        states = {
            self._names[id(parameter)]: {
                key: torch.as_tensor(value) for key, value in values.items()
            }
            for parameter, values in self._optimizer.state.items()
        }
        if self.average is not None:
            for name, value in self.average.values.items():
                states.setdefault(name, {})[AVERAGE] = value
        return states

    def tensors(self) -> dict[str, torch.Tensor]:
        """Gives ``states`` as ``name/exp_avg``, for a checkpoint."""
        return {
            f"{name}/{key}": value
            for name, values in self.states().items()
            for key, value in values.items()
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over what ``tensors`` of the same configuration gave."""
        entries: dict[str, dict[str, torch.Tensor]] = {}
        for path, tensor in tensors.items():
            name, _, key = path.rpartition("/")
            if key == BEST:
                continue  # the loop's
            if key == AVERAGE:
                assert self.average is not None  # the configuration is the same
                self.average.values[name].copy_(tensor)
            else:
                entries.setdefault(name, {})[key] = tensor.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        order = [
            self._names[id(parameter)]
            for group in self._optimizer.param_groups
            for parameter in group["params"]
        ]
        state = {index: entries[name] for index, name in enumerate(order) if name in entries}
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})


def check_optimizer(config: TrainConfig) -> None:
    """Checks that timm has the optimiser and the schedule; raises RunError otherwise."""
    # one layer has no others before it whose rates would decay
    _made(nn.Linear(1, 1), replace(config, layer_decay=1.0), steps_per_epoch=1)


def _made(
    module: nn.Module, config: TrainConfig, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Any]:
    from timm.optim import (
        create_optimizer_v2,
        param_groups_layer_decay,
        param_groups_weight_decay,
    )
    from timm.scheduler import create_scheduler_v2

    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            module,
            config.weight_decay,
            no_weight_decay_list=NO_WEIGHT_DECAY,
            layer_decay=config.layer_decay,
        )
    else:
        groups = param_groups_weight_decay(
            module, config.weight_decay, no_weight_decay_list=NO_WEIGHT_DECAY
        )
    options: dict[str, Any] = {"fused": True} if config.optimizer == "adamw" else {}
    # A warm-up longer than the training would leave nothing of the schedule.
    warmup: dict[str, Any] = {"warmup_epochs": min(config.warmup_epochs, config.epochs / 2)}
    try:
        optimizer = create_optimizer_v2(
            [group for group in groups if group["params"]],
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            **options,
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.schedule,
            num_epochs=config.epochs,
            warmup_lr=config.lr / 100,
            min_lr=config.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            **warmup,
        )
    except (ValueError, AssertionError, RuntimeError) as error:
        raise RunError(
            f"timm has no optimizer {config.optimizer!r} with schedule {config.schedule!r} "
            f"({error}); use 'adamw' and 'cosine'"
        ) from error
    if scheduler is None:
        raise RunError(f"timm has no schedule {config.schedule!r}; use 'cosine'")
    return optimizer, scheduler
