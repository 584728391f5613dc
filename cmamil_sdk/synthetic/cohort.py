"""The demo's cohort: which slides there are, and how to draw and write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import write_atomic
from cmamil_sdk.synthetic.stains import draw_stain, stain_pixels
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.synthetic.tissue import Drawing, draw_tissue

CLASSES: tuple[str, ...] = ("benign", "in_situ", "invasive")
"""The labels, in the order of their class index."""

MPP = 0.499
OBJECTIVE_POWER = 20.0
LABELS_FILE = "labels.csv"

_SPLITS = ("development", "held_out")
_ABNORMAL_CELLS = (75, 140)
_SIZE_PX = (2048, 2304)
_SIZE_STEP_PX = 16
_PATIENT_SIZES = ((1, 2, 3), (0.45, 0.35, 0.20))


@dataclass(frozen=True)
class SyntheticSlide:
    """One planned slide; all of it follows from these fields.

    ``label`` is one of :data:`CLASSES`; ``split_hint`` is ``development`` or ``held_out``;
    ``abnormal_cells`` is 0 for benign; sizes are level-0 pixels at 20x.
    """

    slide_id: str
    patient: str
    label: str
    split_hint: str
    seed: int
    abnormal_cells: int
    width_px: int
    height_px: int


def plan_cohort(n_slides: int = 60, *, seed: int = 0, held_out: int = 18) -> list[SyntheticSlide]:
    """Plan a cohort of three classes; the same arguments give the same plan.

    In situ and invasive have equally many slides, paired by their number of abnormal cells within
    development and within held-out; of ``n_slides`` not divisible by three, one slide left over is
    benign, two are one in situ and one invasive. ``held_out`` is rounded up to a multiple of three,
    the same number per class, and cut so that at least half of each class stays in development. A
    patient has one to three slides of one label, all in development or all held out; a class
    with two or more slides on one side has at least two patients there. Ids run in random order.

    Raises:
        FieldInvalid: fewer than 6 slides, or a negative ``held_out``.
    """
    if n_slides < 6:
        raise FieldInvalid(
            f"n_slides must be at least 6 (two per class), but is {n_slides}; ask for more slides"
        )
    if held_out < 0:
        raise FieldInvalid(f"held_out must be 0 or more, but is {held_out}; give for example 18")
    rng = np.random.default_rng(seed)
    per_class = n_slides // 3
    per_held_out = min(-(-held_out // 3), per_class // 2)
    extra_benign, extra_malignant = ((0, 0), (1, 0), (0, 1))[n_slides % 3]
    drafts: list[tuple[str, str, int, int]] = []
    patients = 0
    for split in _SPLITS:
        share = per_held_out if split == "held_out" else per_class - per_held_out
        extra = (extra_benign, extra_malignant) if split == "development" else (0, 0)
        cells = rng.integers(_ABNORMAL_CELLS[0], _ABNORMAL_CELLS[1] + 1, share + extra[1])
        for label in CLASSES:
            count = share + (extra[0] if label == "benign" else extra[1])
            sizes = _patient_sizes(rng, count)
            owners = np.repeat(np.arange(len(sizes)) + patients, sizes)
            patients += len(sizes)
            counts = np.zeros(count, np.int64) if label == "benign" else cells
            drafts += [
                (split, label, int(owner), int(number))
                for owner, number in zip(owners, counts, strict=True)
            ]
    return _named(rng, drafts, patients)


def draw_slide(slide: SyntheticSlide) -> Drawing:
    """Stain maps of a slide, with the places of its glands and abnormal cells.

    Raises:
        FieldInvalid: the slide is too small for its abnormal cells, or has impossible fields.
    """
    _check(slide)
    # Benign slides lay out solid glands and nests for a number of cells drawn by the law of the
    # others, so that their presence does not tell the classes apart.
    latent = int(
        np.random.default_rng([slide.seed, 4]).integers(_ABNORMAL_CELLS[0], _ABNORMAL_CELLS[1] + 1)
    )
    return draw_tissue(
        slide.label,
        slide.abnormal_cells if slide.label != "benign" else latent,
        slide.height_px,
        slide.width_px,
        seed=slide.seed,
        bank_seed=_SPLITS.index(slide.split_hint),
    )


def render_slide(slide: SyntheticSlide) -> NDArray[np.uint8]:
    """RGB pixels ``[H, W, 3]`` of a slide at 20x; the same slide gives the same bytes.

    Raises:
        FieldInvalid: the slide is too small for its abnormal cells, or has impossible fields.
    """
    drawing = draw_slide(slide)
    stain = draw_stain(np.random.default_rng([slide.seed, 0]))
    return stain_pixels(drawing.haematoxylin, drawing.eosin, stain)


def write_slide(slide: SyntheticSlide, folder: Path) -> Path:
    """Write ``<slide_id>.svs`` into ``folder``; the file appears only when complete."""
    path = folder / f"{slide.slide_id}.svs"
    write_svs(render_slide(slide), path, mpp=MPP, objective_power=OBJECTIVE_POWER)
    return path


def _keep_or_write(slide: SyntheticSlide, folder: Path) -> Path:
    path = folder / f"{slide.slide_id}.svs"
    return path if path.is_file() else write_slide(slide, folder)


def write_cohort(
    slides: Sequence[SyntheticSlide],
    folder: Path,
    *,
    workers: int = 2,
    keep_complete: bool = False,
    on_slide: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write all slides and ``labels.csv`` (``slide,patient,label,split``) into ``folder``.

    Threads do the work: nearly all of it is in libraries that let go of the interpreter. The paths
    come back in the order of ``slides``, and their bytes do not depend on ``workers``.

    Args:
        workers: slides drawn at a time.
        keep_complete: leave slide files that are there; they appear only when complete.
        on_slide: called in this thread after each slide with the number done and the total.

    Raises:
        FieldInvalid: ``workers`` is below 1, or a slide cannot be drawn.
    """
    if workers < 1:
        raise FieldInvalid(f"workers must be 1 or more, but is {workers}; 2 suits most machines")
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        write = _keep_or_write if keep_complete else write_slide
        jobs = [pool.submit(write, slide, folder) for slide in slides]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if on_slide is not None:
                    on_slide(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _write_labels(slides, folder / LABELS_FILE)
    return [job.result() for job in jobs]


def _check(slide: SyntheticSlide) -> None:
    if slide.label not in CLASSES or slide.split_hint not in _SPLITS:
        raise FieldInvalid(
            f"slide {slide.slide_id} has label {slide.label!r} and split {slide.split_hint!r}; "
            f"labels are {', '.join(CLASSES)} and splits {', '.join(_SPLITS)}"
        )
    if (slide.abnormal_cells == 0) != (slide.label == "benign") or slide.abnormal_cells < 0:
        raise FieldInvalid(
            f"slide {slide.slide_id} is {slide.label} with {slide.abnormal_cells} abnormal cells; "
            "benign slides have none, the others at least one"
        )


def _patient_sizes(rng: np.random.Generator, slides: int) -> list[int]:
    """Slides per patient; two patients at least, and one with several slides, where that goes."""
    sizes: list[int] = []
    while (left := slides - sum(sizes)) > 0:
        size = int(rng.choice(_PATIENT_SIZES[0], p=_PATIENT_SIZES[1]))
        if not sizes:
            size = min(2, max(1, left - 1))
        sizes.append(min(size, left))
    return sizes


def _named(
    rng: np.random.Generator, drafts: list[tuple[str, str, int, int]], patients: int
) -> list[SyntheticSlide]:
    """Give the drafts seeds, sizes and ids in an order that says nothing of their class."""
    patient_number = rng.permutation(patients) + 1
    digits = max(3, len(str(len(drafts))))
    slides = []
    for number, row in enumerate(rng.permutation(len(drafts)).tolist(), start=1):
        split, label, owner, cells = drafts[row]
        width_px, height_px = (
            _SIZE_STEP_PX
            * rng.integers(_SIZE_PX[0] // _SIZE_STEP_PX, _SIZE_PX[1] // _SIZE_STEP_PX + 1, 2)
        ).tolist()
        slides.append(
            SyntheticSlide(
                slide_id=f"synth-{number:0{digits}d}",
                patient=f"patient-{patient_number[owner]:0{digits}d}",
                label=label,
                split_hint=split,
                seed=int(rng.integers(2**31)),
                abnormal_cells=cells,
                width_px=width_px,
                height_px=height_px,
            )
        )
    return slides


def _write_labels(slides: Sequence[SyntheticSlide], path: Path) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["slide", "patient", "label", "split"])
    for slide in slides:
        table.writerow([slide.slide_id, slide.patient, slide.label, slide.split_hint])
    write_atomic(path, text.getvalue().encode())
