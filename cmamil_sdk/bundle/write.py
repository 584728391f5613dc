"""Finish a bundle: hash its files and write the manifest, in one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import get_args

from cmamil_sdk.bundle.manifest import (
    AGGREGATOR_GRAPH,
    ENCODER_GRAPH,
    GOLDEN,
    MANIFEST,
    Manifest,
    own_graphs,
)
from cmamil_sdk.bundle.plans import plan_files
from cmamil_sdk.engines.base import Precision
from cmamil_sdk.errors import OutputExists
from cmamil_sdk.files import FileEntry, write_json


def write_bundle(
    target: Path, fill: Callable[[Path], Callable[[dict[str, FileEntry]], Manifest]]
) -> Path:
    """Build a bundle in a temporary directory beside ``target`` and rename it when complete.

    Args:
        target: ``<out>/<name>/<version>``.
        fill: writes the graphs, golden values and plans into the directory it is given and
            returns a function from the hashed files to the manifest.

    Raises:
        OutputExists: there is a bundle at ``target``; a bundle is never written twice.
    """
    if target.exists():
        raise OutputExists(f"{target} exists already; choose another --version or --out.")
    is_first = not target.parent.exists()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        manifest_of = fill(temporary)
        manifest = manifest_of(hashed_files(temporary))
        write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_first:
            with suppress(OSError):  # it holds the bundle
                target.parent.rmdir()
    return target


def hashed_files(root: Path) -> dict[str, FileEntry]:
    """Every file under a bundle's directory but the manifest, which lists them."""
    own = (name for precision in get_args(Precision) for name in own_graphs(root, precision))
    names = (ENCODER_GRAPH, AGGREGATOR_GRAPH, *own, GOLDEN, *plan_files(root))
    return {name: FileEntry.of(root / name) for name in names}


__all__ = ["hashed_files", "write_bundle"]
