"""Published networks of timm within limits on a device, with their published accuracy."""
