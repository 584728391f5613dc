"""Large generated slides: what the readers see of them, and that they follow from their description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.slides import open_slide
from cmamil_sdk.synthetic.large_slide import LargeSlide, write_large_slide
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

SLIDE = LargeSlide(size_px=3000, tissue_share=0.4, downsamples=(1, 4))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_slide(SLIDE, tmp_path_factory.mktemp("large") / "large.svs")


def test_it_is_read_directly_and_has_the_tissue_asked_for(written: Path) -> None:
    with open_slide(written) as slide:
        facts = slide.facts
        plan = make_plan(slide, TilingRecipe(scales=parse_scales("20x")))
    assert (facts.reader, facts.width, facts.height) == ("direct", 3000, 3000)
    assert [(level.width, level.downsample) for level in facts.levels] == [(3000, 1.0), (750, 4.0)]
    assert facts.mpp == pytest.approx(0.499)
    assert 0.25 < plan.tissue_share <= 0.42, "lumina of glands are no tissue"
    assert [path.name for path in written.parent.iterdir()] == ["large.svs"], "nothing left over"


def test_levels_show_the_same_place(written: Path) -> None:
    with open_slide(written) as slide:
        fine = slide.read_region(0, 960, 960, 960, 960).reshape(240, 4, 240, 4, 3)
        coarse, beside = (slide.read_region(1, x, 240, 240, 240) for x in (240, 241))
    reduced = fine.mean(axis=(1, 3))
    difference = [np.abs(reduced - level).mean() for level in (coarse, beside)]
    assert difference[0] < 0.7 * difference[1], "one pixel off is further away"


def test_tissue_is_no_flat_colour_and_glass_is(written: Path) -> None:
    with open_slide(written) as slide:
        pixels = slide.read_region(0, 0, 0, 3000, 3000)
        plan = make_plan(slide, TilingRecipe(scales=parse_scales("20x")))
    tiles = [pixels[y : y + 224, x : x + 224] for x, y in plan.scales[0].coords]
    assert min(tile.std() for tile in tiles) > 5
    assert pixels[:50, :50].std() < 4


def test_the_bytes_follow_from_the_description(written: Path, tmp_path: Path) -> None:
    again = write_large_slide(SLIDE, tmp_path / "again.svs")
    assert again.read_bytes() == written.read_bytes()
    other = write_large_slide(replace(SLIDE, seed=1), tmp_path / "other.svs")
    assert other.read_bytes() != written.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size_px": 900}, "at least 960"),
        ({"tissue_share": 1.0}, "between 0 and 1"),
        ({"downsamples": (1, 3, 4)}, "divide the last"),
        ({"downsamples": (2, 4)}, "start with 1"),
        ({"sheets": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(FieldInvalid, match=said):
        replace(SLIDE, **change)  # type: ignore[arg-type]
