"""Importing this module makes timm know the backbone.

import nas.timm, timm

model = timm.create_model("local-dir:runs/NAME/export/DIGEST", pretrained=True)
"""

import supernet.network.backbone  # noqa: F401
