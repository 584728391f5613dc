"""Tiles that an encoder was not made for: refused, with the option that accepts them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from cmamil_sdk.encoders.fit import check_encoder_mpp  # noqa: E402
from cmamil_sdk.encoders.info import EncoderInfo  # noqa: E402
from cmamil_sdk.encoders.resize import resize_matrix  # noqa: E402
from cmamil_sdk.errors import FieldInvalid  # noqa: E402
from cmamil_sdk.export.encoder import load_encoder  # noqa: E402
from cmamil_sdk.tiling.recipe import parse_scales  # noqa: E402


def encoder_at(mpp: float | None) -> EncoderInfo:
    return EncoderInfo(
        id="e", weights_sha256="0" * 64, dim=2, tile_px=224, mean=(0,) * 3, std=(1,) * 3, mpp=mpp
    )


def test_tiles_of_another_size_need_leave() -> None:
    with pytest.raises(FieldInvalid, match=r"224 px, these have 256 px.*--resize-tiles"):
        load_encoder("efficientnet_lite0", tile_px=256)
    info = load_encoder("efficientnet_lite0", tile_px=256, resize_tiles=True).info
    assert info.tile_px == 256
    assert info.resize is not None
    assert info.resize.network_px == 224
    assert load_encoder("efficientnet_lite0", tile_px=224, resize_tiles=True).info.resize is None


def test_scales_of_another_mpp_need_leave() -> None:
    scales = parse_scales("10x,20x")
    with pytest.raises(FieldInvalid, match=r"made for tiles at 0\.5 .*10x \(1 .*--accept-mpp"):
        check_encoder_mpp(encoder_at(0.5), scales, accept=False)
    check_encoder_mpp(encoder_at(0.5), scales, accept=True)
    check_encoder_mpp(encoder_at(None), scales, accept=False)
    check_encoder_mpp(encoder_at(0.49), parse_scales("20x"), accept=False)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("from_px", [100, 256, 500])
def test_resizing_is_that_of_pillow(mode: str, from_px: int) -> None:
    rng = np.random.default_rng(from_px)
    # far from 0 and 255, at which Pillow clips after each of its two passes
    image = rng.integers(90, 166, (from_px, from_px), dtype=np.uint8)
    rows = resize_matrix(from_px, 224, mode).numpy()
    got = np.clip(rows @ image @ rows.T, 0, 255)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    expected = np.asarray(Image.fromarray(image).resize((224, 224), filters[mode]), np.float32)
    assert np.abs(got - expected).max() < 2.0
    assert np.abs(got - expected).mean() < 0.5


def test_the_graph_resizes_by_itself(tmp_path) -> None:
    from cmamil_sdk.encoders.info import ResizeInfo
    from cmamil_sdk.engines import load_engine
    from cmamil_sdk.export.encoder import export_encoder
    from cmamil_sdk.export.reference import probe_tiles
    from cmamil_sdk.export.tile_network import TorchEncoder

    resize = ResizeInfo(network_px=32, interpolation="bicubic")
    info = encoder_at(None).model_copy(update={"tile_px": 48, "dim": 3 * 32 * 32, "resize": resize})
    encoder = TorchEncoder(torch.nn.Flatten(), info)
    export_encoder(encoder, tmp_path / "encoder.onnx")
    tiles = probe_tiles(48, count=2, seed=3)
    engine = load_engine(tmp_path / "encoder.onnx", device="cpu")
    got = engine.infer({"tiles": tiles})["features"].reshape(2, 3, 32, 32)
    for tile, image in zip(tiles, got, strict=True):
        wanted = Image.fromarray(tile).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.abs(image.transpose(1, 2, 0) - np.asarray(wanted, np.float32)).mean() < 0.5
