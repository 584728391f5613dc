"""The cuCIM reader: OpenSlide's pixels, none of a damaged tile, and crashes that end its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmamil_sdk.child_pipe import ProcessDied
from cmamil_sdk.errors import (
    DecoderCrashed,
    ReaderMissing,
    SlideCorrupt,
    SlideFormatUnsupported,
)
from cmamil_sdk.slides import cucim_process, open_slide
from cmamil_sdk.slides.base import UInt8
from cmamil_sdk.slides.cucim_process import DecoderProcess, cucim_installed
from cmamil_sdk.slides.cucim_reader import CucimReader
from cmamil_sdk.slides.jpeg_tiles import DamagedTile

from .test_direct import telling_boxes
from .tiffs import (
    picture,
    rgb,
    set_entry,
    spoil_tile,
    write_aperio_2000,
    write_levels,
    ycbcr,
)

pytestmark = pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")

ONE_IN = 100_000
"""At most one of so many JPEG 2000 values may be rounded the other way."""


def opened(path: Path) -> CucimReader:
    reader = open_slide(path, reader="cucim")
    assert isinstance(reader, CucimReader)
    return reader


def same_everywhere(path: Path) -> str:
    """Every telling box is OpenSlide's to the last bit; returns the reason."""
    with opened(path) as ours, open_slide(path, reader="openslide") as theirs:
        assert replace(
            ours.facts, reader="openslide", reader_reason=theirs.facts.reader_reason
        ) == (theirs.facts)
        for level, *box in telling_boxes(path):
            got, expected = ours.read_region(level, *box), theirs.read_region(level, *box)
            assert (got == expected).all(), (level, box)
        return ours.facts.reader_reason


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.svs", "small.svs"]
)
def test_real_slides_are_read_as_openslide_does(real_data, name):
    reason = same_everywhere(real_data / "slides" / name)
    assert reason.startswith("JPEG tiles by cuCIM 2")
    assert "the same as OpenSlide's at 4 places" in reason
    assert ("reads level 1, 2" in reason) == ("pyramid" in name)


@pytest.mark.realdata
def test_a_real_jpeg_2000_slide_is_read_within_one_grey_level(real_data):
    path = real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    reason = nearly_the_same_everywhere(path)
    assert reason.startswith("JPEG 2000 tiles by cuCIM 2")
    assert "within 1 grey level of OpenSlide's at 4 places" in reason


def nearly_the_same_everywhere(path: Path) -> str:
    """Every telling box of bearable size is OpenSlide's but for rounding; returns the reason."""
    with opened(path) as ours, open_slide(path, reader="openslide") as theirs:
        for level, *box in telling_boxes(path):
            if box[2] * box[3] > 10**6:
                continue
            apart = difference(ours.read_region(level, *box), theirs.read_region(level, *box))
            assert apart.max() <= 1
            assert np.count_nonzero(apart) <= apart.size / ONE_IN + 1
        return ours.facts.reader_reason


def difference(one: UInt8, other: UInt8) -> np.ndarray:
    return np.abs(one.astype(int) - other)


def test_generated_slides_are_read_as_openslide_does(noisy_slide, synthetic_slide):
    assert "at 8 places" in same_everywhere(noisy_slide)
    assert "OpenSlide resamples and reads level 2" in same_everywhere(synthetic_slide)


def test_a_generated_jpeg_2000_slide(tmp_path):
    pixels = picture(300, 420)
    path = write_aperio_2000(tmp_path / "j2k.svs", [pixels, pixels[::4, ::4]])
    assert "within 1 grey level of OpenSlide's at 8 places" in nearly_the_same_everywhere(path)


@pytest.mark.parametrize("encode", [rgb, ycbcr("444"), ycbcr("422"), ycbcr("420")])
def test_colours_and_subsampling(tmp_path, encode):
    path = write_levels(
        tmp_path / "colours.tiff",
        [picture(150, 200)],
        encode=encode,
        photometric="rgb" if encode is rgb else "ycbcr",
    )
    same_everywhere(path)


@pytest.fixture(scope="module")
def shared_readers(noisy_slide):
    with opened(noisy_slide) as ours, open_slide(noisy_slide, reader="openslide") as theirs:
        yield ours, theirs


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_box_and_any_batch_is_what_openslide_reads(shared_readers, data):
    ours, theirs = shared_readers
    level = data.draw(st.integers(0, 2))
    width, height = ((700, 500), (175, 125), (43, 31))[level]
    corner = st.tuples(st.integers(-60, width + 60), st.integers(-60, height + 60))
    corners = data.draw(st.lists(corner, min_size=1, max_size=12))
    size = (data.draw(st.integers(1, width + 80)), data.draw(st.integers(1, height + 80)))
    expected = np.stack([theirs.read_region(level, *corner, *size) for corner in corners])
    assert (ours.read_regions(level, corners, *size) == expected).all()
    assert (ours.read_region(level, *corners[0], *size) == expected[0]).all()


def test_batches_longer_than_cucims_keep_their_order(shared_readers):
    ours, theirs = shared_readers
    corners = [(x, y) for y in range(0, 400, 97) for x in range(0, 600, 41)]
    got = ours.read_regions(0, corners, 60, 50)
    assert got.shape == (len(corners), 50, 60, 3)
    for (x, y), pixels in zip(corners, got, strict=True):
        assert (pixels == theirs.read_region(0, x, y, 60, 50)).all()


def refused(path: Path, reason: str) -> None:
    with pytest.raises(SlideFormatUnsupported, match="cannot be read by cuCIM") as problem:
        open_slide(path, reader="cucim")
    assert reason in str(problem.value)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("boxes.tiff", "level 0 is stored as adobe_deflate, not jpeg or jpeg 2000"),
        ("camelyon-lowpower-jpeg.dcm", "files of vendor dicom are not known to be plain grids"),
        ("unreadable.svs", "no tile that was tried in level 0 can be decoded"),
    ],
)
def test_real_slides_that_do_not_suit_are_refused_before_cucim_decides(real_data, name, reason):
    refused(real_data / "slides" / name, reason)


@pytest.mark.realdata
def test_a_real_crash_ends_the_decoder_alone(real_data):
    """cuCIM's own crash, on a file that the reader would not hand over."""
    fd = os.open(real_data / "slides" / "boxes.tiff", os.O_RDONLY)
    try:
        with pytest.raises(ProcessDied, match="SIGSEGV"):
            DecoderProcess(fd).read(0, [(0, 0)], 50, 50)
    finally:
        os.close(fd)


@pytest.fixture
def plain(tmp_path) -> Path:
    """260 x 200 px in 64 px tiles, 5 columns and 4 rows; and half of that."""
    pixels = picture(200, 260)
    return write_levels(tmp_path / "plain.tiff", [pixels, pixels[::2, ::2]])


def test_a_predictor_is_refused(tmp_path):
    pixels = picture(60, 60)
    path = write_levels(tmp_path / "p.tiff", [pixels], extratags=[(316, 3, 1, 2, True)])
    entry = (316).to_bytes(2, "little") + (3).to_bytes(2, "little")
    assert path.read_bytes().count(entry) == 1
    path.write_bytes(path.read_bytes().replace(entry, (317).to_bytes(2, "little") + entry[2:]))
    refused(path, "level 0 is stored with predictor 2")


def test_a_slide_of_one_colour_tells_nothing(tmp_path):
    path = write_levels(tmp_path / "w.tiff", [np.full((200, 260, 3), 244, np.uint8)])
    refused(path, "every tile that was tried in level 0 is of one colour")


def test_glass_in_all_corners_is_no_hindrance(tmp_path):
    pixels = np.full((512, 512, 3), 244, np.uint8)
    pixels[64:128, 320:384] = picture(64, 64)
    same_everywhere(write_levels(tmp_path / "g.tiff", [pixels]))


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ([(260, 200, 1.0)], "cuCIM sees levels of [(260, 200)] pixels instead of"),
        ([(260, 200, 1.0), (130, 100, 2.1)], "takes level 1 for 2.1 times coarser instead of 2"),
    ],
)
def test_other_levels_than_openslides_are_refused(plain, monkeypatch, seen, reason):
    honest = DecoderProcess._greet

    def greet(self: DecoderProcess) -> None:
        honest(self)
        self.levels = seen

    monkeypatch.setattr(DecoderProcess, "_greet", greet)
    refused(plain, reason)


def test_other_pixels_are_refused(plain, monkeypatch):
    honest = DecoderProcess.read
    monkeypatch.setattr(DecoderProcess, "read", lambda self, *a: honest(self, *a) ^ 1)
    refused(plain, "OpenSlide reads something else in level 0 at (0, 0)")


def test_without_cucim_the_remedy_is_named(plain, monkeypatch):
    monkeypatch.setattr("cmamil_sdk.slides.cucim_reader.cucim_installed", lambda: False)
    with pytest.raises(ReaderMissing, match="pip install --no-deps cucim-cu13"):
        open_slide(plain, reader="cucim")


def test_auto_leaves_slides_to_the_others(plain, tmp_path):
    """JPEG is read directly for less, and JPEG 2000 to the last bit by OpenSlide."""
    with open_slide(plain) as reader:
        assert reader.facts.reader == "direct"
    with open_slide(write_aperio_2000(tmp_path / "j.svs", [picture(90, 90)])) as reader:
        assert reader.facts.reader == "openslide"


def damaged(path: Path) -> None:
    """Reading across tile 7 is the known error, again and again; the others are read."""
    x, y = 7 % 5 * 64, 7 // 5 * 64
    with opened(path) as ours:
        process = ours._process
        for _ in range(2):
            with pytest.raises(SlideCorrupt, match=rf"\({x}, {y}\), level 0, cannot be decoded"):
                ours.read_region(0, x, y, 64, 64)
        with pytest.raises(SlideCorrupt):
            ours.read_region(0, 0, 0, 260, 200)
        with pytest.raises(SlideCorrupt):
            ours.read_regions(0, [(0, 0), (x + 1, y + 1), (0, 64)], 60, 60)
        assert ours.read_region(0, x + 64, y, 64, 64).std() > 0
        assert ours._process is process, "none of this is a crash"


@pytest.mark.parametrize(
    "change",
    [
        lambda tile: bytes(len(tile)),
        lambda tile: tile[: len(tile) // 2] + bytes(len(tile) - len(tile) // 2),
        lambda tile: tile[:-2] + b"\0\0",
        lambda tile: b"\0\0" + tile[2:],
        lambda tile: tile[: len(tile) // 2] + b"\xff\xd9" + tile[len(tile) // 2 + 2 :],
        lambda tile: tile.replace(b"\x00\x40\x00\x40", b"\xff\xdc\xff\xdc"),
    ],
    ids=["zeros", "half", "no end", "no start", "ended early", "size"],
)
def test_a_damaged_jpeg_tile_is_an_error_never_pixels(plain, change):
    spoil_tile(plain, 7, change)
    damaged(plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda tile: bytes(len(tile)),
        lambda tile: tile[:400] + b"\xff" * 40 + tile[440:],
        lambda tile: tile[:-2] + b"\0\0",
        lambda tile: b"\0\0" + tile[2:],
        lambda tile: tile[:8] + b"\xff\xff" + tile[10:],
    ],
    ids=["zeros", "overwritten", "no end", "no start", "size"],
)
def test_a_damaged_jpeg_2000_tile_is_an_error_never_pixels(tmp_path, change):
    # 5 x 7 tiles, so that tile 7 is none of those that are tried at opening; tile 34 has the most bytes.
    pixels = picture(448, 320)
    pixels[384:, 256:] = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    path = write_aperio_2000(tmp_path / "j2k.svs", [pixels])
    spoil_tile(path, 7, change)
    damaged(path)


def test_a_tile_beyond_the_end_of_the_file(plain):
    set_entry(plain, "TileOffsets", 7, plain.stat().st_size - 10)
    damaged(plain)


def test_threads_take_turns(shared_readers):
    ours, theirs = shared_readers
    whole = theirs.read_region(0, 0, 0, 700, 500)
    boxes = [(x, y) for x in range(0, 600, 120) for y in range(0, 400, 100)]
    wrong = []

    def work(turn: int) -> None:
        for x, y in boxes[turn:] + boxes[:turn]:
            if (ours.read_region(0, x, y, 90, 80) != whole[y : y + 80, x : x + 90]).any():
                wrong.append((x, y))

    threads = [threading.Thread(target=work, args=(turn * 5,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def odd(tmp_path, monkeypatch, plain):
    """Open ``plain`` with a decoder that does ``what`` at a place; returns the reader."""
    program = Path(__file__).with_name("odd_cucim_child.py")
    monkeypatch.setattr(cucim_process, "CHILD_PROGRAM", str(program))
    monkeypatch.setenv("CMAMIL_TEST_FOLDER", str(tmp_path))
    readers = []

    def start(what: str, place: tuple[int, int] = (7, 9)) -> CucimReader:
        (tmp_path / "at").write_text(f"{place[0]} {place[1]} {what}")
        readers.append(opened(plain))
        return readers[-1]

    yield start
    for reader in readers:
        reader.close()


def test_a_crash_costs_one_new_process(odd, plain):
    reader = odd("once")
    first = reader._process.pid
    with open_slide(plain, reader="openslide") as theirs:
        assert (reader.read_region(0, 7, 9, 64, 64) == theirs.read_region(0, 7, 9, 64, 64)).all()
    assert reader._process.pid != first
    assert not alive(first)


def test_two_crashes_are_the_slides_error_and_the_reader_lives_on(odd):
    reader = odd("crash")
    for _ in range(2):
        with pytest.raises(
            DecoderCrashed, match=r"\(7, 9\), level 0, ended two .*SIGSEGV.*openslide"
        ):
            reader.read_region(0, 7, 9, 64, 64)
    assert reader.read_region(0, 8, 9, 64, 64).std() > 0


def test_a_crash_at_opening(odd, plain):
    with pytest.raises(DecoderCrashed, match=r"plain\.tiff.*ended two processes of cuCIM"):
        odd("crash", (0, 0))
    with pytest.raises(DecoderCrashed, match="status 1, no decoder today"):
        odd("gone")


def test_a_decoder_that_hangs_is_ended(odd):
    reader = odd("hang")
    first = reader._process
    first._pipe.settimeout(0.2)
    assert reader.read_region(0, 7, 9, 64, 64).std() > 0
    assert not alive(first.pid)


def test_memory_that_runs_out_is_no_crash(odd):
    reader = odd("memory")
    with pytest.raises(MemoryError):
        reader.read_region(0, 7, 9, 64, 64)
    assert reader.read_region(0, 8, 9, 64, 64).std() > 0


def test_a_decoder_that_is_killed_is_replaced(plain):
    with opened(plain) as reader:
        os.kill(reader._process.pid, signal.SIGKILL)
        assert reader.read_region(0, 0, 0, 64, 64).std() > 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    for _ in range(600):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_closing_leaves_no_process_and_no_file(plain):
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    reader = opened(plain)
    pid = reader._process.pid
    reader.close()
    assert not alive(pid)
    assert descriptors() == before
    with pytest.raises(SlideCorrupt, match="cannot be read"):
        reader.read_region(0, 0, 0, 8, 8)
    with pytest.raises(SlideFormatUnsupported):
        opened(write_levels(plain.with_name("w.tiff"), [np.zeros((64, 64, 3), np.uint8)]))
    assert descriptors() == before


def test_the_decoder_ends_with_its_parent_even_while_it_decodes(plain, tmp_path):
    (tmp_path / "at").write_text("7 9 hang")
    program = Path(__file__).with_name("odd_cucim_child.py")
    code = f"""
import os, threading
from pathlib import Path
from cmamil_sdk.slides import cucim_process, open_slide
cucim_process.CHILD_PROGRAM = {str(program)!r}
reader = open_slide(Path({str(plain)!r}), reader="cucim")
threading.Thread(target=reader.read_region, args=(0, 7, 9, 64, 64), daemon=True).start()
while not Path({str(tmp_path / "at")!r}).read_text().startswith("-1"):
    pass
print(reader._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CMAMIL_TEST_FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout))


def test_the_name_of_the_file_does_not_matter(plain, tmp_path, monkeypatch):
    odd_name = tmp_path / "Gewebe 🔬.unusual"
    odd_name.write_bytes(plain.read_bytes())
    monkeypatch.chdir(tmp_path)
    with opened(Path(odd_name.name)) as reader:
        assert reader.read_region(0, 0, 0, 64, 64).std() > 0


def test_what_cucim_says_of_a_file_is_told(tmp_path):
    path = tmp_path / "text.tif"
    path.write_text("no slide")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(Exception, match="cuCIM refuses it"):
            DecoderProcess(fd)
    finally:
        os.close(fd)


def test_a_decoders_error_is_a_damaged_tile(plain):
    fd = os.open(plain, os.O_RDONLY)
    try:
        process = DecoderProcess(fd)
        with pytest.raises(DamagedTile, match="cuCIM says"):
            process.read(9, [(0, 0)], 8, 8)
        assert process.read(0, [(0, 0)], 8, 8).shape == (1, 8, 8, 3)
        process.close()
    finally:
        os.close(fd)


def test_tiles_of_the_file_are_those_that_tifffile_decodes(plain):
    with tifffile.TiffFile(plain) as file, opened(plain) as reader:
        assert difference(reader.read_region(0, 0, 0, 260, 200), file.pages[0].asarray()).mean() < 2
