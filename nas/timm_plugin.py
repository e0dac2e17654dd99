"""Makes timm know our backbone without importing timm, which takes seconds.

timm has no plug-in entry points, so this waits for its import: a finder at the head of
``sys.meta_path`` steps aside after letting ``timm`` load, and registers the backbone then.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_timm() -> None:
    """Register ``nas_backbone`` with timm: now if timm is loaded, else when it will be."""
    if "timm" in sys.modules:
        importlib.import_module("supernet.network.backbone")
    elif not any(isinstance(finder, _WaitForTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForTimm())


class _WaitForTimm(MetaPathFinder):
    """Stays until timm has loaded: others look for timm only to see whether it is installed."""

    _asking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(Loader):
    """timm's own loader, followed by the import that registers the backbone."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        importlib.import_module("supernet.network.backbone")
