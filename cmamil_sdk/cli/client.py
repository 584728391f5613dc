"""``cmamil client``: ask a server, from here or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmamil_sdk.cli import client_jobs
from cmamil_sdk.cli.connection import Model, Mpp, ServerOptions, TopK, Uri, asks_server
from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import Progress, note, output_folder, printable, say, say_json, table
from cmamil_sdk.wording import counted

if TYPE_CHECKING:
    from cmamil_sdk.client import ServerLimits

app = typer.Typer(
    help="Talk to a server: health, models, info, stats, inspect, predict, features, jobs, upload, "
    "delete; load, unload, set-default.",
    no_args_is_help=True,
)
app.add_typer(client_jobs.app, name="jobs")

Version = Annotated[str, typer.Argument(metavar="NAME/VERSION", help="Of a loaded model.")]


@app.command()
@asks_server
def health(options: ServerOptions, json: Json = False) -> None:
    """Exit 0 only when the server is SERVING, else 4."""
    with options.client() as client:
        status = client.health()
    if json:
        say_json({"server": options.server, "status": status})
    else:
        say(status)
    if status != "SERVING":
        raise typer.Exit(4)


@app.command()
@asks_server
def models(options: ServerOptions, json: Json = False) -> None:
    """The models the server has, with labels and scales; * marks the default of its name."""
    with options.client() as client:
        found = client.models()
    if json:
        say_json([vars(model) | {"labels": list(model.labels)} for model in found])
        return
    rows = [
        [
            f"{m.name}{'*' if m.is_default else ''}",
            m.state,
            m.kind,
            m.encoder,
            ",".join(m.scales),
            ",".join(m.labels),
            m.bundle_sha256[:12],
        ]
        for m in found
    ]
    say(table(["model", "state", "kind", "encoder", "scales", "labels", "sha256"], rows))


@app.command()
@asks_server
def load(
    options: ServerOptions,
    bundle: Annotated[
        str, typer.Argument(help="Directory of a bundle beneath a bundle root of the server.")
    ],
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Give up after so long.")] = 900.0,
) -> None:
    """Load a bundle and wait until it is ready; which version is the default does not change."""
    with options.client(timeout_s=timeout_s) as client:
        model = client.load_model(bundle)
    say(f"{model.name} is {model.state}, sha256 {model.bundle_sha256[:12]}")


@app.command()
@asks_server
def unload(
    options: ServerOptions,
    model: Version,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Wait for so long.")] = 900.0,
) -> None:
    """Unload a version, after the requests that are at work with it."""
    with options.client(timeout_s=timeout_s) as client:
        client.unload_model(model)
    say(f"{model} is unloaded")


@app.command()
@asks_server
def set_default(options: ServerOptions, model: Version) -> None:
    """Choose which version the model's name alone means, until the server ends."""
    with options.client() as client:
        found = client.set_default_version(model)
    say(f"{found.name} is the default")


@app.command()
@asks_server
def info(options: ServerOptions, json: Json = False) -> None:
    """Versions, the engines in use, the workers and what they have done; --json tells the limits, too."""
    from dataclasses import asdict

    with options.client() as client:
        facts = client.server_info()
    if json:
        say_json(asdict(facts))
        return
    say(
        f"cmamil-sdk {facts.version}, up {facts.uptime_s:.0f} s, "
        f"{counted(facts.tiles_decoded, 'tile')} decoded"
    )
    if facts.git_revision:
        say(f"git {facts.git_revision}")
    for gpu in facts.gpus:
        say(f"GPU {gpu}")
    say(f"{counted(facts.active_slides, 'slide')} at work, {facts.queued_slides} waiting")
    for name, (encoder, aggregator) in facts.engines.items():
        mark = "*" if name in facts.defaults else ""
        say(f"{name}{mark}: encoder on {encoder}, aggregator on {aggregator}")
        say(f"  {facts.reasons[name]}")
    rows = [[n, w.state, w.restarts, w.tiles] for n, w in enumerate(facts.workers)]
    say(table(["worker", "state", "restarts", "tiles"], rows))
    say(
        f"takes at most {counted(facts.limits.max_active_slides, 'slide')} at work and "
        f"{facts.limits.max_queued} waiting, {counted(facts.limits.max_tiles, 'tile')} a slide, messages "
        f"of {facts.limits.max_message_bytes} bytes; {_kept(facts.limits)}"
    )


@app.command()
@asks_server
def stats(options: ServerOptions, json: Json = False) -> None:
    """Calls, stages and tiles since the server started, and what its cache, jobs and uploads hold."""
    from dataclasses import asdict

    with options.client() as client:
        found = client.server_stats()
    if json:
        say_json(asdict(found))
        return
    calls = [[c.rpc, c.model, c.code, c.count] for c in found.calls]
    say(table(["method", "model", "status", "calls"], calls))
    means = [[n, s.count, f"{s.total_s / max(1, s.count):.3f}"] for n, s in found.stages.items()]
    say(table(["stage", "predictions", "mean seconds"], means))
    say(
        f"{counted(found.tiles_ok, 'tile')} in batches of about "
        f"{found.tiles_ok / max(1, found.batches):.0f}, {found.tiles_failed} failed; "
        f"{counted(found.worker_restarts, 'worker restart')}"
    )
    if found.cache is not None:
        cache = found.cache
        say(f"cache: {cache.hits} found, {cache.misses} not, {cache.bytes} bytes")
    if found.jobs is not None:
        say("jobs: " + ", ".join(f"{count} {state}" for state, count in vars(found.jobs).items()))
    if found.uploads is not None:
        held = found.uploads
        say(
            f"uploads: {counted(held.slides, 'slide')} of {held.bytes} bytes, {held.arriving} on their "
            f"way with {held.arriving_bytes} bytes"
        )


def _kept(limits: ServerLimits) -> str:
    """Which of cache, jobs and uploads the server has."""
    parts = {"cache": limits.cache, "jobs": limits.jobs, "uploads": limits.uploads}
    return ", ".join(f"{name} {'off' if part is None else 'on'}" for name, part in parts.items())


@app.command()
@asks_server
def inspect(
    options: ServerOptions,
    uri: Uri,
    mpp: Mpp = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """What a slide is, and how many tiles the model would take of it."""
    from cmamil_sdk.cli.inspect import say_plainly

    with options.client() as client:
        document = client.inspect(uri, mpp=mpp, model=model).to_json()
    if json:
        say_json(document)
    else:
        say_plainly(document)


@app.command()
@asks_server
def predict(
    options: ServerOptions,
    uri: Uri,
    mpp: Mpp = None,
    model: Model = None,
    top_k: TopK = 16,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Give up after so long.")] = 900.0,
    json: Json = False,
) -> None:
    """Predict one slide, with progress; --json prints the document of `cmamil predict` for it."""
    from cmamil_sdk.cli.predict import predictions_table, say_warnings
    from cmamil_sdk.slides.open import check_mpp

    check_mpp(mpp)
    with (
        options.client(timeout_s=timeout_s) as client,
        Progress(Path(uri).name) as progress,
    ):
        prediction = client.predict(
            uri,
            mpp=mpp,
            top_k=top_k,
            model=model,
            on_progress=lambda event: progress.update(event.done, event.total, event.stage),
        )
    say_warnings(prediction)
    if json:
        say_json(prediction.to_json())
    else:
        say(predictions_table([prediction]))


@app.command()
@asks_server
def features(
    options: ServerOptions,
    uri: Uri,
    out: Annotated[Path, typer.Option(help="Folder for the feature file.")],
    mpp: Mpp = None,
    model: Model = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Give up after so long.")] = 900.0,
    json: Json = False,
) -> None:
    """Write the features of one slide to OUT/<slide>.h5, as `cmamil features` does for a file here."""
    from cmamil_sdk.features.file import write_feature_file
    from cmamil_sdk.features.slide import feature_file_name
    from cmamil_sdk.slides.open import check_mpp

    check_mpp(mpp)
    output_folder(out)
    warnings: list[str] = []
    with (
        options.client(timeout_s=timeout_s) as client,
        Progress(Path(uri).name) as progress,
    ):
        bag, provenance = client.extract_features(
            uri,
            mpp=mpp,
            model=model,
            on_progress=lambda event: progress.update(event.done, event.total, event.stage),
            on_warning=warnings.append,
        )
    for warning in warnings:
        note(f"{printable(bag.slide_id)}: warning: {warning}")
    file = out / feature_file_name(provenance.slide_id)
    replaced = file.exists()
    write_feature_file(file, bag, provenance)
    if replaced:
        note(f"{printable(file.name)}: in place of an older file")
    if json:
        document = {"slide": bag.slide_id, "file": str(file), "tiles": bag.counts()}
        say_json(document | {"tiles_failed": provenance.tiles_failed, "engine": provenance.engine})
    else:
        say(
            table(
                ["slide", *bag.counts(), "lost", "file"],
                [[bag.slide_id, *bag.counts().values(), provenance.tiles_failed, str(file)]],
            )
        )


@app.command()
@asks_server
def upload(
    options: ServerOptions,
    slide: Annotated[Path, typer.Argument(help="The slide's file on this machine.")],
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Give up after so long.")] = 3600.0,
    json: Json = False,
) -> None:
    """Send a slide to the server and print its upload:ID, which the other commands take as a URI."""
    with options.client(timeout_s=timeout_s) as client, Progress(slide.name) as progress:
        found = client.upload_slide(
            slide, on_progress=lambda event: progress.update(event.done, event.total, event.stage)
        )
    if json:
        expires = found.expires.isoformat(timespec="seconds")
        say_json({"slide_id": found.slide_id, "uri": found.uri, "expires": expires})
    else:
        say(found.uri)


@app.command()
@asks_server
def delete(
    options: ServerOptions,
    uri: Annotated[str, typer.Argument(help="upload:ID of a slide that you have uploaded.")],
) -> None:
    """Remove an uploaded slide from the server before it expires."""
    with options.client() as client:
        client.delete_slide(uri)
