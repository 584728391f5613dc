"""A bundle that a test may damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def copy_of_bundle(tiny_bundle, tmp_path) -> Path:
    """A copy whose files are links: replace them, never write into them."""
    copy = tmp_path / "tiny" / "1"
    copy.mkdir(parents=True)
    for file in tiny_bundle.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


@pytest.fixture
def replace_file(copy_of_bundle) -> Callable[..., None]:
    """Replace a file of the copy; ``fix_hash`` also makes the manifest agree with it."""

    def replace(name: str, data: bytes, *, fix_hash: bool = False) -> None:
        path = copy_of_bundle / name
        path.unlink()
        path.write_bytes(data)
        if fix_hash:
            manifest = copy_of_bundle / "manifest.json"
            document = json.loads(manifest.read_bytes())
            document["files"][name] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
            }
            manifest.unlink()
            manifest.write_text(json.dumps(document))

    return replace
