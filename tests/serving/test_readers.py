"""Which reader a worker takes, and that its reasons name no path of the server."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.messages import Failed, ReadFacts, WorkerSetup
from cmamil_sdk.serving.paths import resolve
from cmamil_sdk.serving.worker import Worker
from cmamil_sdk.slides import ReaderName, SlideFacts
from cmamil_sdk.slides.cucim_process import cucim_installed

from ..slides.tiffs import set_entry

NEEDS_CUCIM = pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")
SETUP = WorkerSetup(0, (), "auto", 0, 1, 1, 2**40, 2**20, 32)


def ask(
    root: Path, name: str, reader: ReaderName, *, max_image_pixels: int = 2**20
) -> SlideFacts | Failed:
    setup = replace(SETUP, reader=reader, max_image_pixels=max_image_pixels)
    reply = Worker(setup).answer(ReadFacts(resolve(name, [root]), None))
    assert isinstance(reply, SlideFacts | Failed)
    return reply


@pytest.fixture
def root(synthetic_slide: Path, tmp_path: Path) -> Path:
    for name in ("whole.svs", "sparse.svs"):
        shutil.copy(synthetic_slide, tmp_path / name)
    set_entry(tmp_path / "sparse.svs", "TileByteCounts", 0, 0)
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("auto", "direct"),
        ("direct", "direct"),
        pytest.param("cucim", "cucim", marks=NEEDS_CUCIM),
        ("openslide", "openslide"),
    ],
)
def test_a_worker_takes_the_reader_of_the_configuration(
    root: Path, asked: ReaderName, taken: str
) -> None:
    facts = ask(root, "whole.svs", asked)
    assert isinstance(facts, SlideFacts)
    assert (facts.reader, facts.path) == (taken, "whole.svs")


def test_the_client_learns_why_a_slide_is_not_read_directly(root: Path) -> None:
    facts = ask(root, "sparse.svs", "auto")
    assert isinstance(facts, SlideFacts)
    assert facts.reader_reason == "not read directly, because level 0 leaves out 1 of 63 tiles"
    refused = ask(root, "sparse.svs", "direct")
    assert isinstance(refused, Failed)
    assert refused.reason == "SLIDE_FORMAT_UNSUPPORTED"
    assert refused.message.startswith("sparse.svs cannot be read directly: level 0 leaves out 1")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.arange(3 * 30 * 40, dtype=np.uint8).reshape(30, 40, 3)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    shutil.copy(tmp_path / "a.png", tmp_path / "disguised.kfb")
    return tmp_path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "disguised.kfb"])
def test_plain_images_are_read_up_to_the_servers_limit(images: Path, name: str) -> None:
    """By their first bytes; a suffix chooses no plug-in here."""
    facts = ask(images, name, "auto", max_image_pixels=1200)
    assert isinstance(facts, SlideFacts)
    assert (facts.reader, facts.path, facts.width, facts.height) == ("image", name, 40, 30)
    refused = ask(images, name, "auto", max_image_pixels=1199)
    assert isinstance(refused, Failed)
    assert refused.reason == "SLIDE_TOO_LARGE"
    assert refused.message.startswith(f"{name} has 40 x 30 pixels")


def test_a_server_reads_nothing_through_plugins(images: Path, tiny_bundle: Path) -> None:
    (images / "vendor.kfb").write_bytes(b"KFB and no image")
    refused = ask(images, "vendor.kfb", "auto")
    assert isinstance(refused, Failed)
    assert refused.reason == "SLIDE_FORMAT_UNSUPPORTED"
    assert "no slide that a server reads" in refused.message
    settings = {"bundles": [tiny_bundle], "slides_roots": [images], "reader": "plugin"}
    with pytest.raises(ConfigInvalid, match="nothing through plug-ins"):
        ServerConfig.parse(settings)
