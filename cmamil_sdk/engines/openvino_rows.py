"""Products of features with weights on OpenVINO, in blocks of fixed numbers of rows.

OpenVINO compiles anew for every number of rows, and every slide has another number of tiles. Here it is
compiled for one number, once. A block also stays in a core's cache on its way to the product.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from cmamil_sdk.engines.base import Precision
from cmamil_sdk.engines.openvino import compile_part

Float32 = npt.NDArray[np.float32]

EXACT_BELOW_ROWS = 512
"""Fewer rows are multiplied in float32: where tiles are few each weighs much, and rounding shows."""

_BLOCK_ROWS = EXACT_BELOW_ROWS
_EXACT_BLOCK_ROWS = 64


class RowProducts:
    """What the rows of one input are multiplied by, each by itself.

    Args:
        model: of ``graph``.
        graph: the file: features ``[n, D]`` of several inputs to products ``[n, E]``.
        features: the input.
        products: of these features, one or several outputs.
        precision: of the products; what is done to features before is computed in float32.
        streams: blocks at a time, each on one thread.

    Raises:
        BundleUnsupported: this runtime cannot run it.
        EngineMissing: this runtime does not compute it in ``precision``.
    """

    def __init__(
        self,
        model: ov.Model,
        graph: Path,
        features: str,
        products: Sequence[str],
        precision: Precision,
        *,
        streams: int,
    ) -> None:
        def compiled(kind: Precision, rows: int) -> _Requests:
            part = partial(_block_of, rows, features, products)
            return _Requests(compile_part(model, graph, kind, streams=streams, part=part))

        self._rounded = compiled(precision, _BLOCK_ROWS)
        self._exact = compiled("fp32", _EXACT_BLOCK_ROWS)

    def room(self, rows: int) -> list[Float32]:
        """Arrays for the products of so many rows."""
        return [np.empty((rows, width), np.float32) for width in self._exact.widths]

    def blocks(
        self, features: Float32, products: Sequence[Float32], exact_below_rows: int
    ) -> Iterator[_Block]:
        """What has to be done to fill ``products``; features are contiguous."""
        way = self._exact if len(features) < exact_below_rows else self._rounded
        for start in range(0, len(features), way.rows):
            yield _Block(way, features, products, start)


def multiply(
    jobs: Sequence[tuple[RowProducts, Float32]], streams: int, exact_below_rows: int
) -> list[list[Float32]]:
    """The products of each job's features, with so many blocks at a time."""
    answers = [products.room(len(features)) for products, features in jobs]
    blocks = chain.from_iterable(
        products.blocks(features, answer, exact_below_rows)
        for (products, features), answer in zip(jobs, answers, strict=True)
    )
    running: deque[_Block] = deque()
    with ExitStack() as started:  # whatever happens, no array may go while it is read or written
        for block in blocks:
            if len(running) == 2 * streams:  # so that no stream waits for this thread
                running.popleft().finish()
            block.start()
            started.callback(block.finish)
            running.append(block)
    return answers


class _Block:
    """Some rows of features, and where their products go.

    The last block begins so early that it is full, and gives only the rows that no other has given. Where
    there are fewer rows than a block has, it is padded.
    """

    def __init__(
        self, way: _Requests, features: Float32, products: Sequence[Float32], start: int
    ) -> None:
        first = max(0, min(start, len(features) - way.rows))
        self._way, self._given = way, slice(start - first, len(features) - first)
        self._features = features[first : first + way.rows]
        self._products = [product[start : start + way.rows] for product in products]
        self._read, self._written = self._features, self._products
        # a request reads and writes where arrays lie, if these are whole and may be written to
        if len(self._features) < way.rows or not features.flags.writeable:
            self._read = np.zeros((way.rows, features.shape[1]), np.float32)
            self._read[: len(self._features)] = self._features
        if any(len(product) < way.rows for product in self._products):
            self._written = [np.empty((way.rows, width), np.float32) for width in way.widths]
        self._request: ov.InferRequest | None = None

    def start(self) -> None:
        request = self._request = self._way.take()
        request.set_input_tensor(ov.Tensor(self._read, shared_memory=True))
        for number, product in enumerate(self._written):
            request.set_output_tensor(number, ov.Tensor(product, shared_memory=True))
        request.start_async()

    def finish(self) -> None:
        """Wait for it, and let go of what was copied for it; once."""
        request, self._request = self._request, None
        if request is None:
            return
        request.wait()
        self._way.give_back(request)
        if self._written is not self._products:
            for product, written in zip(self._products, self._written, strict=True):
                product[:] = written[self._given]
        self._read, self._written = self._features, self._products


class _Requests:
    """A compiled part, and requests to it that are idle."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.rows = int(compiled.input().get_shape()[0])
        self.widths = [int(output.get_shape()[1]) for output in compiled.outputs]
        self._compiled = compiled
        self._idle: list[ov.InferRequest] = []

    def take(self) -> ov.InferRequest:
        """One that nobody else has; list.pop and append are atomic."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()

    def give_back(self, request: ov.InferRequest) -> None:
        """Let others have it; it still names arrays that may go, and is told of new ones before use."""
        self._idle.append(request)


def _block_of(rows: int, name: str, products: Sequence[str], model: ov.Model) -> ov.Model:
    """For so many rows, and letting NaN through, of which OpenVINO's clipping makes a number."""
    results = [model.output(product).get_node() for product in products]
    part = ov.Model(results, [model.input(name).get_node()])
    features = part.input().get_node().output(0)
    part.reshape([rows, features.get_partial_shape()[1]])
    for node in part.get_ops():
        if node.get_type_name() == "MatMul":
            taken = node.input_value(0)
            if taken.get_shape() == features.get_shape():
                whole = ops.select(ops.equal(features, features), taken, features)
                node.input(0).replace_source_output(whole.output(0))
    part.validate_nodes_and_infer_types()
    return part


__all__ = ["EXACT_BELOW_ROWS", "RowProducts", "multiply"]
