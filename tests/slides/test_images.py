"""PNG, JPEG and TIFF of one picture as slides of one level."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from cmamil_sdk.errors import (
    CmamilError,
    MppUnknown,
    MppUnusable,
    SlideCorrupt,
    SlideFormatUnsupported,
    SlideTooLarge,
)
from cmamil_sdk.slides import image_reader, open_slide
from cmamil_sdk.slides.image_reader import ImageReader
from cmamil_sdk.slides.pixels import turned

from .tiffs import close_circle, picture, set_entry

HEIGHT, WIDTH = 70, 101
RGB = picture(HEIGHT, WIDTH)
GREY = np.ascontiguousarray(RGB[..., 1])
ALPHA = np.random.default_rng(3).choice(np.array([0, 80, 255], np.uint8), (HEIGHT, WIDTH))
ORIENTATION = 0x0112


def blended(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def written(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


def read(path: Path, **options: object) -> np.ndarray:
    with open_slide(path, **options) as reader:
        facts = reader.facts
        assert facts.reader == "image"
        assert len(facts.levels) == 1 and facts.bounds == (0, 0, facts.width, facts.height)
        return reader.read_region(0, 0, 0, facts.width, facts.height)


def png_of(width: int, height: int, rows: bytes, *, interlace: int = 0) -> bytes:
    """An RGB PNG that claims this size, whatever its ``rows`` hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlace))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


PNGS = {
    "rgb": (Image.fromarray(RGB), RGB),
    "grey": (Image.fromarray(GREY), np.dstack([GREY] * 3)),
    "rgba": (Image.fromarray(np.dstack([RGB, ALPHA])), blended(RGB, ALPHA)),
    "grey-alpha": (
        Image.fromarray(np.dstack([GREY, ALPHA])),
        blended(np.dstack([GREY] * 3), ALPHA),
    ),
    "palette": (
        Image.fromarray(RGB).quantize(200),
        np.asarray(Image.fromarray(RGB).quantize(200).convert("RGB")),
    ),
    "one-bit": (Image.fromarray(GREY > 128), np.dstack([np.where(GREY > 128, 255, 0)] * 3)),
}


@pytest.mark.parametrize("kind", PNGS)
def test_a_png_is_read_without_loss(tmp_path: Path, kind: str) -> None:
    image, wanted = PNGS[kind]
    np.testing.assert_array_equal(read(saved(tmp_path / "a.png", image)), wanted)


ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def test_an_interlaced_png(tmp_path: Path) -> None:
    passes = [RGB[y::step_y, x::step_x] for x, y, step_x, step_y in ADAM7]
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    (tmp_path / "a.png").write_bytes(png_of(WIDTH, HEIGHT, rows, interlace=1))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), RGB)


TIFFS: dict[str, dict[str, object]] = {
    "strips": {"rowsperstrip": 16},
    "one strip": {},
    "lzw": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd", "rowsperstrip": 30},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
}


@pytest.mark.parametrize("kind", TIFFS)
def test_an_untiled_tiff_is_read_without_loss(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "a.tif", RGB, photometric="rgb", **TIFFS[kind])
    np.testing.assert_array_equal(read(path), RGB)


def test_tiffs_of_other_channels(tmp_path: Path) -> None:
    planes = np.moveaxis(RGB, -1, 0)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    np.testing.assert_array_equal(
        read(written(tmp_path / "strips.tif", planes, rowsperstrip=9, **options)), RGB
    )
    np.testing.assert_array_equal(
        read(written(tmp_path / "tiles.tif", planes, tile=(32, 48), **options), reader="image"), RGB
    )
    np.testing.assert_array_equal(
        read(written(tmp_path / "grey.tif", GREY, photometric="minisblack")),
        np.dstack([GREY] * 3),
    )
    rgba = np.dstack([RGB, ALPHA])
    path = written(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read(path), blended(RGB, ALPHA))


@pytest.mark.parametrize("options", [{"rowsperstrip": 24}, {"tile": (48, 32)}])
@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_a_jpeg_tiff_has_libjpegs_pixels(
    tmp_path: Path, options: dict[str, object], photometric: str
) -> None:
    path = tmp_path / "a.tif"
    written(path, RGB, photometric=photometric, compression="jpeg", **options)
    np.testing.assert_array_equal(read(path, reader="image"), tifffile.imread(path))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True, "subsampling": 0}]
)
def test_a_jpeg_has_libjpegs_pixels(tmp_path: Path, options: dict[str, object]) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(RGB), **options)
    np.testing.assert_array_equal(read(path), np.asarray(Image.open(path)))


def test_a_grey_jpeg(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(GREY))
    np.testing.assert_array_equal(read(path), np.dstack([np.asarray(Image.open(path))] * 3))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_turned_picture_is_read_as_viewers_show_it(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(RGB), exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read(path), np.asarray(ImageOps.exif_transpose(image)))


def test_a_turned_tiff(tmp_path: Path) -> None:
    tags = [("Orientation", "H", 1, 6, True)]
    path = written(tmp_path / "a.tif", RGB, photometric="rgb", extratags=tags)
    np.testing.assert_array_equal(read(path), np.rot90(RGB, -1))
    np.testing.assert_array_equal(turned(turned(RGB, 6), 8), RGB)


def test_what_lies_outside_is_white(tmp_path: Path) -> None:
    with open_slide(saved(tmp_path / "a.png", Image.fromarray(RGB))) as reader:
        region = reader.read_region(0, -3, -2, WIDTH + 7, HEIGHT + 9)
        np.testing.assert_array_equal(region[2 : 2 + HEIGHT, 3 : 3 + WIDTH], RGB)
        assert region.sum() == RGB.sum() + 255 * 3 * ((WIDTH + 7) * (HEIGHT + 9) - WIDTH * HEIGHT)
        assert (reader.read_region(0, WIDTH, 0, 4, 4) == 255).all()
        assert reader.thumbnail(50).shape == (34, 50, 3)
        with pytest.raises(IndexError):
            reader.read_region(1, 0, 0, 4, 4)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(2**31 - 1, 2**31 - 1, bytes(1000)))
    jpeg = bytearray(saved(tmp_path / "a.jpg", Image.fromarray(RGB)).read_bytes())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    (tmp_path / "bomb.jpg").write_bytes(jpeg)
    zeros = np.zeros((64, 64, 3), np.uint8)
    path = written(tmp_path / "bomb.tif", zeros, photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages.first.tags[name].overwrite(40_000)
    for name in ("bomb.png", "bomb.jpg", "bomb.tif"):
        with pytest.raises(SlideTooLarge, match=r"268435456; convert it to a pyramidal tiled TIFF"):
            open_slide(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_the_limit_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(RGB))
    with open_slide(path, max_image_px=WIDTH * HEIGHT), pytest.raises(SlideTooLarge):
        open_slide(path, max_image_px=WIDTH * HEIGHT - 1)  # also while another reader has it open

    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(image_reader, "tiff_pixels", decode)
    monkeypatch.setattr(
        image_reader,
        "_WHOLE_FILES",
        [(start, header, decode) for start, header, _ in image_reader._WHOLE_FILES],
    )
    with pytest.raises(SlideTooLarge, match="101 x 70 pixels"):
        open_slide(path, max_image_px=WIDTH * HEIGHT - 1)


def test_a_file_is_no_larger_than_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(image_reader, "_MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(SlideTooLarge, match="bytes"):
        open_slide(path)


def animated(path: Path) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    frames[0].save(path, save_all=True, append_images=frames[1:])


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "16 bit PNG": ("a.png", lambda p: saved(p, Image.fromarray(GREY * np.uint16(3))), "16 bits"),
    "animated PNG": ("a.png", animated, "animated"),
    "CMYK JPEG": ("a.jpg", lambda p: saved(p, Image.fromarray(RGB).convert("CMYK")), "CMYK"),
    "16 bit TIFF": ("a.tif", lambda p: written(p, GREY * np.uint16(3)), "16 bits"),
    "float TIFF": ("a.tif", lambda p: written(p, GREY.astype(np.float32)), "32 bits"),
    "stack of TIFF": (
        "a.tif",
        lambda p: written(p, np.stack([GREY, GREY]), photometric="minisblack"),
        "2 pictures",
    ),
    "five channels": (
        "a.tif",
        lambda p: written(p, np.dstack([RGB, GREY, GREY]), photometric="rgb"),
        "5 channels",
    ),
    "premultiplied alpha": (
        "a.tif",
        lambda p: written(
            p, np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["assocalpha"]
        ),
        "4 channels",
    ),
    "palette TIFF": ("a.tif", lambda p: saved(p, Image.fromarray(RGB).quantize(16)), "palette"),
    "CMYK TIFF": ("a.tif", lambda p: saved(p, Image.fromarray(RGB).convert("CMYK")), "separated"),
    "JPEG 2000 TIFF": (
        "a.tif",
        lambda p: written(p, RGB, photometric="rgb", compression="jpeg2000"),
        "jpeg2000",
    ),
    "GIF": ("a.gif", lambda p: saved(p, Image.fromarray(GREY)), "no format"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    name, write, says = REFUSED[kind]
    write(tmp_path / name)
    with pytest.raises(SlideFormatUnsupported, match=says):
        open_slide(tmp_path / name)


def test_no_image_is_asked_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(SlideFormatUnsupported, match="no PNG, JPEG or TIFF"):
        open_slide(tmp_path / "a.txt", reader="image")


WHOLE: dict[str, bytes] = {}
for _format, _options in (("PNG", {}), ("JPEG", {}), ("TIFF", {"compression": "tiff_lzw"})):
    _file = io.BytesIO()
    Image.fromarray(RGB).save(_file, _format, **_options)
    WHOLE[_format] = _file.getvalue()


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_corrupt(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "cut"
    path.write_bytes(WHOLE[kind][: int(share * len(WHOLE[kind]))])
    with pytest.raises(SlideCorrupt, match="copy the file again"):
        open_slide(path)


def test_a_png_without_its_end_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(WHOLE["PNG"][:-12])
    with pytest.raises(SlideCorrupt, match="cut short"):
        open_slide(tmp_path / "a.png")


def test_a_changed_pixel_of_a_png_is_corrupt(tmp_path: Path) -> None:
    data = bytearray(WHOLE["PNG"])
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(SlideCorrupt, match="damaged image"):
        open_slide(tmp_path / "a.png")


def test_zeros_in_a_jpeg_are_corrupt(tmp_path: Path) -> None:
    data = WHOLE["JPEG"]
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    with pytest.raises(SlideCorrupt):
        open_slide(tmp_path / "a.jpg")


def test_any_changed_byte_gives_pixels_or_a_typed_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "a"
    for data in WHOLE.values():
        for _ in range(40):
            spoilt = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                spoilt[place] = rng.integers(256)
            path.write_bytes(spoilt)
            try:
                open_slide(path, max_image_px=2**20).close()
            except CmamilError as problem:
                assert str(path) in str(problem)


def test_a_jpeg_of_countless_scans_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "a.jpg", Image.fromarray(RGB), progressive=True).read_bytes()
    scan = data.index(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:scan] + data[scan:-2] * 20 + data[-2:])
    with pytest.raises(SlideCorrupt, match="100 scans"):
        open_slide(tmp_path / "a.jpg")


def test_a_missing_strip_is_corrupt(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", RGB, photometric="rgb", rowsperstrip=10)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages.first.tags["StripByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    with pytest.raises(SlideCorrupt, match="leaves out pixels"):
        open_slide(path)


def test_a_jpeg_strip_cut_short_is_corrupt_not_grey(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", RGB, photometric="ycbcr", compression="jpeg")
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages.first.tags["StripByteCounts"]
        tag.overwrite([tag.value[0] // 2])
    with pytest.raises(SlideCorrupt):
        open_slide(path)


@pytest.mark.parametrize("compression", [None, "deflate", "zstd"])
@pytest.mark.parametrize("rows", [10, HEIGHT])
def test_strips_of_another_width_are_corrupt(
    tmp_path: Path, compression: str | None, rows: int
) -> None:
    """Rows would be torn apart."""
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "compression": compression, "rowsperstrip": rows}
    set_entry(written(path, RGB, metadata=None, **options), "ImageWidth", 0, WIDTH // 2)
    with pytest.raises(SlideCorrupt, match="copy the file again"):
        open_slide(path)


@pytest.mark.parametrize("to_itself", [False, True])
@pytest.mark.parametrize("reader", ["auto", "image"])
def test_directories_in_a_circle_are_corrupt(tmp_path: Path, reader: str, to_itself: bool) -> None:
    """tifffile alone would follow them for ever."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, photometric="rgb", metadata=None)
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    close_circle(path, to_itself=to_itself)
    with pytest.raises(SlideCorrupt, match="copy the file again"):
        open_slide(path, reader=reader)


def test_further_pages_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, photometric="rgb", metadata=None)
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    with open_slide(path) as reader:
        assert reader.facts.warnings == ("Of the TIFF's 2 pages only the first is read.",)
        np.testing.assert_array_equal(reader.read_region(0, 0, 0, WIDTH, HEIGHT), RGB)


def test_microns_per_pixel_of_png_and_jpeg_are_only_given(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path / name, Image.fromarray(RGB), dpi=(50_800, 50_800))
        with open_slide(path) as reader, pytest.raises(MppUnknown, match="--mpp"):
            reader.facts.require_mpp()
        with open_slide(path, mpp=0.5) as reader:
            assert (reader.facts.mpp, reader.facts.mpp_source) == (0.5, "override")


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20_000, 20_000), "CENTIMETER", 0.5),
        ((20_000, 20_100), "CENTIMETER", 0.5),
        ((50_800, 50_800), "INCH", None),
        ((20_000, 20_000), "NONE", None),
        ((118.11, 118.11), "CENTIMETER", None),  # 300 per inch
        ((944.9, 944.9), "CENTIMETER", None),  # 2400 per inch
        ((10**6, 10**6), "CENTIMETER", None),
    ],
)
def test_microns_per_pixel_of_a_tiffs_tags(
    tmp_path: Path, resolution: tuple[float, float], unit: str, mpp: float | None
) -> None:
    path = tmp_path / "a.tif"
    written(path, RGB, photometric="rgb", resolution=resolution, resolutionunit=unit)
    with open_slide(path) as reader:
        facts = reader.facts
    assert facts.mpp_source == ("metadata" if mpp else "unknown")
    assert facts.mpp == (pytest.approx(mpp, rel=0.01) if mpp else None)
    assert any("resolution tags" in warning for warning in facts.warnings) is bool(mpp)


def test_tags_of_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options = {"resolution": (20_000, 30_000), "resolutionunit": "CENTIMETER"}
    written(path, RGB, photometric="rgb", **options)
    with open_slide(path) as reader, pytest.raises(MppUnusable, match="not square"):
        reader.facts.require_mpp()


def test_readers_of_one_file_share_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    decoded = []
    start, header, pixels = image_reader._WHOLE_FILES[0]

    def counting(data: bytes) -> np.ndarray:
        decoded.append(threading.get_ident())
        return pixels(data)

    monkeypatch.setattr(image_reader, "_WHOLE_FILES", [(start, header, counting)])
    ready, done = threading.Barrier(5), threading.Barrier(5)

    def work() -> None:
        ready.wait()
        with open_slide(path):
            done.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    done.wait()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1
    assert not image_reader._shared, "pixels are let go with the last reader"
    Image.fromarray(RGB[::-1]).save(path)
    np.testing.assert_array_equal(read(path), RGB[::-1])
    assert len(decoded) == 2


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    reader = open_slide(path)
    assert repr(reader) == f"ImageReader({str(path)!r})"
    assert isinstance(reader, ImageReader)
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read_region(0, 0, 0, 1, 1)


@pytest.mark.realdata
def test_a_real_untiled_tiff(real_data: Path) -> None:
    path = real_data / "slides" / "kidney-48-5.tif"
    np.testing.assert_array_equal(read(path), tifffile.imread(path))
