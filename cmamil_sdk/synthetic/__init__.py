"""Generated slides with a known answer, for the demo, the tests and the benchmarks."""

from __future__ import annotations

from cmamil_sdk.synthetic.cohort import (
    CLASSES,
    LABELS_FILE,
    SyntheticSlide,
    draw_slide,
    plan_cohort,
    render_slide,
    write_cohort,
    write_slide,
)
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.synthetic.tissue import Drawing

__all__ = [
    "CLASSES",
    "LABELS_FILE",
    "Drawing",
    "SyntheticSlide",
    "draw_slide",
    "plan_cohort",
    "render_slide",
    "write_cohort",
    "write_slide",
    "write_svs",
]
