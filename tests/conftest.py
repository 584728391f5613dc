"""Fixtures shared by all tests: real slides, a generated slide, and a small bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import settings
from PIL import Image

from cmamil_sdk.locks import Locks
from cmamil_sdk.synthetic.svs import write_svs

_REPOSITORY = Path(__file__).resolve().parent.parent

LABELS = ("benign", "in_situ", "invasive")

# How long an example takes says more of the machine than of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the last one that is begun leaves the other cores idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real slides; the test is skipped where it is absent."""
    folder = Path(os.environ.get("CMAMIL_REAL_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides at {folder}; set CMAMIL_REAL_DATA")
    return folder


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Trainings in this process write pictures of one pixel: to draw them takes as long as to train."""
    from cmamil_sdk.training import plots

    blank = BytesIO()
    Image.new("RGB", (1, 1)).save(blank, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_png", lambda _figure: blank.getvalue())
        yield


@pytest.fixture(scope="module")
def small_parity_bags() -> Iterator[None]:
    """Exports in this process compare the model on all bags but the two largest."""
    from cmamil_sdk.export import aggregator

    *small, large, largest = aggregator.PARITY_FINEST_TILES
    assert (large, largest) == (4_096, 16_384)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregator, "PARITY_FINEST_TILES", small)
        yield


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask once: what a server refuses for the moment is told at once."""
    monkeypatch.setattr("cmamil_sdk._client_retries._DELAYS_S", ())


@pytest.fixture(scope="session")
def synthetic_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2,000 x 1,500 px SVS at 20x: pink textured tissue on white, with known borders.

    Tissue covers x in [224, 1568), y in [0, 1344): exactly 6 x 6 tiles of 224 px.
    """
    rng = np.random.default_rng(0)
    pixels = np.full((1500, 2000, 3), 244, dtype=np.uint8)
    tissue = np.array([205, 130, 175]) + rng.normal(0, 18, (1344, 1344, 1))
    pixels[0:1344, 224:1568] = np.clip(tissue, 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("slides") / "synthetic.svs"
    write_svs(pixels, path, mpp=0.5, objective_power=20.0)
    return path


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a run of the real encoder and untrained, seeded models ``kind`` over ``scales``."""

    def make(kind: str, scales: str, folds: int = 1) -> Path:
        from cmamil_sdk.files import write_json

        run = tmp_path_factory.mktemp("bundle") / "run"
        for fold in range(folds):
            _write_fold(run, fold, kind, scales)
        write_predictions(run, folds)
        write_json(run / "metrics.json", {"folds": [{"fold": fold} for fold in range(folds)]})
        return run

    return make


def _write_fold(run: Path, fold: int, kind: str, scales: str) -> None:
    import torch

    from cmamil_sdk.export.encoder import load_encoder
    from cmamil_sdk.models.build import build_model
    from cmamil_sdk.runs import CheckpointMeta, fold_directory, save_checkpoint
    from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

    torch.manual_seed(fold)
    model = build_model(kind, {"scales": scales.split(","), "feature_dim": 1280, "n_classes": 3})
    with torch.no_grad():
        # Away from the initial values: zeros among them would hide a wrong index or bias.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    meta = CheckpointMeta(
        model_kind=kind,
        hyperparameters=model.hyperparameters,
        labels=LABELS,
        recipe=TilingRecipe(scales=parse_scales(scales)),
        encoder=load_encoder("efficientnet_lite0").info,
        fold=fold,
        seed=fold,
        temperature=1.5,
        metrics={"val_auc": 0.5},
    )
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_checkpoint(fold_directory(run, fold), meta, state)


def write_predictions(run: Path, folds: int) -> None:
    """``predictions.csv`` of twelve slides: each tests one fold and validates the next."""
    rng = np.random.default_rng(0)
    lines = ["slide,fold,split,label," + ",".join(f"probability_{n}" for n in LABELS)]
    for number in range(12):
        for step, split in enumerate(("test", "val")):
            powers = np.exp(rng.normal(0, 1, 3) + 2.0 * (np.arange(3) == number % 3))
            shares = ",".join(map(repr, (powers / powers.sum()).tolist()))
            fold = (number + step) % folds
            lines.append(f"s{number},{fold},{split},{LABELS[number % 3]},{shares}")
    (run / "predictions.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def small_run(make_run: Callable[..., Path]) -> Path:
    """A run whose aggregator is exported in no time."""
    return make_run("abmil", "20x")


@pytest.fixture(scope="session")
def make_bundle(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """Make a bundle of such a run: of its one fold, or of all together."""

    def make(name: str, kind: str, scales: str, folds: int = 1) -> Path:
        from cmamil_sdk.export import aggregator
        from cmamil_sdk.export.bundle import export_bundle

        run = make_run(kind, scales, folds)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(aggregator, "PARITY_FINEST_TILES", (1, 2, 7, 513))  # quickly
            return export_bundle(run, run.parent / "bundles", name=name, fold="all")

    return make


@pytest.fixture(scope="session")
def bundle_for_all(
    make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Make such a bundle in the first process of a test run that asks, for all of them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def make(name: str, kind: str, scales: str) -> Path:
        where = folder / f"{name}.path"
        with Locks().wait(where.with_suffix(".lock")):
            if not where.exists():
                where.write_text(str(make_bundle(name, kind, scales)))
        return Path(where.read_text())

    return make


@pytest.fixture(scope="session")
def tiny_bundle(bundle_for_all: Callable[..., Path]) -> Path:
    """A bundle of a CMA-MIL over 5x, 10x, 20x."""
    return bundle_for_all("tiny", "cma-mil", "5x,10x,20x")


@pytest.fixture(scope="session")
def silent_bundle(bundle_for_all: Callable[..., Path]) -> Path:
    """A bundle of a model that says nothing of its tiles."""
    return bundle_for_all("silent", "torchmil:TransMIL", "20x")


@pytest.fixture(scope="session")
def shufflenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights for ``shufflenet_v2_x1_0``, normalised so that features are about 1 large."""
    import torch

    from cmamil_sdk.encoders.torchvision_ops import import_torchvision
    from cmamil_sdk.export.reference import probe_tiles

    import_torchvision()
    from torchvision.models import shufflenet_v2_x1_0

    images = torch.from_numpy(probe_tiles(224, count=8)).permute(0, 3, 1, 2) / 128.0 - 1.0
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = shufflenet_v2_x1_0().train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network(images)
    path = tmp_path_factory.mktemp("weights") / "shufflenetv2_x1-5666bf0f80.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def with_zeroed(tmp_path: Path) -> Callable[..., Path]:
    """Copy a slide and overwrite some stored tiles of level 0, given as (column, row)."""

    def make(slide: Path, *tiles: tuple[int, int]) -> Path:
        path = tmp_path / slide.name
        path.write_bytes(slide.read_bytes())
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            columns = -(-page.imagewidth // page.tilewidth)
            spans = [
                (
                    page.dataoffsets[row * columns + column],
                    page.databytecounts[row * columns + column],
                )
                for column, row in tiles
            ]
        with path.open("r+b") as raw:
            for offset, size in spans:
                raw.seek(offset)
                raw.write(bytes(size))
        return path

    return make
