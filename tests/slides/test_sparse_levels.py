"""A level that lacks tiles where a finer one has some is not read, and never silently taken for glass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.slides.sparse_levels import StoredMap, without_sparse_levels
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales

from .tiffs import picture, write_levels

TILE_PX, EDGE_PX = 64, 1024
CENTIMETRE = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
APERIO = "Aperio Image Library v1\r\n1024x1024 (64x64) JPEG/YCC|AppMag = 20|MPP = 0.5"
LACKS = "Level 1 lacks 8 of 16 tiles where finer levels have pixels; it and those after it are not read."
READERS = [
    "auto",
    "openslide",
    "direct",
    pytest.param(
        "cucim",
        marks=pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed"),
    ),
]


def pyramid(path: Path, downsamples: tuple[int, ...] = (1, 4, 16), **tags: object) -> Path:
    """Tissue with a seam of glass along the right, 20x."""
    pixels = picture(EDGE_PX, EDGE_PX, seed=3)
    pixels[:, -256:] = 244
    return write_levels(path, [pixels[::d, ::d] for d in downsamples], **CENTIMETRE, **tags)


def leave_out(path: Path, page: int, numbers: range | list[int]) -> Path:
    with tifffile.TiffFile(path) as file:
        tag = file.pages[page].tags["TileByteCounts"]
        edit = np.memmap(
            path, {3: "<u2", 4: "<u4"}[int(tag.dtype)], "r+", tag.valueoffset, (tag.count,)
        )
    edit[list(numbers)] = 0
    edit.flush()
    return path


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """The upper half of level 1 is not stored; levels 0 and 2 are whole."""
    return leave_out(pyramid(tmp_path / "sparse.tiff"), 1, range(8))


@pytest.mark.parametrize("reader", READERS)
def test_tissue_is_found_where_the_level_has_none(sparse: Path, reader: str) -> None:
    recipe = TilingRecipe(scales=parse_scales("10x,20x"), tile_px=TILE_PX)
    one_level = pyramid(sparse.with_name("one.tiff"), (1,))
    with (
        open_slide(sparse, reader=reader) as ours,
        open_slide(one_level, reader="openslide") as theirs,
    ):
        assert reader in ("auto", ours.facts.reader)
        assert ours.facts.reader != "openslide" or reader == "openslide"
        assert [level.downsample for level in ours.facts.levels] == [1.0]
        assert LACKS in ours.facts.warnings
        plans = [make_plan(slide, recipe) for slide in (ours, theirs)]
    assert plans[0].counts() == plans[1].counts()
    for found, expected in zip(plans[0].scales, plans[1].scales, strict=True):
        np.testing.assert_array_equal(found.coords, expected.coords)
        assert (found.coords[:, 1] < EDGE_PX // 2).any()


@pytest.mark.parametrize("reader", READERS)
def test_no_scale_is_read_from_it(sparse: Path, reader: str) -> None:
    tissue = TissueRecipe(method="none", min_share=0.0)
    recipe = TilingRecipe(
        scales=parse_scales("5x,20x"), tile_px=TILE_PX, scale_source="stored", tissue=tissue
    )
    with open_slide(sparse, reader=reader) as slide:
        plan = make_plan(slide, recipe)
        assert set(plan.geometry.levels().values()) == {0}
        for batch in plan.batches():
            tiles = read_tiles(slide, batch)
            assert tiles.ok.all()
            assert not (tiles.pixels == 255).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("whole_up_to", [1, 2])
def test_whole_levels_before_it_stay(tmp_path: Path, whole_up_to: int) -> None:
    path = leave_out(pyramid(tmp_path / "p.tiff", (1, 2, 4, 8)), whole_up_to + 1, [0])
    with open_slide(path) as slide:
        assert len(slide.facts.levels) == whole_up_to + 1
        assert f"Level {whole_up_to + 1} lacks 1 of" in slide.facts.warnings[-1]


def test_glass_that_no_level_stores_is_no_fault(tmp_path: Path) -> None:
    """The right quarter: columns 12 to 15 of 16 in level 0, 3 of 4 in level 1."""
    path = pyramid(tmp_path / "glass.tiff")
    leave_out(path, 0, [n for n in range(256) if n % 16 >= 12])
    leave_out(path, 1, [3, 7, 11, 15])
    with open_slide(path) as slide:
        assert len(slide.facts.levels) == 3
        assert [w for w in slide.facts.warnings if "lacks" in w] == []
        assert (
            "64 of 256 tiles of level 0 are not stored; they are read as white glass."
            in slide.facts.warnings
        )
    leave_out(path, 1, [0])
    with open_slide(path) as slide:
        assert len(slide.facts.levels) == 1
        assert "Level 1 lacks 1 of 16 tiles" in slide.facts.warnings[-1]


def test_a_level_may_not_lack_what_lies_between_it_and_the_finest(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "between.tiff")
    leave_out(path, 0, range(256))
    leave_out(path, 2, [0])
    with open_slide(path) as slide:
        assert len(slide.facts.levels) == 2


def test_aperio_levels_are_filled_from_the_next_finer(tmp_path: Path) -> None:
    path = leave_out(pyramid(tmp_path / "a.svs", (1, 4), description=APERIO), 1, range(8))
    with open_slide(path) as slide:
        assert slide.facts.vendor == "aperio"
        assert len(slide.facts.levels) == 2
        assert not [w for w in slide.facts.warnings if "lacks" in w]
        drawn = slide.read_region(1, 0, 0, 192, 128).astype(int)
        finest = slide.read_region(0, 0, 0, 768, 512).reshape(128, 4, 192, 4, 3).mean((1, 3))
    assert drawn.std() > 20
    assert np.abs(drawn - finest).mean() < 25


def facts_of(*edges: int) -> SlideFacts:
    return SlideFacts(
        path="square.tiff",
        slide_id="square",
        width=edges[0],
        height=edges[0],
        bounds=(0, 0, edges[0], edges[0]),
        levels=tuple(Level(edge, edge, edges[0] / edge) for edge in edges),
        mpp=None,
        mpp_source="unknown",
        mpp_problem=None,
        objective_power=None,
        vendor="generic-tiff",
        compression="jpeg",
        reader="openslide",
        reader_reason="test",
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_tile_is_judged_by_what_lies_under_it(data: st.DataObject) -> None:
    edge = data.draw(st.integers(40, 400))
    coarse_edge = max(1, int(edge / data.draw(st.sampled_from([2.0, 3.0, 4.0, 2.3]))))
    tile_px, coarse_px = (data.draw(st.sampled_from([8, 16, 24])) for _ in range(2))
    count, coarse_count = -(-edge // tile_px), -(-coarse_edge // coarse_px)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    stored = rng.random((count, count)) < data.draw(st.sampled_from([0.02, 0.1, 0.5]))
    number = data.draw(st.integers(0, coarse_count**2 - 1))
    whole = np.ones((coarse_count, coarse_count), bool)
    row, column = divmod(number, coarse_count)
    whole[row, column] = False
    images = {
        (edge, edge): StoredMap(tile_px, tile_px, stored),
        (coarse_edge, coarse_edge): StoredMap(coarse_px, coarse_px, whole),
    }
    kept = len(without_sparse_levels(facts_of(edge, coarse_edge), images).levels)

    pixels = stored.repeat(tile_px, 0).repeat(tile_px, 1)[:edge, :edge]
    scale = edge / coarse_edge

    def under(margin: float) -> bool:
        """Whether a pixel is stored in the tile's place, less so many pixels at each side."""
        y0, x0 = ((place * coarse_px + margin) * scale for place in (row, column))
        y1, x1 = (
            (min((place + 1) * coarse_px, coarse_edge) - margin) * scale for place in (row, column)
        )
        at = np.arange(edge)
        rows, columns = ((at + 1 > lo) & (at < hi) for lo, hi in ((y0, y1), (x0, x1)))
        return bool(pixels[np.ix_(rows, columns)].any())

    if under(1.0):
        assert kept == 1
    if not under(0.0):
        assert kept == 2
