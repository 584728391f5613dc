"""An aggregator's graph in two parts: products of features with weights, and the rest.

Products are most of the arithmetic, gain by bf16 and lose little by it. What stands in front of them,
standardising and clipping, goes with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from cmamil_sdk.engines.graphs import split_graphs
from cmamil_sdk.files import write_atomic

from .graph import inputs_of, with_precision

LEAST_WIDTH = 256
"""Of features: the products of narrower ones are too small a part of a run."""

_ELEMENTWISE = frozenset(["Add", "Clip", "Div", "Max", "Min", "Mul", "Sub"])
_PRODUCTS = frozenset(["Gemm", "MatMul"])


def write_split(path: Path) -> bool:
    """Cut the graph of ``path`` behind its wide products and write both parts beside it, if it has any.

    Between :func:`~cmamil_sdk.engines.graphs.split_graphs` products are called ``<features>.<number>``.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    found = wide_products(graph)
    names = {
        product: f"{features}.{number}"
        for features, products in found.items()
        for number, product in enumerate(products)
    }
    if not names:
        return False
    ports = _ports(graph)
    between = [_renamed(ports[product], name) for product, name in names.items()]
    given = [helper.make_node("Identity", [p], [name]) for p, name in names.items()]
    taken = [helper.make_node("Identity", [name], [p]) for p, name in names.items()]
    rest_path, products_path = split_graphs(path)
    rest = [*taken, *_making(graph, [port.name for port in graph.output], names)]
    _write(rest_path, model, rest, [*between, *graph.input], graph.output)
    _write(products_path, model, [*_making(graph, names, ()), *given], graph.input, between)
    return True


def wide_products(graph: GraphProto) -> dict[str, list[str]]:
    """By input, the first products ``[n, E]`` of its features ``[n, D]`` with weights, their bias added.

    Between features and product each number is standardised by itself. Features narrower than
    :data:`LEAST_WIDTH` are left out. The types of tensors must be known.
    """
    rows = _Rows(graph)
    wide = [port.name for port in graph.input if (rows.width(port.name) or 0) >= LEAST_WIDTH]
    found = {name: list(rows.products_of(name)) for name in wide}
    return {name: products for name, products in found.items() if products}


class _Rows:
    """What a graph does to features row by row."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._ports = _ports(graph)
        self._constants = {tensor.name for tensor in graph.initializer} | {""}  # "": left out
        for node in graph.node:
            if self._constants.issuperset(inputs_of(node)):
                self._constants.update(node.output)

    def width(self, name: str) -> int | None:
        """D of features ``[n, D]`` in float32 with any n; None for other tensors."""
        if name not in self._ports:
            return None
        tensor = self._ports[name].type.tensor_type
        axes = tensor.shape.dim
        if tensor.elem_type != TensorProto.FLOAT or len(axes) != 2 or not axes[0].dim_param:
            return None
        return int(axes[1].dim_value) or None

    def products_of(self, features: str) -> Iterator[str]:
        """The first products of these features, as :func:`wide_products` says."""
        standardised = {features}
        for node in self._graph.node:
            if not self._is_by_row(node, features, standardised):
                continue
            if node.op_type in _ELEMENTWISE:
                standardised.update(node.output)
            elif node.op_type in _PRODUCTS and node.input[0] in standardised:
                yield self._with_bias(node, features)

    def _is_by_row(self, node: NodeProto, features: str, rows: Collection[str]) -> bool:
        """Whether each row that a node gives depends on that row of ``rows`` alone, by constants."""
        taken = {*inputs_of(node)} - self._constants
        return (
            len(taken) == 1
            and taken.issubset(rows)
            and self.width(node.output[0]) is not None
            and self._rows_of(node.output[0]) == self._rows_of(features)
        )

    def _rows_of(self, name: str) -> str:
        return str(self._ports[name].type.tensor_type.shape.dim[0].dim_param)

    def _with_bias(self, product: NodeProto, features: str) -> str:
        """What the sum with a constant gives, if a product goes into that alone; else the product."""
        (output,) = product.output
        takers = [node for node in self._graph.node if output in inputs_of(node)]
        is_sum = len(takers) == 1 and takers[0].op_type == "Add"
        is_inner = all(port.name != output for port in self._graph.output)
        if is_sum and is_inner and self._is_by_row(takers[0], features, {output}):
            return str(takers[0].output[0])
        return str(output)


def _ports(graph: GraphProto) -> dict[str, ValueInfoProto]:
    return {port.name: port for port in (*graph.input, *graph.output, *graph.value_info)}


def _renamed(port: ValueInfoProto, name: str) -> ValueInfoProto:
    renamed = ValueInfoProto(name=name)
    renamed.type.CopyFrom(port.type)
    return renamed


def _making(graph: GraphProto, outputs: Iterable[str], given: Collection[str]) -> list[NodeProto]:
    """The nodes that make ``outputs``, in order, where the tensors ``given`` are there already."""
    needed = {*outputs} - {*given}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= {*inputs_of(node)} - {*given}
            kept.append(node)
    return kept[::-1]


def _write(
    path: Path,
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Iterable[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
) -> None:
    """Write a part of ``model``, with those inputs and weights that its nodes take or that it gives."""
    used = {name for node in nodes for name in inputs_of(node)} | {port.name for port in outputs}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [port for port in inputs if port.name in used],
        outputs,
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    part = helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    with_precision(part, "bf16")
    write_atomic(path, part.SerializeToString())


__all__ = ["LEAST_WIDTH", "wide_products", "write_split"]
