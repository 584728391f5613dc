"""Where a bundle keeps TensorRT plans: ``engines/<key>/<graph>.plan``, and ``.json`` beside each."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

PLANS = "engines"
_PLAN_FILE = re.compile(rf"({PLANS}/[0-9a-f]{{16}}/(?:encoder|aggregator))\.(plan|json)")


def plan_files(root: Path) -> list[str]:
    """Names of the plans' files under a bundle's directory, in order."""
    found = (file.relative_to(root).as_posix() for file in (root / PLANS).rglob("*.*"))
    return sorted(found)


def check_plan_files(names: Collection[str]) -> None:
    """Refuse names of files that a bundle does not have.

    Raises:
        ValueError: one is no file of a plan, or a plan lacks one of its two files.
    """
    matches = {name: _PLAN_FILE.fullmatch(name) for name in names}
    strange = sorted(name for name, match in matches.items() if match is None)
    if strange:
        raise ValueError(f"must not list {strange[0]!r}")
    for stem in {match[1] for match in matches.values() if match}:
        for needed in (f"{stem}.plan", f"{stem}.json"):
            if needed not in names:
                raise ValueError(f"must list {needed} too, a plan has two files")


__all__ = ["PLANS", "check_plan_files", "plan_files"]
