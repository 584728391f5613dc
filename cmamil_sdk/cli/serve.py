"""``cmamil serve``: the gRPC server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import AllowFailedParity, Device, GraphEngineName, Precision, Reader
from cmamil_sdk.cli.output import say


def run(
    bundles: Annotated[list[Path], typer.Option(help="Bundle directories, <name>/<version>.")],
    slides_root: Annotated[
        list[Path], typer.Option(help="Slides are read beneath these folders only.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 50051,
    reader: Reader = "auto",
    engine: GraphEngineName = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    allow_failed_parity: AllowFailedParity = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per core by default.")
    ] = None,
    max_active_slides: Annotated[int, typer.Option(min=1, help="Slides worked on at a time.")] = 4,
    max_queued: Annotated[int, typer.Option(min=0, help="Slides that may wait.")] = 16,
) -> None:
    """Serve predictions. SIGTERM finishes the work in flight first; Ctrl-C ends at once."""
    import logging

    from cmamil_sdk.serving.config import ServerConfig
    from cmamil_sdk.serving.server import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = {
        "bundles": bundles,
        "slides_roots": slides_root,
        "host": host,
        "port": port,
        "reader": reader,
        "engine": engine,
        "device": device,
        "precision": precision,
        "allow_failed_parity": allow_failed_parity,
        "max_active_slides": max_active_slides,
        "max_queued": max_queued,
    }
    if workers is not None:
        settings["workers"] = workers
    config = ServerConfig.parse(settings, where="cmamil serve")
    serve(config, on_ready=lambda bound: say(f"serving on {host}:{bound}"))
