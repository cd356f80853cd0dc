"""The exception of the benchmarks."""

from drl.runtime.errors import DrlError


class BenchmarkError(DrlError):
    """Something cannot be measured: an option, a library or a peer is wrong or missing."""
