"""Measuring devices that this package is not installed on."""
