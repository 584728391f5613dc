"""``cmamil train``: features and labels to a run directory.

Every field of the training configuration is an option of the same name (train_options.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import typer.main
from typer.core import TyperCommand

from cmamil_sdk.cli.output import Progress, note, say, say_json, table
from cmamil_sdk.cli.sources import features_of

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


# Typer finds no options here, so that it need not know them before this command is asked for.
run.__signature__ = inspect.Signature()  # type: ignore[attr-defined]


class TrainCommand(TyperCommand):
    """:func:`run` with its options, which are made when they are first asked for.

    They follow from the training configuration, whose import all other commands would wait for.
    """

    @cached_property
    def _whole(self) -> Any:
        from cmamil_sdk.cli.train_options import with_options

        program = typer.Typer(add_completion=False)
        program.command()(with_options(run))
        return typer.main.get_command(program)

    @property
    def params(self) -> list[Any]:
        """The options."""
        found: list[Any] = self._whole.params
        return found

    @params.setter
    def params(self, found: list[Any]) -> None:
        """Typer found none."""

    def invoke(self, ctx: Any) -> Any:
        """Train."""
        return self._whole.invoke(ctx)


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


__all__ = ["TrainCommand", "metrics_table", "run"]
