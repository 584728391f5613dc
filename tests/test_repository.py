"""The repository as a visitor finds it: links that travel, files of bearable length, no litter."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from cmamil_sdk import __version__

ROOT = Path(__file__).resolve().parents[1]
WORKSHOPS = ("training", "export", "serving", "benchmarks")
MAX_LINES = 400
# Paths of one machine, and words about how the files came about. A path is not one where it only
# goes on from something else, as in {folder}/root/a.svs.
OUT_OF_PLACE = re.compile(
    r"(?<![\w.}])/(?:work|root|opt)/|helper" + r" session|farm" + r"-bench", re.IGNORECASE
)
LITTER = re.compile(
    r"(?:^|/)(?:__pycache__|\.[a-z]+_cache|[^/]*\.egg-info|\.venv[^/]*)/|\.pyc$|\.tmp$"
)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of all files that git keeps."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("name", WORKSHOPS)
def test_workshops_are_reached_through_relative_links(name: str) -> None:
    link = ROOT / "cmamil_sdk" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    assert (link / "__init__.py").is_file()


def test_git_keeps_the_links_as_links(tracked: list[str]) -> None:
    assert {f"cmamil_sdk/{name}" for name in WORKSHOPS} <= set(tracked)
    inside = [
        name for name in tracked if name.startswith(tuple(f"cmamil_sdk/{w}/" for w in WORKSHOPS))
    ]
    assert inside == []


def test_package_files_are_of_bearable_length() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("cmamil_sdk", *WORKSHOPS)
        for path in (ROOT / folder).rglob("*.py")
        if "_proto" not in path.parts
    }
    assert len(lengths) > 50
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_what_a_visitor_looks_for_is_there() -> None:
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", ".ci/run"):
        assert (ROOT / name).is_file(), name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+?),? \(?(\d{4}-\d{2}-\d{2})\)?$", changelog, re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == __version__
    assert "version = attr: cmamil_sdk.__version__" in (ROOT / "setup.cfg").read_text()


def test_tracked_files_name_no_machine(tracked: list[str]) -> None:
    found = []
    for name in tracked:
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
            if OUT_OF_PLACE.search(line) and path != Path(__file__).resolve():
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "out_of_place"),
    [
        ("see /" + "work/main/a.py", True),
        ("'/" + "root/.cache'", True),
        ("farm" + "-bench", True),
        ("{tree}/root/a.svs", False),
        ("docs/work/a.md", False),
        ("../opt/a", False),
    ],
)
def test_the_search_finds_what_it_should(line: str, out_of_place: bool) -> None:
    assert bool(OUT_OF_PLACE.search(line)) is out_of_place


def test_nothing_made_by_tools_is_tracked(tracked: list[str]) -> None:
    assert [name for name in tracked if LITTER.search(name)] == []
    assert LITTER.search("cmamil_sdk/__pycache__/a.py")
    assert LITTER.search(".ruff_cache/x")
