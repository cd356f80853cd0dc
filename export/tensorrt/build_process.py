"""The process that builds one engine: `python -m drl.export.tensorrt.build_process`.

Parsers and builders may abort, so each engine is built in a process of its own. It reads a job from
the first line of standard input and tells what happens on standard output. When standard input
ends, it stops: the command that started it was interrupted, or is gone.
"""

import os
import sys
import threading
import time
from typing import Any, TextIO

from drl.export.tensorrt import timing_cache
from drl.export.tensorrt.events import Events, open_monitor
from drl.export.tensorrt.job import Job
from drl.export.tensorrt.network import ParseError, configure, parse
from drl.plugins.cuda import compile as kernel_compiler
from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.trt import register
from drl.runtime.backends.tensorrt.library import import_library
from drl.runtime.errors import DrlError, ExportError

_PATIENCE = 30.0  # seconds that a build may take to stop when nobody waits for it any more


def main() -> None:
    """Build the engine that standard input tells of."""
    output = _own_standard_output()
    events = Events(output)
    job = Job.from_json(sys.stdin.readline())
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(sys.stdin, stop), daemon=True).start()
    try:
        _build(job, events, stop)
    except ParseError:
        sys.exit(1)
    except DrlError as error:
        events.send("error", message=str(error))
        sys.exit(1)
    except MemoryError:
        events.send("failed", reason="out of memory")
        sys.exit(1)
    except OSError as error:
        events.send(
            "error",
            message=f"cannot write the engine of {job.name}: {error.strerror or error}; "
            "make room and run the command again",
        )
        sys.exit(1)


def _build(job: Job, events: Events, stop: threading.Event) -> None:
    began = time.perf_counter()
    library = import_library(job.flavour)
    if job.plugins:
        register_plugins(library, job)
    network = parse(library, job.graph, bool(job.plugins), events)
    monitor = open_monitor(library, events, stop.is_set)
    config = configure(network, job, monitor)
    if job.timing_cache is not None:
        _warn(events, timing_cache.load(config, job.timing_cache))
    engine = network.builder.build_serialized_network(network.network, config)
    if job.timing_cache is not None:  # also of a build that failed or was stopped
        _warn(events, timing_cache.save(config, job.timing_cache))
    if stop.is_set():
        events.send("stopped")
        sys.exit(1)
    if engine is None:
        events.send("failed", reason="")
        sys.exit(1)
    with job.engine.open("wb") as stream:
        stream.write(memoryview(engine))
    inputs, outputs = network.tensors()
    events.send(
        "built",
        inputs=inputs,
        outputs=outputs,
        layers=network.network.num_layers,
        seconds=time.perf_counter() - began,
    )


def register_plugins(library: Any, job: Job) -> None:
    """Register a job's plugins with TensorRT, which compiles them while it builds.

    Raises:
        ExportError: They do not run on the GPU, their compiler is missing, or this TensorRT takes
            no such plugins.
    """
    try:
        if job.plugin_architecture < min(kernel_compiler.ARCHITECTURES):
            raise CudaKernelError(
                f"the kernels need compute capability 8.0, and not {job.compute_capability}"
            )
        kernel_compiler.version()  # an error within TensorRT's calls would be lost in its log
        register(library, job.plugins, job.plugin_architecture)
    except CudaKernelError as error:
        raise ExportError(
            f"the plugins cannot be made ({error}); mend that, or build with --no-plugins"
        ) from error


def _warn(events: Events, fault: str) -> None:
    if fault:
        events.send("warning", message=fault)


def _own_standard_output() -> TextIO:
    """Keep standard output for events: what the libraries print goes to standard error."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _wait_for_end(stream: Any, stop: threading.Event) -> None:
    stream.read()
    stop.set()
    time.sleep(_PATIENCE)
    os._exit(1)


if __name__ == "__main__":
    main()
