"""The machine and the libraries that a benchmark ran with."""

import platform
from importlib import metadata
from typing import Any

from drl.runtime import machine

_LIBRARIES = ("drl", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "onnx", "torch")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, instruction sets, memory in bytes, and system."""
    memory = machine.memory()
    return {
        "processor": machine.cpu_model(),
        "cores": machine.physical_cores(),
        "hardware_threads": len(machine.available_cpus()),
        "quota": machine.cpu_quota(),
        "instruction_sets": machine.instruction_sets(),
        "memory": memory[0] if memory else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python and those of our libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
