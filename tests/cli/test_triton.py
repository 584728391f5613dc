"""``cmamil export --targets onnx,triton``: the page's command, and what is refused before any work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.files import sha256_of_file

pytestmark = pytest.mark.usefixtures("small_parity_bags")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "bundle.md").read_text("utf-8")
TRITON = ("--targets", "onnx,triton", "--model-repository", "models")


def test_the_command_of_the_page_writes_what_the_page_lists(
    cmamil: Callable[..., Any],
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, _, section = PAGE.partition("## Triton")
    (command,) = re.findall(r"^```bash\ncmamil (.*?)\n```", section, re.M)
    (listing,) = re.findall(r"^```\n(models/\n.*?)^```", section, re.S | re.M)
    (tmp_path / "run").symlink_to(small_run)
    monkeypatch.chdir(tmp_path)
    answer = cmamil(*shlex.split(command))
    assert answer.code == 0, answer.err
    models = Path("models")
    for part in ("encoder", "aggregator"):
        assert f"models/mine_{part} (for Triton)" in answer.out
        graph = models / f"mine_{part}" / "1" / "model.onnx"
        assert sha256_of_file(graph) == sha256_of_file(Path("bundles/mine/1") / f"{part}.onnx")
    written = {path.name for path in models.rglob("*")}
    listed = {line.split()[0].rstrip("/") for line in listing.splitlines()[1:]}
    assert {name for entry in listed for name in entry.split("/")} == written


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--targets", "onnx,triton"], "belong together"),
        (["--model-repository", "models"], "belong together"),
        ([*TRITON, "--version", "1.2"], "Triton counts versions"),
        ([*TRITON, "--version", "0"], "Triton counts versions"),
        ([*TRITON, "--name", "there"], "there_aggregator exists"),
        (["--targets", "onnx,triton", "--model-repository", "file"], "cannot be made"),
    ],
)
def test_what_is_known_before_is_refused_before(
    cmamil: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "there_aggregator").mkdir(parents=True)
    (tmp_path / "file").touch()
    answer = cmamil("export", "--run", "none", "--name", "n", "--out", "o", *options)
    assert answer.code in (2, 4), answer.err
    assert said in answer.err
    assert {path.name for path in tmp_path.iterdir()} == {"models", "file"}
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["there_aggregator"]
