"""YAML as a user writes it: option files and hierarchies.

PyYAML comes with the extra ``train``; it is imported when a file is read, because the command line
reads the options' names without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmamil_sdk.errors import ConfigInvalid

INPUTS = (
    "features",
    "labels",
    "splits",
    "data_root_5x",
    "data_root_10x",
    "data_root_20x",
    "results_dir",
)
"""What a configuration file may hold beside options of the training: what to read and write."""


def read_mapping(path: Path) -> dict[Any, Any]:
    """Read a YAML file of ``name: value`` lines; an empty file is an empty mapping.

    Raises:
        ConfigInvalid: unreadable, or not a mapping.
    """
    import yaml  # noqa: PLC0415

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise _unreadable(path, problem) from problem
    if not isinstance(document, dict):
        raise ConfigInvalid(f"{path} must hold 'name: value' lines; mend the file.")
    return document


def read_inputs(path: Path) -> dict[str, Path]:
    """The paths that a YAML configuration holds, relative to the file.

    Raises:
        ConfigInvalid: unreadable, or a value is no path.
    """
    document = read_mapping(path)
    found = {name: document[name] for name in INPUTS if document.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, str):
            raise ConfigInvalid(f"{path}: {name} {value!r} is no path; write one, or remove it.")
    return {name: path.parent / value for name, value in found.items()}


def read_hierarchy(path: Path) -> dict[str, str]:
    """Read a YAML file of ``label: coarse label`` lines; every name is text as it stands.

    Raises:
        ConfigInvalid: unreadable, not such lines, or a label is named twice.
    """
    import yaml  # noqa: PLC0415

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise _unreadable(path, problem) from problem
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    if not pairs or not all(isinstance(n, yaml.ScalarNode) for pair in pairs for n in pair):
        raise ConfigInvalid(f"{path} must hold 'label: coarse label' lines; mend the file.")
    parent_of: dict[str, str] = {}
    for label, coarse in pairs:
        if label.value in parent_of:
            raise ConfigInvalid(f"{path} names the label {label.value!r} twice; keep one line.")
        parent_of[label.value] = coarse.value
    return parent_of


def _unreadable(path: Path, problem: Exception) -> ConfigInvalid:
    first_line = str(problem).splitlines()[0]
    return ConfigInvalid(f"{path} cannot be read ({first_line}); mend the file.")


__all__ = ["INPUTS", "read_hierarchy", "read_inputs", "read_mapping"]
