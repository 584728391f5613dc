"""Where an aggregator multiplies the features of tiles with weights: what is worth a lower precision."""

from __future__ import annotations

from collections.abc import Iterator

from cmamil_sdk.engines.onnx_parts import OnnxParts, Step

LEAST_WIDTH = 256
"""Of features: the products of narrower ones are too small a part of a run."""

_ELEMENTWISE = frozenset(["Add", "Clip", "Div", "Max", "Min", "Mul", "Sub"])
_PRODUCTS = frozenset(["Gemm", "MatMul"])


def takes_bags(graph: OnnxParts) -> bool:
    """Whether a graph is an aggregator: it takes features ``[n, D]`` in float32 for any n."""
    return any(_width(graph, name) is not None for name in graph.inputs)


def wide_products(graph: OnnxParts) -> dict[str, list[str]]:
    """By input, the first products ``[n, E]`` of its features ``[n, D]`` with weights, their bias added.

    Between features and product each number is standardised by itself. Features narrower than
    :data:`LEAST_WIDTH` are left out.
    """
    wide = [name for name in graph.inputs if (_width(graph, name) or 0) >= LEAST_WIDTH]
    found = {name: list(_products_of(graph, name)) for name in wide}
    return {name: products for name, products in found.items() if products}


def _width(graph: OnnxParts, name: str) -> int | None:
    """D of features ``[n, D]`` in float32 with any n; None for other tensors."""
    port = graph.port(name)
    if port is None or port.kind != "float32" or len(port.shape) != 2:
        return None
    rows, width = port.shape
    return width if isinstance(rows, str) and isinstance(width, int) else None


def _products_of(graph: OnnxParts, features: str) -> Iterator[str]:
    standardised = {features}
    for step in graph.steps:
        if not _is_of_rows(graph, step, features, standardised):
            continue
        if step.operator in _ELEMENTWISE:
            standardised.update(step.outputs)
        elif step.operator in _PRODUCTS and step.inputs[0] in standardised:
            yield _with_bias(graph, step, features)


def _is_of_rows(graph: OnnxParts, step: Step, features: str, rows: set[str]) -> bool:
    """Whether each row of what a step gives depends on that row of ``rows`` alone, by constants."""
    (output,) = step.outputs[:1] or ("",)
    here, there = graph.port(features), graph.port(output)
    taken = step.reads - graph.constants
    return (
        len(taken) == 1
        and taken <= rows
        and there is not None
        and here is not None
        and _width(graph, output) is not None
        and there.shape[0] == here.shape[0]
    )


def _with_bias(graph: OnnxParts, product: Step, features: str) -> str:
    """What the sum with a constant gives, if that is all that a product goes into, else the product."""
    (output,) = product.outputs
    takers = [step for step in graph.steps if output in step.reads]
    is_sum = len(takers) == 1 and takers[0].operator == "Add" and output not in graph.outputs
    if is_sum and _is_of_rows(graph, takers[0], features, {output}):
        return takers[0].outputs[0]
    return output


__all__ = ["LEAST_WIDTH", "takes_bags", "wide_products"]
