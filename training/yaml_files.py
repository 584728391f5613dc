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

    The lines of a ``hierarchy`` in it are text as they stand.

    Raises:
        ConfigInvalid: unreadable, not a mapping, or a name stands twice in one mapping.
    """
    import yaml  # noqa: PLC0415

    node = _composed(path)
    try:
        document = yaml.SafeLoader("").construct_document(node) if node is not None else None
    except (ValueError, yaml.YAMLError) as problem:
        raise _unreadable(path, problem) from problem
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigInvalid(f"{path} must hold 'name: value' lines; mend the file.")
    for name, value in node.value:
        if name.value == "hierarchy" and isinstance(value, yaml.MappingNode):
            document["hierarchy"] = _text_lines(value, path)
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
    return _text_lines(_composed(path), path)


def _text_lines(node: Any, path: Path) -> dict[str, str]:
    """The ``label: coarse label`` lines of a YAML node."""
    import yaml  # noqa: PLC0415

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    if not pairs or not all(isinstance(n, yaml.ScalarNode) for pair in pairs for n in pair):
        raise ConfigInvalid(f"{path} must hold 'label: coarse label' lines; mend the file.")
    return {label.value: coarse.value for label, coarse in pairs}


def _composed(path: Path) -> Any:
    """The root node of a YAML file, whose scalars hold their text; None: the file is empty.

    Raises:
        ConfigInvalid: unreadable, or a name stands twice in one mapping.
    """
    import yaml  # noqa: PLC0415

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise _unreadable(path, problem) from problem
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            _refuse_double_names([name.value for name, _ in node.value], path)
            nodes += [value for _, value in node.value]
    return root


def _refuse_double_names(names: list[Any], path: Path) -> None:
    """Names of one mapping, of which YAML would take the last without a word."""
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ConfigInvalid(f"{path} names {name!r} twice; keep one line.")


def _unreadable(path: Path, problem: Exception) -> ConfigInvalid:
    mark = getattr(problem, "problem_mark", None)  # of YAML's errors, which take several lines
    place = "" if mark is None else f"line {mark.line + 1}: "
    said = getattr(problem, "problem", None) or getattr(problem, "strerror", None) or str(problem)
    return ConfigInvalid(f"{path} cannot be read ({place}{said}); mend the file, or name another.")


__all__ = ["INPUTS", "read_hierarchy", "read_inputs", "read_mapping"]
