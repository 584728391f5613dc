"""The program: commands, error messages and exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from cmamil_sdk import __version__
from cmamil_sdk.cli import (
    bench,
    client,
    demo,
    doctor,
    evaluate,
    export,
    features,
    inspect,
    plans,
    predict,
    serve,
    split,
    tile,
    train,
    verify,
)
from cmamil_sdk.cli.arguments import normalise
from cmamil_sdk.cli.output import note
from cmamil_sdk.errors import (
    CmamilError,
    DependencyMissing,
    MemoryTooSmall,
    OutputUnwritable,
    UnexpectedError,
)

_INTERRUPTED = 130

app = typer.Typer(
    help="CMA-MIL and HMIL for whole-slide images: train, export, serve, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cmamil {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """CMA-MIL and HMIL for whole-slide images: train, export, serve, measure."""


app.command("doctor")(doctor.run)
app.command("inspect")(inspect.run)
app.command("tile")(tile.run)
app.command("features")(features.run)
app.command("split")(split.run)
app.command("train", cls=train.TrainCommand)(train.run)
app.command("evaluate")(evaluate.run)
app.command("export")(export.run)
app.command("verify")(verify.run)
app.command("plans")(plans.run)
app.command("predict")(predict.run)
app.command("serve")(serve.run)
app.add_typer(client.app, name="client")
app.add_typer(bench.app, name="bench")
app.command("demo")(demo.run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit status (0 done, 1 some slides failed, 2 usage or
    configuration, 3 input, 4 missing capability, 5 internal)."""
    given = normalise(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for decoder in ("tifffile", "imagecodecs"):  # damaged files get our own message
        logging.getLogger(decoder).setLevel(logging.CRITICAL)
    try:
        app([token for token in given if token != "--debug"])
    except KeyboardInterrupt:  # a second one, while the first was on its way here
        _end_interrupted()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _end_interrupted()
        raise
    except CmamilError as error:
        _fail(error, debug)
    except ModuleNotFoundError as problem:
        _fail(_missing(problem), debug)
    except MemoryError:
        _fail(MemoryTooSmall("There is not enough memory; use a larger machine."), debug)
    except OSError as problem:
        _fail(OutputUnwritable(f"{problem}; free space, or change permissions or paths."), debug)
    except Exception as problem:  # noqa: BLE001 - the last line of defence: no traceback for users
        shown = f"{type(problem).__name__}: {problem}"
        _fail(UnexpectedError(f"{shown}; run again with --debug and report what it prints."), debug)


def _end_interrupted() -> NoReturn:
    """Say so and leave; further Ctrl-C change nothing any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note("cmamil: interrupted; what is complete is kept, start again to go on.")
    if threading.active_count() > 1:
        # A second Ctrl-C has kept someone from waiting for worker threads. The interpreter would stop
        # them inside native code, which takes that for a crash and aborts.
        os._exit(_INTERRUPTED)
    sys.exit(_INTERRUPTED)


def _missing(problem: ModuleNotFoundError) -> DependencyMissing:
    return DependencyMissing(
        f"This command needs the Python package {problem.name}; install cmamil-sdk with the extra "
        "that holds it (cpu, train, export, serve, client)."
    )


def _fail(error: CmamilError, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    note(f"cmamil: {error.reason}: {error}")
    sys.exit(error.exit_code)


__all__ = ["app", "main"]
