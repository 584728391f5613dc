"""A server says which commit it runs, where that can be known."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmamil_sdk import revision
from cmamil_sdk.revision import installed_revision, revision_of


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    installed_revision.cache_clear()
    yield
    installed_revision.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, origin: Any) -> None:
    noted = None if origin is None else json.dumps(origin)
    package = SimpleNamespace(read_text=lambda _name: noted)
    monkeypatch.setattr(revision.importlib.metadata, "distribution", lambda _name: package)


def test_a_folder_that_is_installed_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b"
    (folder / "within").mkdir(parents=True)
    git(folder, "init")
    (folder / "file").write_text("one")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "one")
    git(folder, "tag", "-a", "v1", "-m", "one")
    commit = git(folder, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit) and revision_of(folder) == commit
    (folder / "file").write_text("two")
    installed(monkeypatch, {"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert installed_revision() == f"{commit}-dirty"
    assert revision_of(folder / "within") == ""  # it may belong to anybody


def test_what_pip_took_from_git(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": "https://a.b/c.git", "vcs_info": {"commit_id": "f" * 40}})
    assert installed_revision() == "f" * 40


@pytest.mark.parametrize("origin", [None, {"url": "file:///a.whl", "archive_info": {}}])
def test_a_wheel_does_not_say(monkeypatch: pytest.MonkeyPatch, origin: Any) -> None:
    installed(monkeypatch, origin)
    assert installed_revision() == ""


def test_without_git_it_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    assert revision_of(tmp_path) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision_of(tmp_path) == ""
