"""What layers inside a network's modules read and write."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack

from torch import Tensor, nn

from search_space.components import components
from supernet.network.axes import StaticModule
from supernet.network.backbone import Backbone


def chain(network: Backbone) -> Iterator[tuple[str, StaticModule]]:
    """Yields a network's modules with their paths; each one's output is the next one's input."""
    for item in components(network.architecture, network.num_classes):
        yield item.path, static(network, item.path)


def static(network: nn.Module, path: str) -> StaticModule:
    """Returns the module at a path of a network."""
    module = network.get_submodule(path)
    assert isinstance(module, StaticModule)
    return module


def observe(
    module: nn.Module, x: Tensor, layers: Collection[str]
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Runs a module, and keeps what some of its layers read and write.

    Args:
        module: The module.
        x: Its input.
        layers: Names of layers within it, each of which it runs once.

    Returns:
        The module's output, and by layer its in- and output.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    with ExitStack() as hooks:
        for name in layers:

            def keep(
                layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
            ) -> None:
                seen[name] = inputs[0], output

            handle = module.get_submodule(name).register_forward_hook(keep)
            hooks.callback(handle.remove)
        return module(x), seen


def by_channel(layer: nn.Module, values: Tensor) -> Tensor:
    """Puts the channels of what a layer reads or writes last: (…, channels)."""
    return values.movedim(1, -1) if isinstance(layer, nn.Conv2d) else values


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution."""
    return isinstance(module, nn.Linear | nn.Conv2d)
