"""Runtimes: the programs that run a network, and whose speed differs by far.

``find_runtime(name).prepare(module, images, conditions)`` gives a call that runs one forward pass.
A package of the user's adds a runtime by an entry point in the group ``nas.runtimes``, which names
a subclass of ``Runtime``:

    [project.entry-points."nas.runtimes"]
    myruntime = "my_package.runtime:MyRuntime"
"""

from predictors.measuring.runtimes.base import Run, Runtime
from predictors.measuring.runtimes.registry import find_runtime, runtime_names

__all__ = ["Run", "Runtime", "find_runtime", "runtime_names"]
