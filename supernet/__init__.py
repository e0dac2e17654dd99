"""The network: mixers, blocks, backbone, weight sharing, training, data."""

from supernet.network.backbone import Backbone, build
from supernet.network.supernet import Supernet

__all__ = ["Backbone", "Supernet", "build"]
