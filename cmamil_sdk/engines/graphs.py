"""Which file holds a graph in a precision, and what a graph says of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmamil_sdk.engines.base import Precision
from cmamil_sdk.errors import EngineMissing
from cmamil_sdk.files import read_listed

STORED_PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
"""Those with a graph of their own; bf16 is a way to compute the graph in fp32, or its two parts."""

PRECISION_KEY = "cmamil_precision"
"""Under this name the metadata of a graph of its own says its precision."""


def graph_in(graph: Path, precision: Precision) -> Path:
    """The file beside ``graph`` that holds it in ``precision``: ``encoder.int8.onnx``, for example."""
    if precision not in STORED_PRECISIONS:
        return graph
    return graph.with_name(f"{graph.stem}.{precision}{graph.suffix}")


def stored_graph(
    graph: Path, precision: Precision, hashes: Mapping[str, str] | None = None
) -> Path:
    """The same, if there is such a file where it is one of its own; one that ``hashes`` list, if given.

    Raises:
        EngineMissing: there is none.
    """
    found = graph_in(graph, precision)
    if found != graph and not _is_there(found, hashes):
        raise EngineMissing(
            f"There is no graph in {precision} beside {graph} ({found.name}); export the run with "
            f"--precision {precision}, or use --precision auto."
        )
    return found


def split_graphs(graph: Path) -> tuple[Path, Path]:
    """The files beside an aggregator's graph that hold it in bf16: what takes products, and these.

    ``aggregator.bf16.products.onnx`` multiplies features with weights in one product or several, called
    ``<features>.<number>``, and ``aggregator.bf16.onnx`` takes them in place of features.
    """
    names = (f"{graph.stem}.bf16{graph.suffix}", f"{graph.stem}.bf16.products{graph.suffix}")
    return graph.with_name(names[0]), graph.with_name(names[1])


def is_split(graph: Path, hashes: Mapping[str, str] | None = None) -> bool:
    """Whether a graph lies there in these parts; in such as ``hashes`` list, if given."""
    return all(_is_there(part, hashes) for part in split_graphs(graph))


def hashes_read(graph: Path, precision: Precision, hashes: Mapping[str, str]) -> dict[str, str]:
    """Of ``hashes``, those that an engine needs to load a graph in ``precision``."""
    names = [graph_in(graph, precision).name]
    if precision == "bf16" and is_split(graph, hashes):
        names += [part.name for part in split_graphs(graph)]
    return {name: hashes[name] for name in names}


def _is_there(file: Path, hashes: Mapping[str, str] | None) -> bool:
    return file.is_file() if hashes is None else file.name in hashes


def graph_source(graph: Path, sha256: str | None) -> Path | bytes:
    """What a runtime is to open: the file's bytes, if these are known; else the file, whatever is in it.

    Raises:
        BundleCorrupt: the bytes are not those of ``sha256``, or there are none.
    """
    return graph if sha256 is None else read_listed(graph, sha256)


__all__ = [
    "PRECISION_KEY",
    "STORED_PRECISIONS",
    "graph_in",
    "graph_source",
    "hashes_read",
    "is_split",
    "split_graphs",
    "stored_graph",
]
