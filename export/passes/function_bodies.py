"""Give every graph the standard-operator body of each `drl` operator that it uses."""

import onnx_ir as ir

from drl.plugins.ops import functions_for


class AppendFunctionBodies(ir.passes.InPlacePass):
    """Append one ONNX function per `drl` operator in use, so that any ONNX runtime runs the graph.

    Where a native kernel is registered under the same name, it takes precedence over the body.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Append the bodies to `model`."""
        functions = functions_for(model.graph.all_nodes())
        for function in functions:
            model.functions[function.identifier()] = function
        return ir.passes.PassResult(model, modified=bool(functions))
