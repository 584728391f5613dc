"""A bundle's encoder, run by an engine or by torch: ``python -m ... CASE`` prints the figures of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.golden import read_golden
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.export.encoder import Encoder, loaded_encoder_of

from .cases import EAGER, OpenCase, main_of

FOLDED = "torch-folded"
"""The network in the form that this package gives it, in PyTorch, where eager is the one that its authors
publish; both have the same features."""

_CHANGED = "shufflenet_v2_x1_0"


def has_folded(encoder: EncoderInfo) -> bool:
    """Whether this package gives the network another form."""
    return encoder.id == _CHANGED and encoder.projection is None


@dataclass(frozen=True)
class EncoderCase:
    """One way to run it.

    Attributes:
        bundle: its directory.
        weights: of the encoder, if they came from a file; torch needs them.
        engine: an engine's name, :data:`~cmamil_sdk.benchmarks.cases.EAGER` or :data:`FOLDED`.
        device, precision: as :func:`~cmamil_sdk.engines.load_engine`; torch is on the CPU in fp32.
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
        return self._torch() if self.engine in (EAGER, FOLDED) else self._engine()

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

    def _torch(self) -> OpenCase:
        import torch  # noqa: PLC0415 - it would be in the memory of every engine

        encoder, tiles = self._encoder(), self._tiles()

        def call() -> object:
            torch.set_num_threads(self.threads)  # of the process: others in turns set their own
            return encoder.features(tiles)

        return OpenCase(
            call=call,
            label=f"{self.engine}-cpu-fp32",
            version=torch.__version__,
            missed="",
            close=lambda: None,
        )

    def _encoder(self) -> Encoder:
        info = read_manifest(Path(self.bundle))[0].encoder
        weights = None if self.weights is None else Path(self.weights)
        if self.engine == FOLDED or not has_folded(info):
            return loaded_encoder_of(info, weights)
        from cmamil_sdk.encoders.shufflenet import build_as_published  # noqa: PLC0415 - as above
        from cmamil_sdk.export.tile_network import TorchEncoder  # noqa: PLC0415

        return TorchEncoder(build_as_published(weights).network, info)

    def _tiles(self) -> npt.NDArray[np.uint8]:
        """Tiles of the bundle's golden test, over and over."""
        root = Path(self.bundle)
        tiles = read_golden(root, read_manifest(root)[0]).encoder.tiles
        return tiles[np.arange(self.tiles) % len(tiles)]


if __name__ == "__main__":
    main_of(EncoderCase)


__all__ = ["FOLDED", "EncoderCase", "has_folded"]
