"""The options of ``cmamil train``, made from the configuration's own description.

So the two cannot differ. Its import takes its time, so this module is imported by that command alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.sources import SOURCE_OPTIONS
from cmamil_sdk.training.config import TrainConfig, owners_of

_SPLITS_HELP = "Folds: a folder of ours, CLAM's (splits_<f>.csv) or CMA-MIL's (fold_<f>_*.csv)."
_RESULTS_HELP = "The run directory that is written (default: results)."
_CONFIG_HELP = "YAML with any of these options; its paths are relative to the file."
_OF_A_PANEL = "only hmil"
_PANELS = {
    "model": "Model",
    "bag_loss": "Losses",
    "hierarchy": f"Hierarchy and losses, {_OF_A_PANEL}",
    "epochs": "Optimisation",
    "folds": "Folds",
    "seed": "Run",
}
"""Groups of the configuration's options in the help, each by the option that it begins with."""


def with_options(run: Callable[..., None]) -> Callable[..., None]:
    """``run``, which takes anything, with the parameters that Typer is to read."""

    def whole(**options: Any) -> None:
        run(**options)

    parameters = _parameters()
    whole.__doc__ = run.__doc__
    whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    whole.__annotations__ = {p.name: p.annotation for p in parameters}
    return whole


def _parameters() -> list[inspect.Parameter]:
    """Paths first, then one per configuration field."""
    inputs: list[tuple[str, Any]] = [
        *SOURCE_OPTIONS.items(),
        ("splits", Annotated[Path | None, typer.Option(help=_SPLITS_HELP)]),
        ("results_dir", Annotated[Path | None, typer.Option(help=_RESULTS_HELP)]),
        ("config", Annotated[Path | None, typer.Option(help=_CONFIG_HELP)]),
    ]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)
        for name, annotation in inputs
    ]
    parameters.append(
        inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, annotation=Json, default=False)
    )
    panel = None
    for name, field in TrainConfig.model_fields.items():
        panel = _PANELS.get(name, panel)
        kind = _plain(field.annotation)
        choices = ", ".join(map(str, get_args(kind)))
        option = typer.Option(
            help=f"{choices}: {_help(name)}" if choices else _help(name),
            metavar="<choice>" if choices else None,
            show_default=False,
            rich_help_panel=panel,
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[kind | None, option],
                default=None,
            )
        )
    return parameters


def _help(name: str) -> str:
    """What a field means, which model alone has it, and its defaults."""
    field = TrainConfig.model_fields[name]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    owners = owners_of(name)
    told = f" ({owners})" if owners not in ("", _OF_A_PANEL) else ""
    own = extra.get("defaults", {})
    others = own.items() if isinstance(own, dict) else ()
    shown = "; ".join([str(field.default), *(f"{model}: {value}" for model, value in others)])
    # round brackets: typer's help takes square ones for markup and drops them
    default = "" if field.default is None else f" (default: {shown})"
    return f"{field.description}{told}{default}".replace("None", "unset")


def _plain(annotation: Any) -> Any:
    """The type as Typer takes it: no None, no constraints.

    A tuple of names is one string; a mapping comes from a file.
    """
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return _plain(next(a for a in get_args(annotation) if a is not type(None)))
    if get_origin(annotation) is dict:
        return Path
    return str if get_origin(annotation) is tuple else annotation


__all__ = ["with_options"]
