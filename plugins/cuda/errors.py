"""What goes wrong with the kernels for NVIDIA GPUs."""


class CudaKernelError(Exception):
    """A kernel cannot be compiled, registered or launched; the message says what mends it."""
