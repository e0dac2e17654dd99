"""The network: axes, mixers, modules, backbone, weight sharing; knows no data."""
