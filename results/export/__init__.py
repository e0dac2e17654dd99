"""Export of networks to formats that others load."""

OPSETS = 14, 20
"""Oldest and newest operator set that an ONNX export can have."""
OPSET = 18
"""The one that modules are measured with; a runtime that ran a bundle loads exports of it."""
