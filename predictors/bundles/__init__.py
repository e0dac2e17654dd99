"""Measurements of devices that this package is not installed on."""
