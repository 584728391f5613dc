"""A server whose models are loaded and unloaded, and bundles for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmamil_sdk.client import Client
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server, background_server

ADMIN, CLINIC = "admin-token", "clinic-token"


def write_version(
    bundle: Path, root: Path, version: str, *, labels: str = "", **changes: Any
) -> Path:
    """A bundle beneath ``root`` as another version, with ``changes`` of its manifest.

    ``labels`` is put in front of each of its labels.
    """
    target = root / "tiny" / version
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["version"] = version
    manifest["labels"] = [f"{labels}{label}" for label in manifest["labels"]]
    (target / "manifest.json").write_text(json.dumps(manifest | changes))
    return target


def write_tokens(folder: Path) -> Path:
    """A token for an administrator, and one for who may predict."""
    path = folder / "tokens.txt"
    path.touch(mode=0o600)
    for name, role, token in (("root", "admin", ADMIN), ("clinic", "predict,metrics", CLINIC)):
        with path.open("a") as file:
            file.write(f"{name} {role} {hashlib.sha256(token.encode()).hexdigest()}\n")
    return path


@contextmanager
def administered(
    config: ServerConfig, folder: Path, worker_command: tuple[str, ...] | None = None
) -> Iterator[Server]:
    """A server that loads bundles beneath ``folder/roots``."""
    given = {
        "tokens": write_tokens(folder),
        "bundle_roots": (folder / "roots",),
        "engine": "onnxruntime",  # compiles nothing
    }
    settings = config.model_copy(update=given)
    if worker_command is None:
        with background_server(settings) as server:
            yield server
    else:
        with background_server(settings, worker_command=worker_command) as server:
            yield server


def admin_of(server: Server, *, timeout_s: float = 60.0) -> Client:
    """A client that may administer."""
    return Client(f"127.0.0.1:{server.port}", token=ADMIN, timeout_s=timeout_s)


def clinic_of(server: Server) -> Client:
    """A client that may predict."""
    return Client(f"127.0.0.1:{server.port}", token=CLINIC, timeout_s=60.0)
