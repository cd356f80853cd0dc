"""Kernels for the CPU, in C++: linears with packed weights, attention, and layers of experts.

`find_library` says where the compiled library lies, and why not if there is none; ONNX Runtime
loads its operators from there. `Kernels` calls it from NumPy.
"""

from drl.plugins.native.kernels import Kernels
from drl.plugins.native.library import NativeLibrary, NativeLibraryError, find_library

__all__ = ["Kernels", "NativeLibrary", "NativeLibraryError", "find_library"]
