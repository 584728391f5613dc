"""``cmamil serve``: the gRPC server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import AllowFailedParity, Device, GraphEngineName, Precision, Reader
from cmamil_sdk.cli.output import say

_SETTINGS = {
    "slides_root": "slides_roots",
    "bundle_root": "bundle_roots",
}  # options whose setting has another name


def run(
    context: typer.Context,
    bundles: Annotated[
        list[Path] | None, typer.Option(help="Bundle directories, <name>/<version>.")
    ] = None,
    slides_root: Annotated[
        list[Path] | None, typer.Option(help="Slides are read beneath these folders only.")
    ] = None,
    bundle_root: Annotated[
        list[Path] | None,
        typer.Option(help="Administrators may load bundles beneath these folders."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML with any settings of docs/serving.md, in place of options, which override it; "
            "its paths are relative to the file."
        ),
    ] = None,
    uploads: Annotated[
        Path | None,
        typer.Option(help="Folder for slides that clients upload; none are taken without."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 50051,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM of the server's certificate, then of intermediates.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key, without password.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="PEM; clients must show a certificate of one of these authorities."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Who may call: lines of name, roles, sha256 of a token.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve GET /metrics for Prometheus there.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of the metrics.")] = "127.0.0.1",
    health_port: Annotated[
        int | None, typer.Option(help="Answer health there as well, without TLS, for probes.")
    ] = None,
    health_host: Annotated[str, typer.Option(help="Address of that port.")] = "127.0.0.1",
    reflection: Annotated[
        bool, typer.Option("--reflection", help="Tell callers which methods there are.")
    ] = False,
    log_format: Annotated[str, typer.Option(help="text or json, a line each.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_slides: Annotated[
        bool, typer.Option("--log-slides", help="Write slides' addresses into the log.")
    ] = False,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Send traces there, OTLP over gRPC: http://HOST:4317.")
    ] = None,
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
    max_calls_per_client: Annotated[
        int, typer.Option(min=1, help="Calls of one client at a time.")
    ] = 16,
    jobs_file: Annotated[
        Path | None, typer.Option(help="Keep prediction jobs in this SQLite file.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep slides' features in this folder; off without.")
    ] = None,
    cache_max_bytes: Annotated[
        int, typer.Option(min=1, help="Largest size of that folder, bytes.")
    ] = 10 * 2**30,
    drain_delay_s: Annotated[
        float, typer.Option(min=0, help="Take new work for so long after SIGTERM.")
    ] = 0.0,
) -> None:
    """Serve predictions. SIGTERM finishes the work in flight first; Ctrl-C ends at once."""
    from cmamil_sdk.serving.config import load_config
    from cmamil_sdk.serving.logs import set_up_logging
    from cmamil_sdk.serving.server import serve

    given = {
        _SETTINGS.get(name, name): value
        for name, value in context.params.items()
        if name != "config" and _was_given(context, name)
    }
    settings = load_config(config, given)
    set_up_logging(settings.log_format, settings.log_level)
    serve(settings, on_ready=lambda bound: say(f"serving on {settings.host}:{bound}"))


def _was_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"
