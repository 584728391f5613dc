"""What the speed benchmarks measure with: slides, weights and bundles, made once in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmamil_sdk.synthetic.large_slide import LargeSlide, write_large_slide

SLIDE = LargeSlide()
"""20,000 px, about 2,000 tiles at 20x."""

SMALL_SLIDE = LargeSlide(size_px=3840)
"""To warm up with."""


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

    def bundle(self, scales: str) -> Path:
        """A bundle of that encoder and an untrained, seeded CMA-MIL over ``scales``."""
        from .seeded_bundle import write_seeded_bundle  # noqa: PLC0415

        name = "bench-" + scales.replace(",", "-")
        path = self.folder / "bundles" / name / "1"
        return path if path.is_dir() else write_seeded_bundle(path, scales, self.weights())


__all__ = ["SLIDE", "SMALL_SLIDE", "Workshop"]
