"""The network: mixers, blocks, backbone, weight sharing, training, data."""

from supernet.backbone import Backbone, build
from supernet.supernet import Supernet

__all__ = ["Backbone", "Supernet", "build"]
