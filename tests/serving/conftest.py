"""A running server with the tiny bundle, and slides for it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cmamil_sdk.client import Client
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server, background_server
from cmamil_sdk.synthetic.svs import write_svs


@pytest.fixture(scope="session")
def slides_root(tmp_path_factory: pytest.TempPathFactory, synthetic_slide: Path) -> Path:
    """A slides root: two slides, one below a folder, and files that are none."""
    root = tmp_path_factory.mktemp("root")
    shutil.copy(synthetic_slide, root / "a.svs")
    (root / "folder").mkdir()
    shutil.copy(synthetic_slide, root / "folder" / "b c.svs")
    (root / "text.svs").write_text("this is no slide")
    return root


@pytest.fixture(scope="session")
def config(tiny_bundle: Path, slides_root: Path) -> ServerConfig:
    """Two workers, a free port."""
    return ServerConfig(
        bundles=(tiny_bundle,),
        slides_roots=(slides_root,),
        port=0,
        workers=2,
        grace_s=5.0,
    )


@pytest.fixture(scope="session")
def server(config: ServerConfig) -> Iterator[Server]:
    """A server that tests may use but not harm."""
    with background_server(config) as running:
        yield running


@pytest.fixture(scope="session")
def address(server: Server) -> str:
    """Where the shared server listens."""
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(address, timeout_s=60.0) as connected:
        yield connected


@pytest.fixture(scope="session")
def big_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,700 x 2,700 px of tissue at 20x: 189 tiles over three scales, 9 batches."""
    rng = np.random.default_rng(1)
    pixels = np.array([205, 130, 175]) + rng.normal(0, 18, (2700, 2700, 1))
    path = tmp_path_factory.mktemp("big") / "big.svs"
    write_svs(np.clip(pixels, 0, 255).astype(np.uint8), path, mpp=0.5, objective_power=20.0)
    return path


@pytest.fixture(scope="session")
def odd_worker() -> tuple[str, ...]:
    """Command of a worker that misbehaves by slide name."""
    return sys.executable, "-P", str(Path(__file__).with_name("odd_worker.py"))


Details = tuple[grpc.StatusCode, str, list[Any]]


@pytest.fixture
def raw_call() -> Callable[..., Details | bytes]:
    """Call a method with raw bytes; returns the answer, or code, reason and details of the error."""

    def call(address: str, method: str, data: bytes, *, timeout: float = 20.0) -> Details | bytes:
        with grpc.insecure_channel(address) as channel:
            try:
                return channel.unary_unary(method)(data, timeout=timeout)
            except grpc.RpcError as problem:
                return _details(problem)

    return call


def _details(problem: Any) -> Details:
    kinds = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
        )
    }
    status = rpc_status.from_call(problem)
    found, reason = [], ""
    for detail in status.details if status else ():
        message = kinds[detail.TypeName()]()
        detail.Unpack(message)
        found.append(message)
        if isinstance(message, error_details_pb2.ErrorInfo):
            assert message.domain == "cmamil.dev"
            reason = message.reason
    return problem.code(), reason, found
