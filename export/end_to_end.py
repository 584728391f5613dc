"""Whether a bundle answers in a lower precision as it does in fp32, on whole slides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle import Bundle, Manifest
from cmamil_sdk.bundle.manifest import ENCODER_GRAPH
from cmamil_sdk.bundle.precisions import EndToEnd
from cmamil_sdk.engines.base import Precision
from cmamil_sdk.engines.gated import open_encoder
from cmamil_sdk.engines.parity import EncoderParity, EncoderReference, measure_encoder
from cmamil_sdk.predict import LocalPredictor

from .check_slides import DealtSlides

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

OnSlide = Callable[[str, int, int], None]
"""Told what is computed, the slides that are done, and slides in all."""


class SlideJudge:
    """Answers for the judged slides in fp32, once, with which those in a lower precision are compared.

    Args:
        folder: of the bundle's graphs.
        manifest: of the bundle, as far as it is known.
        dealt: the slides.
        reference: some of their tiles, and the eager model's features of them.
        on_slide: called after each slide.

    Raises:
        InputError: a slide cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        dealt: DealtSlides,
        reference: EncoderReference,
        on_slide: OnSlide | None = None,
    ) -> None:
        self._folder, self._manifest, self._dealt = folder, manifest, dealt
        self._measure = partial(measure_encoder, reference=reference)
        self._on_slide = on_slide
        self._exact, _ = self._answers("fp32")

    def judge(self, precision: Precision) -> EndToEnd:
        """Compare the answers in ``precision`` with those in fp32.

        Raises:
            EngineMissing: this machine does not compute in it.
        """
        found, parity = self._answers(precision)
        names = [slide.path.stem for slide in self._dealt.judged]
        labels = self._dealt.labels
        known = [row for row, name in enumerate(names) if name in labels]
        truth = np.array([self._manifest.labels.index(labels[names[row]]) for row in known], int)
        return EndToEnd(
            engine=parity.label,
            slides=len(names),
            held_out=self._dealt.are_held_out,
            tiles=parity,
            label_flips=int((found.argmax(axis=1) != self._exact.argmax(axis=1)).sum()),
            probability_change=float(np.abs(found - self._exact).max()),
            labelled=len(known),
            auc_fp32=mean_auc(self._exact[known], truth),
            auc=mean_auc(found[known], truth),
        )

    def _answers(self, precision: Precision) -> tuple[Float64, EncoderParity]:
        """Probabilities ``[slides, C]``, and how close the encoder is on the slides' tiles."""
        graph = self._folder / ENCODER_GRAPH
        encoder = open_encoder(graph, self._measure, precision=precision, allow_failed=True)
        predictor = LocalPredictor(Bundle.of_graphs(self._folder, self._manifest, encoder))
        rows = []
        try:
            for number, slide in enumerate(self._dealt.judged, start=1):
                answer = predictor.predict(
                    slide.path, mpp=slide.mpp, tissue_masks=slide.mask, top_k=0
                )
                rows.append([answer.probabilities[name] for name in self._manifest.labels])
                if self._on_slide is not None:
                    self._on_slide(f"slides in {precision}", number, len(self._dealt.judged))
        finally:
            predictor.close()
        return np.array(rows), encoder.parity


def mean_auc(probabilities: Float64, truth: Int64) -> float | None:
    """Area under the ROC curve of each class against the rest, the mean over those with both.

    Args:
        probabilities: ``[n, C]``.
        truth: class numbers ``[n]``.

    Returns:
        None where no class has both.
    """
    areas = []
    for number in range(probabilities.shape[1]):
        scores, is_member = probabilities[:, number], truth == number
        if is_member.any() and not is_member.all():
            ahead = scores[is_member][:, None] - scores[~is_member][None, :]
            areas.append(float(((ahead > 0) + 0.5 * (ahead == 0)).mean()))
    return float(np.mean(areas)) if areas else None


__all__ = ["OnSlide", "SlideJudge", "mean_auc"]
