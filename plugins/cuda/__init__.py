"""The routing operators on NVIDIA GPUs: CUDA C++ kernels, compiled to PTX, and TensorRT plugins."""
