"""The plan of the cohort, and the files written from it."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.synthetic import (
    CLASSES,
    SyntheticSlide,
    plan_cohort,
    render_slide,
    write_cohort,
    write_slide,
)


def small(slide: SyntheticSlide) -> SyntheticSlide:
    """The same slide at a quarter of the area and of the abnormal cells."""
    return replace(
        slide, width_px=1200, height_px=1248, abnormal_cells=26 if slide.abnormal_cells else 0
    )


@pytest.mark.parametrize("n_slides", [6, 7, 8, 9, 31, 59, 60, 100])
@pytest.mark.parametrize("seed", [0, 3])
def test_classes_are_paired_and_patients_are_not_split(n_slides: int, seed: int) -> None:
    plan = plan_cohort(n_slides, seed=seed)
    assert len(plan) == n_slides == len({slide.slide_id for slide in plan})
    sizes = Counter(slide.label for slide in plan)
    assert sizes["in_situ"] == sizes["invasive"]
    assert abs(sizes["benign"] - sizes["in_situ"]) <= 1
    held_out = Counter(slide.label for slide in plan if slide.split_hint == "held_out")
    assert len(set(held_out.values())) == 1 and set(held_out) == set(CLASSES)
    for split in ("development", "held_out"):
        cells = {
            label: sorted(
                slide.abnormal_cells
                for slide in plan
                if slide.split_hint == split and slide.label == label
            )
            for label in CLASSES
        }
        assert cells["in_situ"] == cells["invasive"]
        assert min(cells["in_situ"]) > 0 and not any(cells["benign"])
    for patient in {slide.patient for slide in plan}:
        own = [slide for slide in plan if slide.patient == patient]
        assert len({(slide.label, slide.split_hint) for slide in own}) == 1
        assert len(own) <= 3


def test_the_default_plan_is_the_demo_s() -> None:
    plan = plan_cohort()
    assert Counter(slide.label for slide in plan) == dict.fromkeys(CLASSES, 20)
    held_out = [slide for slide in plan if slide.split_hint == "held_out"]
    assert Counter(slide.label for slide in held_out) == dict.fromkeys(CLASSES, 6)
    slides_of = Counter(slide.patient for slide in plan)
    assert {1, 2, 3} == set(slides_of.values())
    for split in ("development", "held_out"):
        for label in CLASSES:
            group = {s.patient for s in plan if (s.split_hint, s.label) == (split, label)}
            assert len(group) >= 2
    # At 20x, 10x and 5x a slide of this size has at most 121 + 36 + 9 tiles of 224 px.
    assert all(2000 <= side <= 2600 for s in plan for side in (s.width_px, s.height_px))


def test_a_seed_gives_one_plan_and_ids_do_not_tell_the_class() -> None:
    assert plan_cohort(seed=4) == plan_cohort(seed=4) != plan_cohort(seed=5)
    first = Counter(
        label for seed in range(20) for label in [s.label for s in plan_cohort(seed=seed)[:20]]
    )
    assert all(95 <= first[label] <= 172 for label in CLASSES)  # 133 expected, 4 sd either side
    assert not any(label in slide.slide_id for slide in plan_cohort() for label in CLASSES)


def test_held_out_is_rounded_up_to_equal_classes_and_leaves_half() -> None:
    def held(n_slides: int, held_out: int) -> int:
        plan = plan_cohort(n_slides, held_out=held_out)
        return sum(slide.split_hint == "held_out" for slide in plan)

    assert [held(60, asked) for asked in (0, 1, 18, 19, 30, 60)] == [0, 3, 18, 21, 30, 30]
    assert held(6, 18) == 3


@pytest.mark.parametrize(("n_slides", "held_out"), [(5, 0), (0, 0), (60, -1)])
def test_impossible_cohorts_are_refused(n_slides: int, held_out: int) -> None:
    with pytest.raises(FieldInvalid, match="n_slides" if held_out == 0 else "held_out"):
        plan_cohort(n_slides, held_out=held_out)


def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    plan = [small(slide) for slide in plan_cohort(6, seed=2)]
    calls: list[tuple[int, int]] = []
    one = write_cohort(plan, tmp_path / "one", workers=1)
    three = write_cohort(
        plan, tmp_path / "three", workers=3, on_slide=lambda done, all_: calls.append((done, all_))
    )
    assert [path.name for path in three] == [f"{slide.slide_id}.svs" for slide in plan]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in three]
    assert calls == [(done, 6) for done in range(1, 7)]
    assert len({path.read_bytes() for path in one}) == 6
    with (tmp_path / "three" / "labels.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["slide", "patient", "label", "split"]
    assert rows[1:] == [[s.slide_id, s.patient, s.label, s.split_hint] for s in plan]
    assert len(list((tmp_path / "three").iterdir())) == 7


def test_a_written_slide_holds_the_rendered_pixels(tmp_path: Path) -> None:
    slide = plan_cohort()[0]
    pixels = render_slide(slide)
    assert pixels.shape == (slide.height_px, slide.width_px, 3)
    assert np.array_equal(pixels, render_slide(slide))
    with openslide.OpenSlide(write_slide(slide, tmp_path)) as reader:
        assert reader.dimensions == (slide.width_px, slide.height_px)
        assert reader.properties["openslide.objective-power"] == "20"
        assert float(reader.properties["openslide.mpp-x"]) == pytest.approx(0.499)
        assert reader.level_count == 3
        read = np.asarray(reader.read_region((0, 0), 0, reader.dimensions).convert("RGB"))
    assert np.abs(read.astype(int) - pixels).mean() < 4.0


def test_a_slide_that_cannot_be_drawn_stops_the_cohort(tmp_path: Path) -> None:
    plan = [small(slide) for slide in plan_cohort(6)]
    plan[3] = replace(plan[3], width_px=300, height_px=300)
    with pytest.raises(FieldInvalid, match="larger slide"):
        write_cohort(plan, tmp_path)
    assert not (tmp_path / "labels.csv").exists()
    with pytest.raises(FieldInvalid, match="workers"):
        write_cohort(plan, tmp_path, workers=0)
