"""Benchmarks of bundles: how long things take, side by side and interleaved."""
