"""Spellings that scripts written for CMA-MIL's own tools use, turned into ours."""

from __future__ import annotations

from collections.abc import Sequence

_ALIASES = {
    "--out-dir": "--out",
    "--num-workers": "--workers",
    "--feature-directory": "--features",
    "--label-csv": "--labels",
    "--split-csv-root": "--splits",
}
_ALIASES_OF_COMMAND = {
    "split": {"--root": "--out"},
    "train": {"--root": "--results-dir"},
}
_TAKES_SEVERAL = {"--slides", "--bundles", "--slides-root", "--rows", "--seeds", "--magnifications"}


def normalise(arguments: Sequence[str]) -> list[str]:
    """Rewrite ``_`` to ``-`` in option names, apply aliases, and repeat options given several values.

    ``--slides a.svs b.svs`` becomes ``--slides a.svs --slides b.svs``. Everything after ``--`` is
    left alone.
    """
    command = next((token for token in arguments if not token.startswith("-")), "")
    aliases = _ALIASES | _ALIASES_OF_COMMAND.get(command, {})
    result: list[str] = []
    repeat: str | None = None
    values = 0
    for position, token in enumerate(arguments):
        if token == "--":
            return [*result, *arguments[position:]]
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            name = name.replace("_", "-")
            name = aliases.get(name, name)
            repeat = name if name in _TAKES_SEVERAL and not equals else None
            values = 0
            result.append(name + equals + value)
            continue
        if token.startswith("-"):
            repeat = None
        if repeat is not None:
            if values:
                result.append(repeat)
            values += 1
        result.append(token)
    return result


__all__ = ["normalise"]
