"""What is installed: the commit of this package's source, and versions of others."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

_TIMEOUT_S = 5.0
_DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


@functools.cache
def installed_revision() -> str:
    """Commit of this package, with ``-dirty`` if files differ from it; empty where it is not known.

    pip notes the commit of what it installs from git (PEP 610); a folder that is installed in place is
    asked by git, if it is there. A wheel does not say.
    """
    try:
        noted = importlib.metadata.distribution("cmamil-sdk").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    origin = json.loads(noted or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    if commit is not None:
        return str(commit)
    if not origin.get("dir_info", {}).get("editable"):
        return ""
    return revision_of(Path(unquote(urlsplit(origin["url"]).path)))


def revision_of(folder: Path) -> str:
    """Commit of a folder that git manages; empty if it is none, or git is not there."""
    if not (folder / ".git").exists():  # it may lie within another's
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *_DESCRIBE],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed, in their order."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


__all__ = ["installed_revision", "revision_of"]
