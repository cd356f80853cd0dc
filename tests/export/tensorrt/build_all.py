"""Build engines of ONNX files with TensorRT for RTX: `python build_all.py SM80 A.onnx B.onnx`.

A program of its own, as the library ends its process over some graphs.
"""

import sys
from typing import Any

import tensorrt_rtx

SIZES = {"B": (1, 2, 4), "S": (1, 8, 16), "K": (1, 8, 16), "T": (1, 1, 4), "R": (1, 2, 4)}


def build(file: str, target: str) -> int:
    """Return the bytes of the engine."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(file):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise SystemExit(f"{file} is not parsed: {reasons}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(tensorrt_rtx.ComputeCapability, target), 0)
    config.add_optimization_profile(_profile(builder, network))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise SystemExit(f"{file} is not built")
    return int(engine.nbytes)


def _profile(builder: Any, network: Any) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        if -1 not in tensor.shape:
            continue
        bounds = [
            [
                SIZES[name][i] if size == -1 else size
                for size, name in zip(tensor.shape, names, strict=True)
            ]
            for i in range(3)
        ]
        profile.set_shape(tensor.name, *bounds)
    return profile


if __name__ == "__main__":
    for given in sys.argv[2:]:
        print(given, build(given, sys.argv[1]), flush=True)
