"""The interface of runtimes: a module and its input become a call that runs one forward pass.

A runtime also says how the cost of a call is taken out of an entry, since a whole network is
called once and not once per component:

- ``direct``: nothing to take out, a component costs the same alone and in a network (eager);
- ``constant``: what a call of an empty network costs is subtracted;
- ``slope``: n and 2n copies with weights of their own are timed, and the entry is
  (t₂ₙ − tₙ) / n: the cost of the call cancels.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from search_space.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from predictors.tables.conditions import Conditions

Run = Callable[[], object]
Method = Literal["direct", "constant", "slope"]


class Runtime(ABC):
    """One way to run networks; there is one instance of each, found by name.

    Example:
        A runtime that a package of the user's adds, see ``measuring.runtimes``::

            class Scripted(Runtime):
                method = "direct"

                def version(self) -> str:
                    return f"torchscript {torch.__version__}"

                def prepare(self, module, images, conditions):
                    return partial(torch.jit.trace(module, images), images)
    """

    name: str = ""
    """Under which it is registered."""
    method: ClassVar[Method]
    """How an entry's cost is taken from a call's, see above."""
    copies: ClassVar[int] = 4
    """n of the ``slope`` method: the clocks of GPUs resolve half a microsecond."""
    device_kinds: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    settle: ClassVar[int] = 1
    """Runs of a whole network that go before each timed one: 1 for a network that runs again and
    again, 0 for one that other work runs between."""
    keeps_memory: ClassVar[bool] = False
    """Whether what is prepared holds weights and activations of its own for as long as it lives."""
    int8: ClassVar[bool] = False
    """Whether modules in int8 run in integers here."""
    library: ClassVar[str] = "torch"
    """Import name of what runs the network."""
    install: ClassVar[str] = ""
    """Command that installs the library, where it is not ``pip install`` and its import name."""

    @abstractmethod
    def version(self) -> str:
        """Name and version of all that the speed depends on, such as ``torch 2.9.0``.

        Tables are kept apart by it: what was measured under another version is measured again.
        """

    @abstractmethod
    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        """Makes a call that runs ``module`` on ``images`` once, inputs and outputs resident.

        Whatever is done once per network, such as compilation, is done here. On CUDA the call
        enqueues work on the current stream. It returns the output where the runtime gives it
        without a copy: a tensor, or an array on the CPU. The module is in eval mode, ``images`` lie
        on the device that ``conditions`` name.

        Raises:
            UsageError: The runtime cannot run the module in this precision.
        """

    def require(self, device_kind: str, precision: str = "fp32") -> None:
        """Checks that this runtime can be used.

        Raises:
            UsageError: It cannot; the message says what to do about it.
        """
        if device_kind not in self.device_kinds:
            served = " and ".join(self.device_kinds)
            raise UsageError(
                f"runtime {self.name!r} needs a device of kind {served}, not {device_kind!r}. "
                "Measure on such a device, or use another: eager, inductor, onnxruntime and "
                "openvino serve CPUs too."
            )
        if not self.installed():
            raise UsageError(
                f"runtime {self.name!r} needs the package {self.library!r}, which is not "
                f"installed. Install it with: {self.install or f'pip install {self.library}'}"
            )

    def installed(self) -> bool:
        """Decides whether the library is there, without an import."""
        return importlib.util.find_spec(self.library) is not None
