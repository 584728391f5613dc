"""Every command of the page on readers works as it stands, and what it quotes is what is printed."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from cmamil_sdk.cli.app import main
from cmamil_sdk.engines.cuda import driver_devices
from cmamil_sdk.errors import EngineMissing
from cmamil_sdk.features.file import read_provenance
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.cucim_process import HOW_TO_INSTALL, cucim_installed
from cmamil_sdk.slides.plugin_reader import PluginReader
from cmamil_sdk.slides.plugin_registry import GROUP

from ..device_double import DeviceArray, put_in_place

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reading.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


def run(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "cmamil"
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (None, 0), command


@pytest.mark.slow
def test_the_commands_work_as_they_stand(
    tmp_path: Path,
    synthetic_slide: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "case-01.svs").symlink_to(synthetic_slide)
    (tmp_path / "pictures").mkdir()
    with open_slide(synthetic_slide) as reader:
        Image.fromarray(reader.thumbnail(2000)).save(tmp_path / "pictures" / "case-02.png")
    (tmp_path / "demo" / "bundles" / "demo").mkdir(parents=True)
    (tmp_path / "demo" / "bundles" / "demo" / "1").symlink_to(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    commands = "".join(blocks("bash")).splitlines()
    assert len(commands) == 7
    for command in commands:
        run(f"{command} --pairs 5" if "bench" in command else command)  # the fewest there are
    out = capsys.readouterr().out
    assert "reader       openslide: asked for" in out
    assert "the pixels of all tiles are the same" in out
    assert read_provenance(tmp_path / "features" / "case-01.h5").reader == "openslide: asked for"
    provenance = read_provenance(tmp_path / "features" / "case-02.h5")
    assert provenance.reader == "image: a plain image, decoded as a whole"


def test_the_plugin_is_declared_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "my_library", SimpleNamespace(OpenSlide=_Slide))
    names: dict[str, Any] = {}
    _, of_plugins = blocks("python")
    exec(of_plugins, names)
    (tmp_path / "a.mine").touch()
    with PluginReader(tmp_path / "a.mine", names["PLUGIN"], mpp=None, reason="") as reader:
        assert (reader.read_region(0, -1, 0, 5, 3)[0, :, 0] == [255, 7, 7, 7, 7]).all()
    (group,) = tomllib.loads("\n".join(blocks("toml")))["project"]["entry-points"]
    assert group == GROUP


class _Slide:
    """As the page describes it."""

    def __init__(self, _path: Path) -> None:
        self.properties: dict[str, str] = {}
        self.dimensions = (8, 6)
        self.level_dimensions = ((8, 6),)
        self.level_downsamples = (1.0,)

    def read_region(self, location: object, level: int, size: tuple[int, int]) -> Image.Image:
        return Image.new("RGBA", size, (7, 7, 7, 255))

    def close(self) -> None:
        pass


@pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")
def test_the_python_example_runs(
    tmp_path: Path, synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "case-01.svs").symlink_to(synthetic_slide)
    monkeypatch.chdir(tmp_path)
    put_in_place(monkeypatch)
    names: dict[str, Any] = {}
    of_cucim, _ = blocks("python")
    exec(compile(of_cucim, "docs/reading.md", "exec"), names)
    assert isinstance(names["tiles"], DeviceArray)
    assert names["tiles"].shape == (2, 224, 224, 3)


def test_the_page_says_how_cucim_is_installed() -> None:
    on_cpu, on_gpu = blocks("console")
    assert on_cpu == f"{HOW_TO_INSTALL}\n"
    assert on_gpu.startswith("pip install 'cmamil-sdk[gpu]'\ncmamil features ")


@pytest.mark.skipif(driver_devices() > 0, reason="there is a GPU here, on which the command works")
def test_the_command_for_a_gpu_is_refused_without_one(
    tmp_path: Path, synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "case-01.svs").symlink_to(synthetic_slide)
    monkeypatch.chdir(tmp_path)
    _, command = blocks("console")[1].splitlines()
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command)[1:])
    assert end.value.code == EngineMissing.exit_code


@pytest.mark.realdata
def test_what_the_page_quotes_is_printed(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"):
        run(f"cmamil inspect {shlex.quote(str(real_data / 'slides' / name))}")
    run(f"cmamil inspect {shlex.quote(str(real_data / 'slides' / 'kidney-48-5.tif'))}")
    printed = capsys.readouterr().out.splitlines()
    quoted = "".join(blocks("text")).splitlines()
    assert len(quoted) == 3
    assert set(quoted) <= set(printed)
