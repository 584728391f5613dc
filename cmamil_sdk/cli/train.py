"""``cmamil train``: features and labels to a run directory.

Every field of the training configuration is an option of the same name; the options are made from
the configuration's own description, so that the two cannot differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import Progress, note, say, say_json, table
from cmamil_sdk.cli.sources import SOURCE_OPTIONS, features_of
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
_METRICS = ("accuracy", "balanced_accuracy", "auc", "f1", "ece", "coarse_auc", "parent_accuracy")


def run(config: Path | None, json: bool, **options: Any) -> None:
    """Train a model with cross-validation; a killed run goes on when it is started again.

    Options override those in the --config file.
    """
    from cmamil_sdk.training.config import load_config, make_config
    from cmamil_sdk.training.yaml_files import INPUTS, read_inputs

    given = {name: value for name, value in options.items() if value is not None}
    paths = {name: given.pop(name) for name in INPUTS if name in given}
    settings = make_config(**given) if config is None else load_config(config, **given)
    if config is not None:
        paths = read_inputs(config) | paths
    results_dir = paths.get("results_dir", Path("results"))
    from cmamil_sdk.training.run import train  # takes seconds: wrong options are refused before

    with Progress("training") as progress:

        def report(fold: int, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
            figures = " ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            progress.update(epoch, epochs, f"fold {fold} {figures}, epoch")

        summary = train(
            settings,
            features=features_of(paths),
            labels=paths.get("labels"),
            run=results_dir,
            splits=paths.get("splits"),
            on_progress=report,
            on_resume=note,
        )
    if json:
        say_json(summary)
    else:
        say(metrics_table(summary))
        say(f"{results_dir}, {summary['seconds']:.1f} s")


def metrics_table(summary: Mapping[str, Any]) -> str:
    """Test metrics: of each fold with mean and standard deviation, or of the one; 95 % intervals."""
    names = [name for name in _METRICS if name in summary["mean"]]
    if len(summary["folds"]) == 1:
        lines = {"value": summary["mean"]}
    else:
        lines = {f"fold {fold['fold']}": fold["test"] for fold in summary["folds"]}
        lines |= {name: summary[name] for name in ("mean", "std")}
    rows = [[title, *(_shown(values.get(n)) for n in names)] for title, values in lines.items()]
    rows.append(["95 % interval", *(_interval(summary["ci95"].get(n)) for n in names)])
    return table(["test", *names], rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: list[float] | None) -> str:
    return "-" if not bounds or None in bounds else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _options() -> list[inspect.Parameter]:
    """The parameters that Typer reads: paths first, then one per configuration field."""
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


run.__signature__ = inspect.Signature(_options())  # type: ignore[attr-defined]
run.__annotations__ = {p.name: p.annotation for p in _options()}
