"""Which nodes of a graph ONNX Runtime gave to the CPU, although it was to run on another device.

Where a provider has no kernel for a node, ONNX Runtime gives it to the CPU and says nothing. Values
then travel to the host and back in every run, or a provider that did not start at all goes unseen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drl.runtime.errors import BackendError

_HOST = "CPUExecutionProvider"
_NAMED = 5

# ONNX Runtime computes shapes on the host on purpose: it needs them there to allocate memory.
_SHAPES = frozenset(
    (
        *("Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Not"),
        *("Or", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "Reshape", "Shape", "Size"),
        *("Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    )
)
# Which experts a batch uses decides how often the loop over them runs, so the host has to know;
# there is no such operator for GPUs.
_EXPERTS_IN_USE = frozenset({"Unique"})
# These are for shapes, and every model has them in its layers too. If not one of them is on the
# device, it has no kernel for them.
_EVERYWHERE = ("Cast", "Gather", "Reshape", "Unsqueeze")


@dataclass(frozen=True)
class PlacedNode:
    """A node, and the execution provider that has it.

    Attributes:
        graph: The graph, as "decoder".
        operator: Operator, with its domain if that is not ONNX's own.
        name: The node's name, which may be empty.
        provider: The execution provider.
    """

    graph: str
    operator: str
    name: str
    provider: str


def record_placement(options: Any) -> None:
    """Let a session that is opened with these options remember where its nodes are."""
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")


def placed_nodes(graph: str, session: Any) -> Iterator[PlacedNode]:
    """The nodes of a session, those inside branches, loops and functions included."""
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            yield PlacedNode(graph, operator, node.name, part.ep_name)


def check_placement(sessions: Mapping[str, Any], provider: str, version: str) -> None:
    """See that a bundle's graphs run where they were meant to.

    Args:
        sessions: By graph, opened with `record_placement`.
        provider: The execution provider that they were opened with.
        version: ONNX Runtime's.

    Raises:
        BackendError: A session does without the provider, or nodes with real work are on the CPU.
    """
    for graph, session in sessions.items():
        used = session.get_providers()
        if used[0] != provider:
            raise BackendError(
                f"{provider} did not start for the {graph}, and ONNX Runtime {version} would run "
                f"it with {used[0]}"
            )
    nodes = [node for graph, session in sessions.items() for node in placed_nodes(graph, session)]
    if strayed := stray_nodes(nodes, provider):
        shown = ", ".join(
            f"{node.graph} {node.operator} {node.name!r}" for node in strayed[:_NAMED]
        )
        more = f" and {len(strayed) - _NAMED} more" if len(strayed) > _NAMED else ""
        raise BackendError(
            f"ONNX Runtime {version} has no kernels of {provider} for some nodes and would run "
            f"them on the CPU: {shown}{more}; upgrade with "
            "`pip install --upgrade \"drl[cuda]\"`, or use device='cpu'"
        )


def stray_nodes(nodes: list[PlacedNode], provider: str) -> list[PlacedNode]:
    """The nodes that are on the CPU and should be with the provider."""
    if provider == _HOST:
        return []
    on_device = {node.operator for node in nodes if node.provider == provider}
    allowed = (_SHAPES | _EXPERTS_IN_USE) - {each for each in _EVERYWHERE if each not in on_device}
    return [node for node in nodes if node.provider != provider and node.operator not in allowed]
