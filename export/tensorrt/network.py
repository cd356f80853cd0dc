"""A lowered graph in the library's own form: parsed, with its optimisation profiles.

Runs in the build process alone, as the parser may end it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl.export.tensorrt.events import Events, open_logger
from drl.export.tensorrt.job import Job
from drl.runtime.backends.tensorrt.library import title
from drl.runtime.errors import ExportError


class ParseError(Exception):
    """The parser refused a graph; its reasons were sent."""


@dataclass
class Network:
    """A parsed graph, and what must live as long as it does.

    Attributes:
        library: The module of TensorRT.
        builder: Of the library.
        network: Of the library.
        parser: Of the library; it owns the weights.
        logger: Of the library.
    """

    library: Any
    builder: Any
    network: Any
    parser: Any
    logger: Any

    def tensors(self) -> tuple[list[str], list[str]]:
        """The names of inputs and outputs, in the network's order."""
        network = self.network
        inputs = [network.get_input(i).name for i in range(network.num_inputs)]
        return inputs, [network.get_output(i).name for i in range(network.num_outputs)]


def parse(library: Any, graph: Path, plugins: bool, events: Events) -> Network:
    """Parse an ONNX file.

    Raises:
        ParseError: The parser refused it. Its reasons went out as the event `refused`.
    """
    logger = open_logger(library, events)
    builder = library.Builder(logger)
    network = builder.create_network(_strongly_typed(library))
    parser = library.OnnxParser(network, logger)
    if plugins:
        parser.set_flag(library.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    if not parser.parse_from_file(str(graph)):
        errors = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        events.send("refused", errors=errors)
        raise ParseError
    return Network(library, builder, network, parser, logger)


def configure(network: Network, job: Job, monitor: Any) -> Any:
    """A builder configuration with the job's profiles, target and options.

    Raises:
        ExportError: This version of the library has no such option, or refuses a profile.
    """
    from polygraphy.exception import PolygraphyException

    try:
        config = _create_config(network, job, monitor)
    except PolygraphyException as error:
        raise ExportError(
            f"{title(job.flavour)} {network.library.__version__} cannot be asked to build "
            f"{job.name}: {error}"
        ) from None
    # Routers choose experts by products in fp32: TF32 would round them to ten bits.
    flags = network.library.BuilderFlag
    config.clear_flag(flags.TF32)
    if (
        _steps(job)
        and not job.options.weight_streaming
        and hasattr(flags, "REQUIRE_USER_ALLOCATION")
    ):
        # An engine that allocates while it runs cannot be captured in a CUDA graph.
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    return config


def _steps(job: Job) -> bool:
    """Whether the engine runs the same shapes over and over."""
    return job.name.startswith("decoder")


def _create_config(network: Network, job: Job, monitor: Any) -> Any:
    from polygraphy.backend.trt import CreateConfig, Profile

    library, options = network.library, job.options
    profiles = []
    for shapes in job.profiles:
        profile = Profile()
        for name, shape in shapes.items():
            profile.add(name, min=shape.min, opt=shape.opt, max=shape.max)
        profiles.append(profile)
    common: dict[str, Any] = {
        "profiles": profiles,
        "progress_monitor": monitor,
        "weight_streaming": options.weight_streaming,
    }
    if job.flavour == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        major, _, minor = job.compute_capability.partition(".")
        target = [(int(major), int(minor))]
        create = CreateConfigRTX(compute_capabilities=target, **common)
        return create(network.builder, network.network)
    if options.hardware_compatible:
        level = library.HardwareCompatibilityLevel.AMPERE_PLUS
        common["hardware_compatibility_level"] = level
    create = CreateConfig(version_compatible=options.version_compatible, **common)
    return create(network.builder, network.network)


def _strongly_typed(library: Any) -> int:
    """The flag that makes a network keep the types of its graph, where that is not always so."""
    flags = library.NetworkDefinitionCreationFlag.__members__
    return 1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0


def _describe(error: Any) -> dict[str, Any]:
    return {
        "code": error.code().name,
        "node": error.node_name(),
        "operator": error.node_operator(),
        "callers": list(error.local_function_stack()),
        "reason": error.desc(),
    }
