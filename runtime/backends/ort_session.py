"""What backends on ONNX Runtime share: sessions, their errors, and what graphs are held to."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drl.runtime.backends.limits import LESS_MEMORY
from drl.runtime.backends.native import other_layout
from drl.runtime.backends.threads import Threads
from drl.runtime.errors import BackendError, BundleError
from drl.runtime.manifest import REPAIR, GraphInfo, Manifest

_INSTALL = 'install it with `pip install "drl[cpu]"` or, for NVIDIA GPUs, `pip install "drl[cuda]"`'
_FATAL_ONLY = 4  # errors come as exceptions, and need no line of the library's own beside them
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8"}
# What the library, its arenas and CUDA say where memory runs out.
_OUT_OF_MEMORY = ("out of memory", "failed to allocate", "alloc_failed", "bad_alloc", "bad alloc")
# The first version that tells the bodies of one operator apart. Earlier ones would run any of them
# where there is no kernel.
_NEEDED = (1, 27)


def import_onnxruntime() -> Any:
    """The `onnxruntime` module. Raises `BackendError` if it is missing, broken or too old."""
    onnxruntime = _import()
    version = onnxruntime.__version__
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _NEEDED:
        needed = ".".join(map(str, _NEEDED))
        raise BackendError(
            f"ONNX Runtime {needed} or newer is needed, and this is {version}; "
            f'upgrade with `pip install --upgrade "onnxruntime>={needed}"`'
        )
    return onnxruntime


def _import() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise BackendError(f"ONNX Runtime is incomplete ({error}); {_INSTALL}") from error
        raise BackendError(f"ONNX Runtime is not installed; {_INSTALL}") from None
    except ImportError as error:
        raise BackendError(f"ONNX Runtime does not load ({error}); {_INSTALL}") from error


def session_options(onnxruntime: Any, threads: Threads) -> Any:
    """Options of a session with so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads.count
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    spin = "1" if threads.spin else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    # Threads that spun on after a step would burn a core each while the engine is idle.
    options.add_session_config_entry("session.force_spinning_stop", spin)
    return options


def open_session(
    onnxruntime: Any, path: Path, options: Any, providers: list[Any], operators: Path | None = None
) -> Any:
    """Load a graph.

    Args:
        onnxruntime: The module.
        path: The graph's file.
        options: From `session_options`.
        providers: Names of execution providers, or pairs of a name and its options.
        operators: A library of custom operators.

    Raises:
        BackendError: ONNX Runtime cannot load it.
    """
    version = onnxruntime.__version__
    try:
        if operators is not None:
            options.register_custom_ops_library(str(operators))
        return onnxruntime.InferenceSession(
            str(path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # the library has a class per status code, without a root
        message = " ".join(str(error).split())
        if "NOT_IMPLEMENTED" in message:
            raise BackendError(
                f"this build of ONNX Runtime {version} lacks an operator of {path.name} "
                f"({message}); {_INSTALL}"
            ) from error
        if refusal := other_layout(message):
            raise BackendError(f"{path.name} has {refusal}") from error
        if _tells_of_memory(message):
            raise BackendError(
                f"there is no memory left to load {path.name} ({message}); end other programs that "
                "use it, or choose another device"
            ) from error
        raise BackendError(
            f"ONNX Runtime {version} cannot load {path.name}: {message}; "
            "run `drl-export` again, and `drl-doctor` to see what this machine supports"
        ) from error


def check_names(session: Any, path: Path, contract: GraphInfo) -> None:
    """Hold a graph's inputs and outputs to the manifest. Raises `BundleError`."""
    for kind, found, expected in (
        ("inputs", session.get_inputs(), contract.inputs),
        ("outputs", session.get_outputs(), contract.outputs),
    ):
        if names(found) != names(expected):
            raise BundleError(
                f"{path.name} has other {kind} than bundle.json says; run `drl-export` again"
            )


def check_sizes(manifest: Manifest, encoder: Any, decoder: Any, ranks: bool) -> None:
    """Hold what the manifest says about sizes to the graphs, before memory is bound to them.

    Args:
        manifest: The bundle's.
        encoder, decoder: Sessions.
        ranks: Whether the decoder gives candidates.

    Raises:
        BundleError: They differ.
    """
    cache, limits = manifest.cache, manifest.limits
    routes = "path_logits" in names(encoder.get_outputs())
    if routes != (manifest.path_router is not None):
        has = "path logits and bundle.json no" if routes else "no path logits and bundle.json a"
        raise BundleError(f"the encoder has {has} path_router; {REPAIR}")
    past = [item for item in decoder.get_inputs() if item.name.startswith("past_")]
    layers, expected = len(past) // 2, (cache.kv_heads, cache.row_width, cache.dtype)
    found = {(item.shape[1], item.shape[3], _DTYPES.get(item.type)) for item in past}
    if layers != cache.decoder_layers or found != {expected}:
        sizes = " or ".join(f"{n} heads of {h} {dtype}" for n, h, dtype in sorted(found, key=str))
        raise BundleError(
            f"bundle.json: cache is not the decoder's, {layers} layers with {sizes}; {REPAIR}"
        )
    outputs = {item.name: item for item in decoder.get_outputs()}
    for name in ("normalisers", *(("top_values", "top_ids") if ranks else ())):
        if name not in outputs:
            raise BundleError(f"the decoder is an earlier version's, without {name}; {REPAIR}")
    # One that ranks may leave its logits out, so their dimension is called "32128 or 0".
    count = str(outputs["logits"].shape[-1]).removesuffix(" or 0")
    if count != str(limits.vocab_size):
        raise BundleError(
            f"bundle.json: limits.vocab_size is {limits.vocab_size} and the decoder has "
            f"{count} logits; {REPAIR}"
        )


def run_session(graph: str, device: str, run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a session.

    Args:
        graph: What it runs, as "decoder".
        device: Whose memory it takes.
        run: A method of the session, called with the other arguments.

    Raises:
        BackendError: The graph cannot be run, or there is no memory left for it.
    """
    try:
        return run(*arguments)
    except Exception as error:  # the library has a class per status code, without a root
        message = " ".join(str(error).split())
        if _tells_of_memory(message):
            raise BackendError(
                f"{device} has no memory left to run the {graph} ({message}); {LESS_MEMORY}"
            ) from error
        raise BackendError(f"ONNX Runtime cannot run the {graph}: {message}") from error


def _tells_of_memory(message: str) -> bool:
    """Whether an error says that memory ran out."""
    return any(sign in message.lower() for sign in _OUT_OF_MEMORY)


def names(tensors: Any) -> list[str]:
    """Names of inputs or outputs."""
    return [tensor.name for tensor in tensors]
