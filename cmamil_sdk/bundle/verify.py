"""What is checked of a bundle's files before anything in them is used."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from pathlib import Path
from typing import BinaryIO

from cmamil_sdk.bundle.manifest import MANIFEST, SCHEMA_VERSION, Manifest
from cmamil_sdk.errors import BundleCorrupt, BundleUnsupported
from cmamil_sdk.files import open_listed, parse_document

_ELSEWHERE = re.compile(rb"\x6a[\x00-\xff]{1,2}\x0a\x08location\x12", re.DOTALL)
"""How the field of a tensor starts that names the file of its values (``external_data`` of onnx.proto).

Found in the bytes, because a machine that serves has no package to parse them with.
"""


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """The manifest of a bundle and its sha256.

    Raises:
        BundleCorrupt: missing or damaged.
        BundleUnsupported: written by a newer version.
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        document = json.loads(data)
    except OSError as problem:
        raise BundleCorrupt(
            f"{path} is no bundle, it has no readable {MANIFEST}; name the directory "
            "<name>/<version> that `cmamil export` wrote."
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise BundleCorrupt(f"{file} is not JSON ({problem}); export the model again.") from problem
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise BundleUnsupported(
            f"{file} has schema version {version}, this version reads up to {SCHEMA_VERSION}; "
            "update cmamil-sdk."
        )
    manifest = parse_document(Manifest, document, where=file, error=BundleCorrupt)
    return manifest, hashlib.sha256(data).hexdigest()


def verify_files(path: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest: whether the bundle is whole, before anything is loaded.

    What is loaded later is compared once more, as it is read (``hashes`` of
    :func:`~cmamil_sdk.engines.load_engine`).

    Raises:
        BundleCorrupt: missing, or size or hash differ.
        BundleUnsupported: a graph keeps weights in a file of its own.
    """
    for name, entry in manifest.files.items():
        with open_listed(path / name, entry.sha256) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise BundleCorrupt(
                    f"{path / MANIFEST} says that {name} has {entry.size} bytes, it has {size}; copy the "
                    "bundle again."
                )
            if name.endswith(".onnx"):
                _refuse_external_data(path / name, file)


def _refuse_external_data(graph: Path, file: BinaryIO) -> None:
    """Refuse a graph whose weights lie in another file, wherever that is: no manifest lists it.

    Raises:
        BundleUnsupported: it names one.
    """
    if not os.fstat(
        file.fileno()
    ).st_size:  # an empty file cannot be mapped; the runtime refuses it
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        elsewhere = _ELSEWHERE.search(data) is not None
    if elsewhere:
        raise BundleUnsupported(
            f"{graph} keeps weights in another file, which the bundle's manifest does not list; export "
            "the model again."
        )


__all__ = ["read_manifest", "verify_files"]
