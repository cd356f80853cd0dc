"""The routing operators on NVIDIA GPUs: CUDA C++ kernels, compiled to PTX, and TensorRT plugins.

`compile` makes PTX and machine code without a GPU, `launch` runs the kernels on CuPy arrays, and
`trt` registers them with TensorRT. Nothing is imported before it is needed.
"""

from drl.plugins.cuda.errors import CudaKernelError

__all__ = ["CudaKernelError"]
