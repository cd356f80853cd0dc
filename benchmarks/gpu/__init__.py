"""Checks and timings that need an NVIDIA GPU."""
