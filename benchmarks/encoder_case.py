"""A bundle's encoder, run by an engine or by torch: ``python -m ... CASE`` prints the figures of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.golden import read_golden
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.export.encoder import loaded_encoder_of

from .cases import EAGER, OpenCase, main_of


@dataclass(frozen=True)
class EncoderCase:
    """One way to run it.

    Attributes:
        bundle: its directory.
        weights: of the encoder, if they came from a file; the eager model needs them.
        engine: an engine's name, or :data:`~cmamil_sdk.benchmarks.cases.EAGER`.
        device, precision: as :func:`~cmamil_sdk.engines.load_engine`; eager is on the CPU in fp32.
        tiles: of one call.
        callers: threads that call at a time.
        threads: within a call.
    """

    bundle: str
    weights: str | None
    engine: str
    device: str
    precision: str
    tiles: int
    callers: int
    threads: int

    def open(self) -> OpenCase:
        """Load it."""
        return self._eager() if self.engine == EAGER else self._engine()

    def _engine(self) -> OpenCase:
        bundle = Bundle.load(
            Path(self.bundle),
            engine=self.engine,
            device=self.device,
            precision=self.precision,
            callers=self.callers,
            allow_failed_parity=True,
        )
        encoder = bundle.open_encoder(threads=self.threads, callers=self.callers)
        encoder.warm_up(self.tiles)
        inputs = {"tiles": self._tiles()}
        return OpenCase(
            call=lambda: encoder.infer(inputs),
            label=encoder.info.label,
            version=encoder.info.version,
            missed=" ".join(bundle.warnings),
            close=encoder.close,
            memory_bytes=encoder.memory_bytes,
        )

    def _eager(self) -> OpenCase:
        import torch  # noqa: PLC0415 - it would be in the memory of every engine

        manifest, _ = read_manifest(Path(self.bundle))
        encoder = loaded_encoder_of(
            manifest.encoder, None if self.weights is None else Path(self.weights)
        )
        torch.set_num_threads(self.threads)
        tiles = self._tiles()
        return OpenCase(
            call=lambda: encoder.features(tiles),
            label=f"{EAGER}-cpu-fp32",
            version=torch.__version__,
            missed="",
            close=lambda: None,
        )

    def _tiles(self) -> npt.NDArray[np.uint8]:
        """Tiles of the bundle's golden test, over and over."""
        root = Path(self.bundle)
        tiles = read_golden(root, read_manifest(root)[0]).encoder.tiles
        return tiles[np.arange(self.tiles) % len(tiles)]


if __name__ == "__main__":
    main_of(EncoderCase)


__all__ = ["EncoderCase"]
