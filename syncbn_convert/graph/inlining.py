"""Bodies of model-local functions in the place of their calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from syncbn_convert.errors import ConversionError
from syncbn_convert.graph import graphs


def inline(model: ir.Model, callees: Collection[ir.OperatorIdentifier]) -> None:
    """Put the bodies of functions in the place of their calls, in place.

    Raises:
        ConversionError: naming a function that is written in another opset than the model.
    """
    for identifier in callees:
        function = model.functions[identifier]
        if not fits(function, model):
            domain, name, _ = identifier
            raise ConversionError(
                f"function '{domain}::{name}' is written in another opset than the model and "
                "cannot be inlined; export the model again in one opset"
            )
        for domain in function.opset_imports:
            if domain in model.opset_imports:
                function.opset_imports[domain] = model.opset_imports[domain]
    _complete(model, callees)
    for identifier in callees:
        _return_own_values(model.functions[identifier])
    outer = [model.graph, *(f.graph for i, f in model.functions.items() if i not in callees)]
    namespaces = [_Namespace(graph, callees) for graph in outer]
    InlinePass(criteria=lambda function: function.identifier() in callees)(model)
    for namespace in namespaces:
        namespace.name_new()


def _complete(model: ir.Model, callees: Collection[ir.OperatorIdentifier]) -> None:
    """Let calls have as many outputs as the functions, none named "", as onnx_ir wants it."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in (node for body in bodies for node in body.all_nodes()):
        if node.op_identifier() in callees:
            function = model.functions[node.op_identifier()]
            node.resize_outputs(max(len(node.outputs), len(function.outputs)))
            for output in node.outputs:
                output.name = output.name or None


def _return_own_values(function: ir.Function) -> None:
    """Let no input be an output, too, for onnx_ir gives outputs the names that the call had."""
    for index, value in enumerate(function.outputs):
        if value in function.inputs:
            node = ir.node("Identity", [value])
            node.outputs[0].name = value.name
            function.append(node)
            function.outputs[index] = node.outputs[0]


class _Namespace:
    """The names of a graph and of the bodies of If, Loop and Scan in it, while calls are inlined.

    onnx_ir names what a call leaves after what it has met so far: it does not know the bodies that
    follow, and leaves inputs and initializers of bodies in a function as they are.

    Args:
        graph: The outermost one, before.
        callees: What will be inlined.
    """

    def __init__(self, graph: ir.Graph, callees: Collection[ir.OperatorIdentifier]) -> None:
        self._graph = graph
        self._values = {value for _, value in self._named()}
        self._nodes = set(graph.all_nodes())
        self._results = {
            (body, value.name)
            for body, value in self._named()
            if (node := value.producer()) and node.op_identifier() in callees
        }

    def name_new(self) -> None:
        """Give new values and nodes names that nothing else has; results of calls keep theirs."""
        new, taken = [], set()
        for body, value in self._named():
            if value in self._values or (body, value.name) in self._results:
                taken.add(str(value.name))
            else:
                new.append(value)
        for value in new:
            value.name = graphs.unique_name(str(value.name), taken)
        nodes = [node for node in self._graph.all_nodes() if node.name]
        taken = {str(node.name) for node in nodes if node in self._nodes}
        for node in nodes:
            if node not in self._nodes:
                node.name = graphs.unique_name(str(node.name), taken)

    def _named(self) -> Iterator[tuple[ir.Graph, ir.Value]]:
        for body in (self._graph, *self._graph.subgraphs()):
            made = (output for node in body for output in node.outputs)
            for value in dict.fromkeys([*body.inputs, *body.initializers.values(), *made]):
                if value.name:
                    yield body, value


def fits(function: ir.Function, model: ir.Model) -> bool:
    """Whether what a function says means the same in the model's opsets."""
    return all(
        model.opset_imports.get(domain, version) == version
        or (
            domain in graphs.STANDARD_DOMAINS
            and _is_same(function, version, model.opset_imports[domain])
        )
        for domain, version in function.opset_imports.items()
    )


def _is_same(function: ir.Function, one: int, two: int) -> bool:
    operators = {
        node.op_type for node in function.all_nodes() if node.domain in graphs.STANDARD_DOMAINS
    }
    return all(_since(op_type, one) == _since(op_type, two) for op_type in operators)


def _since(op_type: str, opset: int) -> int:
    try:
        return onnx.defs.get_schema(op_type, opset, "").since_version
    except onnx.defs.SchemaError:
        return 0
