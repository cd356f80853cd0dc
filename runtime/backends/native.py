"""The native operators: where their library lies, and what becomes of bundles where it is missing.

Every operator also has a body of ONNX's own operators, so nothing needs the library to be right; a
quantised bundle needs it to be fast.
"""

import re
import warnings
from pathlib import Path

from drl.plugins.native import Kernels, NativeLibraryError, find_library
from drl.runtime.errors import BackendError
from drl.runtime.manifest import Manifest

# What kernels say of weights that are newer or older than they are.
_OTHER_LAYOUT = re.compile(r"packed weights of layout \d+; this library reads [\w ]+: [\w ]+\w")


def native_operators(manifest: Manifest) -> Path | None:
    """The library to register with ONNX Runtime, or None where this installation has none.

    Warns of a quantised bundle that will run slowly.

    Args:
        manifest: Of the bundle that is loaded.

    Raises:
        BackendError: The library does not load, is another version's, or is told to use
            instructions that there are not.
    """
    try:
        library = find_library()
        if library.path is not None:
            Kernels(path=library.path)  # finds an instruction set, as operators of any bundle do
    except NativeLibraryError as error:
        raise BackendError(str(error)) from error
    if library.path is None and manifest.quantised:
        warnings.warn(
            f"the {manifest.precision} bundle will run many times slower than it could: "
            f"{library.missing}",
            RuntimeWarning,
            stacklevel=2,
        )
    return library.path


def other_layout(message: str) -> str | None:
    """What a kernel said of weights that it cannot read, of all that a failure says."""
    found = _OTHER_LAYOUT.search(message)
    return found.group() if found else None
