"""Plug-ins: the libraries on PyPI, by doubles of their interfaces, and what any plug-in may do wrong."""

from __future__ import annotations

import importlib.metadata
import io
import math
import struct
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmamil_sdk.errors import (
    DecoderCrashed,
    MppUnknown,
    SlideCorrupt,
    SlideFormatUnsupported,
)
from cmamil_sdk.slides import isolated_slide, open_slide, plugin_registry
from cmamil_sdk.slides.plugin_reader import PluginReader, corner_of
from cmamil_sdk.slides.plugins import SlidePlugin

from .tiffs import picture

HEIGHT, WIDTH = 96, 128
RGB = picture(HEIGHT, WIDTH)
OPAQUE = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
RGBA = np.concatenate([RGB, OPAQUE], axis=2)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The doubles, where the packages themselves would be imported from."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "doubles"))
    yield
    for name in ("kfbslide", "tmapslide", "sdpc", "odd_library"):
        sys.modules.pop(name, None)


def stored(path: Path, *, header: bytes = b"", **changes: Any) -> Path:
    values: dict[str, Any] = {"rgba": RGBA, "spoilt": False, "mpp": 0.25, "scan_scale": 40}
    values |= {"version": "07", "mpp_source": "header"} | changes
    pixels = io.BytesIO()
    np.savez(pixels, **values)
    path.write_bytes(header.ljust(2048, b"\0") + pixels.getvalue())
    return path


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make these objects the group's entry points; an exception is one that fails to load."""

    def add(**objects: Any) -> None:
        def entry(name: str, value: Any) -> Any:
            def load() -> Any:
                if isinstance(value, Exception):
                    raise value
                return value

            return SimpleNamespace(name=name, value=f"some.package:{name}", load=load)

        def entry_points(*, group: str) -> list[Any]:
            assert group == "cmamil_sdk.slide_readers"
            return [entry(name, objects[name]) for name in sorted(objects)]

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        plugin_registry._installed.cache_clear()

    yield add
    plugin_registry._installed.cache_clear()


def plugin(name: str, opener: Callable[[Path], Any], **options: Any) -> SlidePlugin:
    return SlidePlugin(name, (".odd",), opener, package="odd-slides", **options)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    (tmp_path / "a.odd").write_bytes(b"odd")
    return tmp_path / "a.odd"


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("suffix", "vendor", "power", "downsamples"),
    [
        (".kfb", "kfbio", 40.0, (1.0, 2.0, 4.0)),
        (".KFB", "kfbio", 40.0, (1.0, 2.0, 4.0)),
        (".TMAP", "unic", 20.0, (1.0, 2.0)),
        (".sdpc", "sqray", 20.0, (1.0, 4.0)),
    ],
)
def test_a_vendors_file_is_a_slide(
    tmp_path: Path, suffix: str, vendor: str, power: float, downsamples: tuple[float, ...]
) -> None:
    mpp = 0.5 if suffix == ".TMAP" else 0.25
    with open_slide(stored(tmp_path / f"a{suffix}")) as reader:
        facts = reader.facts
        assert (facts.reader, facts.vendor, facts.objective_power) == ("plugin", vendor, power)
        assert facts.reader_reason.startswith(f"plug-in {suffix[1:].lower()} (")
        assert (facts.mpp, facts.mpp_source) == (mpp, "metadata")
        assert (facts.width, facts.height) == (WIDTH, HEIGHT)
        assert facts.bounds == (0, 0, WIDTH, HEIGHT)
        assert tuple(level.downsample for level in facts.levels) == downsamples
        for number, level in enumerate(facts.levels):
            wanted = np.full((level.height + 9, level.width + 12, 3), 255, np.uint8)
            step = int(level.downsample)
            wanted[4:-5, 5:-7] = RGB[::step, ::step]
            region = reader.read_region(number, -5, -4, level.width + 12, level.height + 9)
            np.testing.assert_array_equal(region, wanted)
            part = reader.read_region(number, 3, 2, 11, 7)
            np.testing.assert_array_equal(part, RGB[::step, ::step][2:9, 3:14])
        assert (reader.read_region(0, WIDTH, 0, 4, 4) == 255).all()
        assert reader.thumbnail(64).shape == (48, 64, 3)
    with open_slide(stored(tmp_path / f"b{suffix}"), mpp=0.3) as reader:
        assert (reader.facts.mpp, reader.facts.mpp_source) == (0.3, "override")


@pytest.mark.usefixtures("libraries")
def test_tiles_that_kfbslide_leaves_transparent_are_white(tmp_path: Path) -> None:
    rgba = RGBA.copy()
    rgba[:32, :32] = 0
    with open_slide(stored(tmp_path / "a.kfb", rgba=rgba)) as reader:
        region = reader.read_region(0, 0, 0, 64, 64)
    assert (region[:32, :32] == 255).all()
    np.testing.assert_array_equal(region[32:], RGB[32:64, :64])


@pytest.mark.usefixtures("libraries")
def test_a_tile_that_does_not_decode_is_corrupt_and_names_the_plugin(tmp_path: Path) -> None:
    with open_slide(stored(tmp_path / "a.kfb", spoilt=True)) as reader:
        for _ in range(2):
            with pytest.raises(SlideCorrupt, match=r"\(8, 4\), level 1.*kfb: Unidentified"):
                reader.read_region(1, 4, 2, 10, 10)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("suffix", [".kfb", ".tmap"])
def test_a_file_that_the_library_does_not_know(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"something else")
    with pytest.raises(SlideFormatUnsupported, match=f"plug-in {suffix[1:]}.*Cannot parse"):
        open_slide(path)


def kfb_header(tile_bytes: int, index_start: int = 100) -> bytes:
    """One tile in the table, where the library has it."""
    header = bytearray(2048)
    struct.pack_into("<I", header, 16, 1)
    struct.pack_into("<Q", header, 68, index_start)
    struct.pack_into("<I", header, 100 + 32, tile_bytes)
    return bytes(header)


def tmap_header(tile_start: int, tile_bytes: int, index_start: int = 1200) -> bytes:
    """One level of one tile in the tables, where the library has them."""
    header = bytearray(2048)
    struct.pack_into("<IfIIIII", header, 560, 0, 20.0, WIDTH, HEIGHT, 1, 1, index_start)
    struct.pack_into("<QI", header, 1200 + 24, tile_start, tile_bytes)
    return bytes(header)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("name", "whole", "cut"),
    [
        ("a.kfb", lambda size: kfb_header(size - 64), lambda size: kfb_header(size - 63)),
        ("a.kfb", lambda _: kfb_header(0), lambda size: kfb_header(0, size - 63)),
        (
            "a.tmap",
            lambda size: tmap_header(size - 11, 11),
            lambda size: tmap_header(size - 10, 11),
        ),
        ("a.tmap", lambda _: tmap_header(0, 0), lambda size: tmap_header(0, 0, size - 39)),
    ],
)
def test_a_file_that_lacks_tiles_is_corrupt(
    tmp_path: Path, name: str, whole: Callable[[int], bytes], cut: Callable[[int], bytes]
) -> None:
    """The libraries draw them as empty glass, or as their neighbours."""
    size = stored(tmp_path / name).stat().st_size
    with open_slide(stored(tmp_path / name, header=whole(size))) as reader:
        assert reader.facts.width == WIDTH
    with pytest.raises(SlideCorrupt, match="cut short"):
        open_slide(stored(tmp_path / name, header=cut(size)))


@pytest.mark.usefixtures("libraries")
def test_a_tmap_whose_scale_is_a_guess_does_not_say_it(tmp_path: Path) -> None:
    with open_slide(stored(tmp_path / "a.tmap", mpp_source="derived")) as reader:
        assert reader.facts.mpp_source == "unknown"
        assert reader.facts.objective_power == 20
        with pytest.raises(MppUnknown):
            reader.facts.require_mpp()


@pytest.mark.usefixtures("libraries")
def test_a_tmap_of_version_6_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slides = []
    library = import_module("tmapslide").OpenSlide
    closing = library.close

    def close(slide: Any) -> None:
        slides.append(slide)
        closing(slide)

    monkeypatch.setattr(library, "close", close)
    with pytest.raises(SlideFormatUnsupported, match="version 06"):
        open_slide(stored(tmp_path / "a.tmap", version="06"))
    assert slides[0].closed


@pytest.mark.usefixtures("libraries")
def test_an_sdpc_that_crashes_its_library_ends_no_other_process(tmp_path: Path) -> None:
    path = tmp_path / "a.sdpc"
    path.write_bytes(b"no slide")
    with pytest.raises(SlideCorrupt, match=r"plug-in sdpc .*NULL pointer"):
        open_slide(path)
    path.write_bytes(b"SQ damaged")
    with pytest.raises(DecoderCrashed, match=r"a\.sdpc was ended by SIGSEGV"):
        open_slide(path)
    with open_slide(stored(path, spoilt=True)) as reader:
        for _ in range(2):
            with pytest.raises(DecoderCrashed, match="SIGSEGV"):
                reader.read_region(0, 0, 0, 8, 8)


@pytest.mark.parametrize("suffix", [".kfb", ".tmap", ".sdpc"])
def test_a_missing_package_is_named(tmp_path: Path, suffix: str) -> None:
    packages = {".kfb": "kfbslide", ".tmap": "tmapslide", ".sdpc": "sdpc-for-python"}
    with pytest.raises(SlideFormatUnsupported, match=f"pip install {packages[suffix]}"):
        open_slide(stored(tmp_path / f"a{suffix}"))


def test_openslide_comes_first(
    synthetic_slide: Path, tmp_path: Path, install: Callable[..., None]
) -> None:
    def fail(_path: Path) -> Any:
        raise AssertionError("the plug-in was asked")

    install(svs=SlidePlugin("greedy", (".svs",), fail, package="greedy"))
    with open_slide(synthetic_slide) as reader:
        assert reader.facts.reader == "direct"
    with pytest.raises(SlideCorrupt, match="greedy"):
        open_slide(synthetic_slide, reader="plugin")


@pytest.mark.usefixtures("libraries")
def test_an_installed_plugin_reads_its_suffix(odd: Path, install: Callable[..., None]) -> None:
    whole = import_module("odd_library").whole
    install(odd=plugin("odd", whole))
    assert ".odd" in plugin_registry.plugin_suffixes()
    with open_slide(odd) as reader:
        assert reader.facts.reader_reason == "plug-in odd (odd-slides) for .odd"
        assert repr(reader) == f"PluginReader({str(odd)!r}, 'odd')"
        assert not reader.read_region(0, 0, 0, 5, 5).any()
        assert reader.facts.mpp is None
    install(kfb=SlidePlugin("mine", (".kfb",), whole, package="mine"))
    path = odd.with_suffix(".kfb")
    path.write_bytes(b"kfb")
    with open_slide(path) as reader:
        assert reader.facts.vendor == "odd", "an installed plug-in comes before the package's own"


def test_no_plugin_or_several(odd: Path, install: Callable[..., None]) -> None:
    with pytest.raises(SlideFormatUnsupported, match=r"no plug-in reads \.odd"):
        open_slide(odd, reader="plugin")
    install(a=plugin("one", lambda _: None), b=plugin("other", lambda _: None))
    with pytest.raises(SlideFormatUnsupported, match="one and other both read"):
        open_slide(odd)


def test_a_plugin_that_does_not_load_hinders_no_other_format(
    synthetic_slide: Path, odd: Path, install: Callable[..., None]
) -> None:
    install(broken=RuntimeError("no such library"), other=object())
    assert plugin_registry.broken_plugins() == {
        "broken": "some.package:broken fails to load (RuntimeError: no such library)",
        "other": "some.package:other is no SlidePlugin",
    }
    open_slide(synthetic_slide).close()
    with pytest.raises(SlideFormatUnsupported):
        open_slide(odd)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(
    ("opener", "error", "says"),
    [
        ("raises", SlideCorrupt, "plug-in odd .*KeyError: 'tile index'"),
        ("is_missing", SlideFormatUnsupported, "pip install odd-slides"),
    ],
)
def test_whatever_a_plugin_raises_is_named(
    odd: Path,
    install: Callable[..., None],
    opener: str,
    error: type[Exception],
    says: str,
    isolated: bool,
) -> None:
    library = import_module("odd_library")
    install(odd=plugin("odd", getattr(library, opener), isolated=isolated))
    with pytest.raises(error, match=says):
        open_slide(odd)


@pytest.mark.usefixtures("libraries")
def test_a_silent_library_is_ended(
    odd: Path, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_slide, "_PATIENCE_S", 0.2)
    install(odd=plugin("odd", import_module("odd_library").is_silent, isolated=True))
    with pytest.raises(DecoderCrashed, match="SIGKILL"):
        open_slide(odd)


def _fails(problem: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise problem

    return fail


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"level_downsamples": ()}, "ValueError"),
        ({"level_dimensions": (), "level_downsamples": ()}, "makes no pyramid"),
        ({"level_downsamples": (2.0,)}, "makes no pyramid"),
        ({"level_dimensions": ((40, 0),)}, "makes no pyramid"),
        ({"dimensions": (41, 30)}, "makes no pyramid"),
        ({"properties": None}, "AttributeError"),
        (
            {"level_dimensions": ((40, 30), (40, 30)), "level_downsamples": (1.0, 1.0)},
            "makes no pyramid",
        ),
    ],
)
def test_facts_that_make_no_sense_are_the_plugins(
    odd: Path, changes: dict[str, Any], says: str
) -> None:
    closed = []
    changed = import_module("odd_library").slide(**changes, close=lambda: closed.append(True))
    with pytest.raises(SlideCorrupt, match=f"plug-in odd.*{says}"):
        PluginReader(odd, plugin("odd", lambda _: changed), mpp=None, reason="")
    assert closed


@pytest.mark.usefixtures("libraries")
def test_a_level_of_another_shape_than_the_library_says_is_left_out(odd: Path) -> None:
    levels = {"level_dimensions": ((40, 30), (20, 15)), "level_downsamples": (1.0, 0.5)}
    changed = import_module("odd_library").slide(**levels)
    with PluginReader(odd, plugin("odd", lambda _: changed), mpp=None, reason="") as reader:
        assert len(reader.facts.levels) == 1
        assert any("20 x 15" in warning for warning in reader.facts.warnings)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("read", "says"),
    [
        (_fails(ZeroDivisionError("scale")), "ZeroDivisionError: scale"),
        (lambda *_: np.zeros((4, 4, 3), np.uint8), r"returned uint8 \[4, 4, 3\]"),
        (lambda *_: np.zeros((5, 6, 3)), r"returned float64"),
        (lambda *_: np.zeros((5, 6), np.uint8), r"returned uint8 \[5, 6\]"),
        (lambda *_: None, "returned object"),
    ],
)
def test_pixels_that_make_no_sense_are_corrupt(
    odd: Path, read: Callable[..., Any], says: str
) -> None:
    changed = import_module("odd_library").slide(read_region=read)
    with (
        PluginReader(odd, plugin("odd", lambda _: changed), mpp=None, reason="") as reader,
        pytest.raises(SlideCorrupt, match=f"plug-in odd.*{says}"),
    ):
        reader.read_region(0, 1, 2, 6, 5)


def test_errors_of_our_own_and_of_memory_pass(odd: Path) -> None:
    for problem in (MemoryError(), MppUnknown("said")):
        with pytest.raises(type(problem)):
            PluginReader(odd, plugin("odd", _fails(problem)), mpp=None, reason="")


@given(
    pixel=st.integers(0, 10**6),
    downsample=st.one_of(
        st.sampled_from([1.0, 2.0, 4.0, 16.0, 4.002, 2.0003, 1 / 0.3]),
        st.floats(1.0, 200.0),
    ),
)
def test_a_rounding_reader_takes_the_wanted_pixel(pixel: int, downsample: float) -> None:
    corner = corner_of(pixel, downsample)
    assert int(corner / downsample) == pixel
    before = (corner - 1) / downsample
    assert corner == 0 or int(before) < pixel or math.isclose(before, pixel), "no later than needed"
