"""Which slides a command means."""

from __future__ import annotations

import os
from pathlib import Path

import openslide
import pytest

from cmamil_sdk.cli.slide_list import (
    ListedSlide,
    expand_slides,
    slides_by_class,
    slides_with_class,
)
from cmamil_sdk.errors import FieldInvalid, SlideIdDuplicate, SlideNotFound


def touched(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for path in paths:
        path.touch()
    return paths


def paths(slides: list[ListedSlide]) -> list[Path]:
    return [slide.path for slide in slides]


def test_folder_is_sorted_and_holds_slides_only(tmp_path: Path) -> None:
    b, a, c = touched(tmp_path, "b.svs", "a.TIFF", "c.mrxs")
    touched(tmp_path, "labels.csv", "notes.txt")
    assert paths(expand_slides([tmp_path])) == [a, b, c]


def test_a_folder_gives_vendors_formats_but_no_pictures(tmp_path: Path) -> None:
    slides = touched(tmp_path, "a.kfb", "b.SDPC", "c.TMAP")
    touched(tmp_path, "a_mask.png", "thumbnail.jpg", "photo.JPEG")
    assert paths(expand_slides([tmp_path])) == slides
    assert paths(expand_slides([tmp_path / "photo.JPEG"])) == [tmp_path / "photo.JPEG"]
    (tmp_path / "list.csv").write_text("slide\na_mask.png\n")
    assert paths(expand_slides([tmp_path / "list.csv"])) == [tmp_path / "a_mask.png"]
    (only,) = touched(tmp_path / "pictures", "a.png")
    with pytest.raises(SlideNotFound, match=r"images \(PNG, JPEG\) are not searched"):
        expand_slides([only.parent])


def test_files_keep_their_order_and_need_not_exist(tmp_path: Path) -> None:
    names = [tmp_path / "z.svs", tmp_path / "a.svs"]
    assert expand_slides(names) == [ListedSlide(name) for name in names]


def test_csv_paths_are_relative_to_it(tmp_path: Path) -> None:
    table = tmp_path / "sub" / "list.csv"
    table.parent.mkdir()
    table.write_text("\ufeffslide,label\none.svs,x\n\n/abs/two.svs,y\n", encoding="utf-8")
    assert paths(expand_slides([table])) == [tmp_path / "sub" / "one.svs", Path("/abs/two.svs")]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("name\nx.svs\n", FieldInvalid, "no column 'slide'"),
        ("slide\n", SlideNotFound, "lists no slide"),
        ("", SlideNotFound, "lists no slide"),
        ("slide;mpp\na.svs;0.5\n", FieldInvalid, "separated by ';'"),
        ("label,slide\nx\n", FieldInvalid, "line 2"),
        ("label,slide\nx,a.svs\ny,\n", FieldInvalid, "line 3"),
        ("slide,mpp\na.svs,0.5\nb.svs,half\n", FieldInvalid, "line 3: mpp 'half' is no number"),
        ("slide,mpp\n\na.svs,0.5\n\n ,\nb.svs,half\n", FieldInvalid, "line 6: mpp 'half'"),
        ('slide,mpp\n"a\n.svs",0.5\n"b\n.svs",half\n', FieldInvalid, "line 4: mpp 'half'"),
        ("label,slide\n\n\nx\n", FieldInvalid, "line 4: 1 value for 2 columns"),
        ("slide,mpp\na.svs,250\n", FieldInvalid, "line 2: mpp '250' is no number"),
        ("slide,mpp\na.svs,nan\n", FieldInvalid, "mpp 'nan'"),
        ("slide,mpp\na.svs,0.5\na.svs,0.5\n", SlideIdDuplicate, "is named twice"),
    ],
)
def test_unusable_lists(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    table = tmp_path / "list.csv"
    table.write_text(text)
    with pytest.raises(error, match=says):
        expand_slides([table])


def test_missing_csv_and_binary_csv(tmp_path: Path) -> None:
    with pytest.raises(FieldInvalid, match="cannot be read"):
        expand_slides([tmp_path / "none.csv"])
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FieldInvalid, match="cannot be read"):
        expand_slides([tmp_path / "b.csv"])


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFound, match=r"holds no slide .*\.svs"):
        expand_slides([tmp_path])


def test_equal_ids_are_refused_with_both_names(tmp_path: Path) -> None:
    first, second = *touched(tmp_path / "x", "s.svs"), *touched(tmp_path / "y", "s.tif")
    with pytest.raises(SlideIdDuplicate) as caught:
        expand_slides([first, second])
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_a_name_too_long_is_left_to_fail_as_a_slide() -> None:
    name = Path("x" * 5000 + ".svs")
    assert paths(expand_slides([name])) == [name]


def test_a_csv_tells_mpp_mask_and_class_of_each_slide(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("slide,mpp,mask,class\na.svs,0.25,masks/a.png,calm\nb.svs,,,\n")
    a, b = expand_slides([table])
    assert a == ListedSlide(
        tmp_path / "a.svs", mpp=0.25, mask=tmp_path / "masks" / "a.png", label="calm"
    )
    assert b == ListedSlide(tmp_path / "b.svs")


def test_one_mpp_for_all_contradicts_a_listed_one(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("slide,mpp\na.svs,\nb.svs,0.25\n")
    with pytest.raises(FieldInvalid, match=r"--mpp 0\.5 is for all slides.*b\.svs 0\.25"):
        expand_slides([table], mpp=0.5)
    table.write_text("slide,mpp\na.svs,\n")
    assert len(expand_slides([table], mpp=0.5)) == 1


@pytest.mark.parametrize("label", ["", "..", ".x", "a/b"])
def test_a_class_must_name_a_folder(tmp_path: Path, label: str) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"slide,class\na.svs,{label}\n")
    with pytest.raises(FieldInvalid, match=r"a\.svs"):
        slides_with_class([table])


def test_links_are_slides_of_their_own_name(tmp_path: Path) -> None:
    (slide,) = touched(tmp_path / "store", "long-name.svs")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").symlink_to(slide)
    (tmp_path / "slides" / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    assert [s.slide_id for s in expand_slides([tmp_path / "slides"])] == ["a", "gone"]


def write_series(folder: Path, real_slide: Path, *, other: bool = False) -> list[Path]:
    """A DICOM slide of two files, the second by name with the pixels; or one of another series."""
    pixels = real_slide.read_bytes()
    with openslide.OpenSlide(real_slide) as slide:
        instance, series = (
            slide.properties[f"dicom.{name}InstanceUID"].encode() for name in ("SOP", "Series")
        )
    if other:
        pixels = pixels.replace(series, series[:-2] + b"99")
    assert instance[-1:] != b"1"
    label = pixels.replace(b"VOLUME", b"LABEL ").replace(instance, instance[:-1] + b"1")
    folder.mkdir(parents=True, exist_ok=True)
    names = ("d.dcm", "c.DCM") if other else ("b.dcm", "a.dcm")
    for name, content in zip(names, (pixels, label), strict=True):
        (folder / name).write_bytes(content)
    return sorted(folder / name for name in names)


@pytest.mark.realdata
def test_a_dicom_series_in_a_folder_is_one_slide(real_data: Path, tmp_path: Path) -> None:
    real_slide = real_data / "slides" / "camelyon-lowpower-jpeg.dcm"
    label, pixels = write_series(tmp_path / "x" / "one", real_slide)
    for path in (label, pixels):
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == (1152, 700)
    assert paths(expand_slides([label.parent])) == [label]
    assert paths(expand_slides([label, pixels])) == [label, pixels], "those were named"
    assert real_slide in paths(expand_slides([real_slide.parent]))

    other, _ = write_series(label.parent, real_slide, other=True)
    (broken,) = touched(label.parent, "aa.dcm")
    (tiff,) = touched(label.parent, "z.tiff")
    assert paths(expand_slides([label.parent])) == [label, broken, other, tiff]

    again, _ = write_series(tmp_path / "y" / "one", real_slide)
    again = again.rename(again.with_name("a2.dcm"))
    found = slides_by_class(tmp_path, "dcm")
    assert [(slide.path, slide.label) for slide in found] == [
        (label, "x"),
        (broken, "x"),
        (other, "x"),
        (again, "y"),
    ]


def test_dicom_files_that_do_not_open_stay_listed(tmp_path: Path) -> None:
    empty, text = touched(tmp_path, "a.dcm", "b.dcm")
    text.write_bytes(bytes(128) + b"DICM and no more")
    os.mkfifo(tmp_path / "c.dcm")
    (tmp_path / "d.dcm").mkdir()
    (tmp_path / "e.dcm").symlink_to(tmp_path / "nowhere.dcm")
    assert [path.name for path in paths(expand_slides([tmp_path]))] == [
        *(empty.name, text.name, "c.dcm", "d.dcm", "e.dcm")
    ]
