"""A slide that a GPU decodes: chosen by name and device, checked, and everything else as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.errors import ReaderMissing, SlideFormatUnsupported
from cmamil_sdk.slides import cucim_cuda, open_slide
from cmamil_sdk.slides.cucim_cuda import why_no_cuda_decoding
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.slides.cuda_reader import CudaReader

from ..device_double import CUPY, put_in_place
from .tiffs import picture, write_aperio_2000, write_levels

pytestmark = pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")


def opened(path: Path) -> CudaReader:
    reader = open_slide(path, reader="cucim", device="cuda:0")
    assert isinstance(reader, CudaReader)
    return reader


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """260 x 200 px in 64 px tiles."""
    return write_levels(tmp_path_factory.mktemp("plain") / "plain.tiff", [picture(200, 260)])


def test_the_device_chooses_it_for_cucim_alone(plain: Path, monkeypatch) -> None:
    put_in_place(monkeypatch)
    with opened(plain) as reader:
        assert reader.facts.reader == "cucim"
        assert reader.facts.reader_reason.endswith(
            "decoded on cuda:0, where 4 tiles differ from OpenSlide's by 0.00 grey levels on average and "
            "0 at most"
        )
    for name in ("auto", "direct", "openslide"):
        with open_slide(plain, reader=name, device="cuda:0") as other:
            assert not isinstance(other, CudaReader)


def test_its_two_ways_of_reading_agree(plain: Path, monkeypatch) -> None:
    images = put_in_place(monkeypatch)
    with opened(plain) as reader, open_slide(plain, reader="openslide") as theirs:
        corners = [(0, 0), (70, 30), (190, 150)]
        on_device = reader.read_on_device(0, corners, 60, 50)
        for corner, pixels in zip(corners, on_device, strict=True):
            expected = theirs.read_region(0, *corner, 60, 50)
            np.testing.assert_array_equal(CUPY.asnumpy(pixels), expected)
            np.testing.assert_array_equal(reader.read_region(0, *corner, 60, 50), expected)
        assert images[0].asked == [4, 3]
        np.testing.assert_array_equal(reader.thumbnail(99), theirs.thumbnail(99))
        assert reader.decodes(0, 200, 150, 60, 50)
        assert not reader.decodes(0, 201, 150, 60, 50)
        assert not reader.decodes(0, -1, 0, 60, 50)


def test_a_share_of_all_regions_is_compared_with_openslides(plain: Path, monkeypatch) -> None:
    images = put_in_place(monkeypatch)
    monkeypatch.setattr(cucim_cuda, "CHECKED_SHARE", 0.5)
    with opened(plain) as reader:
        images[0]._change = 5  # it breaks while the slide is read
        with pytest.raises(
            SlideFormatUnsupported, match=r"differ from OpenSlide's by .* on average"
        ):
            for _ in range(20):
                reader.read_on_device(0, [(0, 0), (70, 30)], 60, 50)
        # What the host reads, and other slides, are as they were.
        reader.read_region(0, 0, 0, 60, 50)


@pytest.mark.parametrize("device", ["cuda:1", "cuda:12"])
def test_another_gpu_is_chosen_by_what_the_process_sees(plain: Path, monkeypatch, device) -> None:
    put_in_place(monkeypatch)
    with pytest.raises(ReaderMissing, match="CUDA_VISIBLE_DEVICES"):
        open_slide(plain, reader="cucim", device=device)


@pytest.mark.skipif(why_no_cuda_decoding() is None, reason="slides can be decoded on a GPU here")
def test_without_a_gpu_nothing_stands_in_for_it(plain: Path) -> None:
    with pytest.raises(ReaderMissing, match="leave --reader out, which decodes on the CPU"):
        opened(plain)


def test_what_is_refused_leaves_nothing_open(tmp_path: Path, monkeypatch) -> None:
    put_in_place(monkeypatch)
    path = write_aperio_2000(tmp_path / "j.svs", [picture(130, 130)])
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(SlideFormatUnsupported, match="a GPU decodes JPEG alone"):
        opened(path)
    assert set(Path("/proc/self/fd").iterdir()) == before
