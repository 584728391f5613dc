"""``cmamil client jobs``: predictions that a server keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmamil_sdk.cli.connection import Model, Mpp, ServerOptions, TopK, Uri, asks_server
from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import Progress, say, say_json, table

if TYPE_CHECKING:
    from cmamil_sdk.client import PredictionJob

app = typer.Typer(
    help="Predictions that the server keeps, whoever is connected: create, list, show, watch, "
    "cancel, delete.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The job's name, as `create` printed it: jobs/UUID.")]


@app.command()
@asks_server
def create(
    options: ServerOptions,
    uri: Uri,
    mpp: Mpp = None,
    model: Model = None,
    top_k: TopK = 16,
    attention: Annotated[
        bool, typer.Option("--attention", help="Keep the maps of all tiles as well.")
    ] = False,
    request_id: Annotated[
        str, typer.Option(help="A UUID of yours: repeated, it makes no second job.")
    ] = "",
    json: Json = False,
) -> None:
    """Have a slide predicted, and print the name of the job."""
    from cmamil_sdk.slides.open import check_mpp

    check_mpp(mpp)
    with options.client() as client:
        job = client.create_job(
            uri, mpp=mpp, model=model, top_k=top_k, attention=attention, request_id=request_id
        )
    if json:
        say_json(job.to_json())
    else:
        say(job.name)


@app.command("list")
@asks_server
def list_jobs(
    options: ServerOptions,
    state: Annotated[
        str | None, typer.Option(help="pending, running, succeeded, failed or cancelled.")
    ] = None,
    json: Json = False,
) -> None:
    """Your jobs, the newest first."""
    with options.client() as client:
        found = list(client.jobs(state=state))
    if json:
        say_json([job.to_json() for job in found])
        return
    rows = [[job.name, job.state, job.slide, job.model, _minute(job)] for job in found]
    say(table(["job", "state", "slide", "model", "created"], rows))


@app.command()
@asks_server
def show(options: ServerOptions, name: Name, json: Json = False) -> None:
    """Where a job stands, and its prediction or error once it has one."""
    with options.client() as client:
        job = client.job(name)
    if json:
        say_json(job.to_json())
    else:
        _say_plainly(job)


@app.command()
@asks_server
def watch(
    options: ServerOptions,
    name: Name,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Give up after so long.")] = 86_400.0,
    json: Json = False,
) -> None:
    """Wait for a job, with progress; ends as `cmamil client predict` would, 1 if it was cancelled."""
    with options.client() as client, Progress(name) as progress:
        job = client.watch_job(
            name,
            timeout_s=timeout_s,
            on_progress=lambda event: progress.update(event.done, event.total, event.stage),
        )
    if json:
        say_json(job.to_json())
    if job.error is not None:
        raise job.error
    if not json:
        _say_plainly(job)
    if job.prediction is None:
        raise typer.Exit(1)


@app.command()
@asks_server
def cancel(options: ServerOptions, name: Name, json: Json = False) -> None:
    """End a job that waits or is at work."""
    with options.client() as client:
        job = client.cancel_job(name)
    if json:
        say_json(job.to_json())
    else:
        _say_plainly(job)


@app.command()
@asks_server
def delete(options: ServerOptions, name: Name) -> None:
    """Have the server forget a job; one that has not ended is cancelled first."""
    with options.client() as client:
        client.delete_job(name)


def _say_plainly(job: PredictionJob) -> None:
    from cmamil_sdk.cli.predict import predictions_table, say_warnings

    line = f"{job.name} of {Path(job.slide).name}: {job.state}"
    if job.state == "PENDING":
        line += f", {job.queue_position} before it"
    elif job.progress is not None:
        line += f", {job.progress.stage} {job.progress.done} of {job.progress.total}"
    elif job.error is not None:
        line += f", {job.error.reason}: {job.error}"
    say(line)
    if job.prediction is not None:
        say_warnings(job.prediction)
        say(predictions_table([job.prediction]))


def _minute(job: PredictionJob) -> str:
    return f"{job.created.astimezone():%Y-%m-%d %H:%M}"
