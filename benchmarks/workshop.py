"""What the speed benchmarks measure with: slides, weights and bundles, made once in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmamil_sdk.synthetic.large_slide import LargeSlide, write_large_slide

SLIDE = LargeSlide()
"""20,000 px, about 2,000 tiles at 20x."""

SMALL_SLIDE = LargeSlide(size_px=3840)
"""To warm up with."""

_JUDGING = tuple(LargeSlide(size_px=SMALL_SLIDE.size_px, seed=seed) for seed in (1, 2))
"""One calibrates int8, the other judges it."""


@dataclass(frozen=True)
class Workshop:
    """Files in ``folder``, named by what is in them; a file appears only when complete."""

    folder: Path

    def slide(self) -> Path:
        """The benchmarks' slide."""
        return self.generated(SLIDE)

    def small_slide(self) -> Path:
        """A slide of a few dozen tiles."""
        return self.generated(SMALL_SLIDE)

    def generated(self, slide: LargeSlide) -> Path:
        """A generated slide."""
        name = f"generated-{slide.size_px}px-{slide.tissue_share:g}-seed{slide.seed}.svs"
        path = self.folder / name
        return path if path.is_file() else write_large_slide(slide, path)

    def weights(self) -> Path:
        """Seeded weights of the benchmarks' encoder."""
        path = self.folder / "shufflenet-seed0.pth"
        if path.is_file():
            return path
        from .seeded_encoder import write_seeded_weights  # noqa: PLC0415

        return write_seeded_weights(path)

    def bundle(self, scales: str, precisions: Sequence[str] = ()) -> Path:
        """A bundle of that encoder and an untrained, seeded CMA-MIL over ``scales``.

        Raises:
            ParityFailed: one of ``precisions`` misses its gates.
        """
        from .seeded_bundle import write_seeded_bundle  # noqa: PLC0415

        name = "-".join(["bench", *scales.split(","), *precisions])
        path = self.folder / "bundles" / name / "1"
        if path.is_dir():
            return path
        slides = [self.generated(slide) for slide in _JUDGING] if precisions else []
        return write_seeded_bundle(
            path, scales, self.weights(), precisions=precisions, slides=slides
        )


__all__ = ["SLIDE", "SMALL_SLIDE", "Workshop"]
