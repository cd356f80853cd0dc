"""TensorRT for RTX under the name of TensorRT, for whose own libraries tests have no GPU.

It shows that a build process uses TensorRT's interface as it is, timing cache included. It shows
nothing of TensorRT's compiler.
"""

from pathlib import Path

_MODULE = """
import warnings
from tensorrt_rtx import *
import tensorrt_rtx as _rtx

__version__ = "11.0.0.9"
warnings.simplefilter("ignore")


class Builder(_rtx.Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(_rtx.ComputeCapability.SM89, 0)
        return config
"""


def install(folder: Path) -> Path:
    """Write a package `tensorrt` to a folder, which then belongs on `PYTHONPATH`."""
    package = folder / "packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_MODULE)
    return package.parent
