"""Load a bundle: verify every byte, open the graphs, run the golden test."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle.manifest import (
    AGGREGATOR_GRAPH,
    ENCODER_GRAPH,
    GOLDEN,
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
)
from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.errors import (
    BundleCorrupt,
    BundleUnsupported,
    NonFiniteOutput,
    NoTissue,
    RecipeMismatch,
    SelfTestFailed,
)
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import read_feature_file, recipe_key
from cmamil_sdk.files import parse_document, sha256_of_file

Float32 = npt.NDArray[np.float32]

GOLDEN_MIN_COSINE = 0.9999
GOLDEN_MAX_DIFFERENCE = 2e-3
_GOLDEN_OUT = "aggregator/out/"


@dataclass(frozen=True)
class Aggregated:
    """The aggregator's answer for one bag; C classes, n tiles at a scale.

    Attributes:
        logits: ``[C]`` before the temperature; ``bias`` plus all contributions add up to it.
        bias: ``[C]``; None of a model without contributions.
        probabilities: ``[C]``, calibrated.
        attention: per scale ``[n]``, sums to 1; of the answered class, where each has its own; None
            of a model without attention.
        contribution: per scale ``[n, C]``; None of a model without contributions.
        seconds: time taken.
        coarse_probabilities: ``[Cc]``, calibrated, of a model with coarse labels: its own answer, or
            the sums of ``probabilities`` where it was not trained to give one.
    """

    logits: Float32
    bias: Float32 | None
    probabilities: Float32
    attention: Mapping[str, Float32] | None
    contribution: Mapping[str, Float32] | None
    seconds: float
    coarse_probabilities: Float32 | None = None


class Bundle:
    """A verified bundle with its aggregator loaded."""

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        sha256: str,
        engine: str,
        device: str,
        engine_cache: Path | None = None,
    ) -> None:
        """Use :meth:`load`."""
        self.root = root
        self.manifest = manifest
        self.sha256 = sha256
        self._engine, self._device, self._engine_cache = engine, device, engine_cache
        self._aggregator = self._open(AGGREGATOR_GRAPH, threads=1)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        engine: str = "auto",
        device: str = "auto",
        engine_cache: Path | None = None,
    ) -> Self:
        """Load a bundle, or refuse it with the reason.

        Args:
            path: the directory that holds ``manifest.json``.
            engine: as :func:`~cmamil_sdk.engines.load_engine`.
            device: likewise.
            engine_cache: likewise.

        Raises:
            BundleCorrupt: a file is missing or changed.
            BundleUnsupported: a newer schema, or a graph that cannot be run.
            SelfTestFailed: the golden test does not reproduce on this engine.
            EngineMissing: the engine or device asked for is not here.
        """
        manifest, sha256 = read_manifest(path)
        verify_files(path, manifest)
        bundle = cls(path, manifest, sha256, engine, device, engine_cache)
        bundle.self_test()
        return bundle

    @property
    def label(self) -> str:
        """``name/version``."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def engine_label(self) -> str:
        """Engine, device and precision in use."""
        return self._aggregator.info.label

    def open_encoder(self, threads: int = 1) -> Engine:
        """A new encoder engine: ``tiles [B, px, px, 3]`` uint8 -> ``features [B, D]``."""
        return self._open(ENCODER_GRAPH, threads)

    def aggregate_file(self, path: Path) -> Aggregated:
        """Run the aggregator on a feature file.

        Raises:
            FeatureFileInvalid: the file is damaged.
            RecipeMismatch: it was made by another recipe or encoder than the bundle's.
        """
        bag, provenance = read_feature_file(path)
        if provenance.recipe_key() != recipe_key(self.manifest.recipe, self.manifest.encoder):
            raise RecipeMismatch(
                f"The features of slide {provenance.slide_id} were made by another recipe or "
                f"encoder than bundle {self.label} was trained on; extract them with the bundle's."
            )
        return self.aggregate(bag)

    def aggregate(self, bag: Bag) -> Aggregated:
        """Run the aggregator on one bag, made with this bundle's recipe and encoder.

        Raises:
            NoTissue: the bag has no tiles.
            ScaleMismatch: the bag lacks a scale.
            FieldInvalid: features of another width.
            NonFiniteOutput: a logit is NaN or infinite.
        """
        if bag.is_empty:
            raise NoTissue(
                f"Slide {bag.slide_id} has no tissue, so there are no tiles to predict from; "
                "leave it out."
            )
        started = time.perf_counter()
        names = self.manifest.recipe.names
        bag = bag.select(names)
        inputs: dict[str, npt.NDArray[Any]] = {f"features_{n}": bag.features[n] for n in names}
        if self.manifest.index_inputs:
            arrays = bag.index_arrays()
            inputs.update({name: arrays[name] for name in self.manifest.index_inputs})
        outputs = self._aggregator.infer(inputs)
        answers = [outputs[n] for n in ("logits", "coarse_logits") if n in outputs]
        if not all(np.isfinite(values).all() for values in answers):
            raise NonFiniteOutput(
                f"Slide {bag.slide_id}: bundle {self.label} returned NaN or infinity; "
                "check the features, or load the bundle on another engine."
            )
        additive = "contribution" in self.manifest.explanations
        return Aggregated(
            logits=outputs["logits"][0],
            bias=outputs["bias"][0] if additive else None,
            probabilities=outputs["probabilities"][0],
            attention=self._attention(outputs),
            contribution={n: outputs[f"contribution_{n}"] for n in names} if additive else None,
            seconds=time.perf_counter() - started,
            coarse_probabilities=self._coarse_probabilities(outputs),
        )

    def self_test(self) -> dict[str, float]:
        """Reproduce the golden values on this engine; returns the differences found.

        Raises:
            SelfTestFailed: they are not reproduced.
        """
        golden = _read_golden(self.root / GOLDEN)
        n_labels = len(self.manifest.labels)
        if golden["aggregator/out/logits"].shape != (1, n_labels):
            raise BundleCorrupt(
                f"{self.root}: the manifest names {n_labels} labels, the golden logits have shape "
                f"{golden['aggregator/out/logits'].shape}; export the model again."
            )
        hierarchy = self.manifest.hierarchy
        n_coarse = (
            len(hierarchy.coarse_labels) if hierarchy and self.manifest.has_coarse_level else 0
        )
        coarse = golden.get("aggregator/out/coarse_probabilities", np.zeros((1, 0)))
        if coarse.shape != (1, n_coarse):
            raise BundleCorrupt(
                f"{self.root}: the manifest promises {n_coarse} coarse labels, the golden coarse "
                f"probabilities have shape {coarse.shape}; export the model again."
            )
        lacking = [n for n in self.manifest.aggregator_outputs if f"{_GOLDEN_OUT}{n}" not in golden]
        if lacking:
            raise BundleCorrupt(
                f"{self.root}: the manifest promises {', '.join(lacking)}, which the golden values "
                "lack; export the model again."
            )
        encoder = self.open_encoder()
        features = encoder.infer({"tiles": golden["encoder/in/tiles"]})["features"]
        encoder.close()
        cosine = _worst_cosine(features, golden["encoder/out/features"])
        outputs = self._aggregator.infer(_golden_part(golden, "aggregator/in/"))
        difference = _largest_difference(outputs, _golden_part(golden, _GOLDEN_OUT))
        if not (cosine >= GOLDEN_MIN_COSINE and difference <= GOLDEN_MAX_DIFFERENCE):
            raise SelfTestFailed(
                f"Bundle {self.label} does not reproduce its golden values on {self.engine_label}: "
                f"encoder cosine {cosine:.6f} (at least {GOLDEN_MIN_COSINE}), aggregator difference "
                f"{difference:.2e} (at most {GOLDEN_MAX_DIFFERENCE}); use another engine."
            )
        return {"encoder_cosine": cosine, "aggregator_difference": difference}

    def _coarse_probabilities(self, outputs: Mapping[str, Float32]) -> Float32 | None:
        hierarchy = self.manifest.hierarchy
        if hierarchy is None:
            return None
        if self.manifest.has_coarse_level:
            found: Float32 = outputs["coarse_probabilities"][0]
            return found
        return hierarchy.summed(outputs["probabilities"][0])

    def _attention(self, outputs: Mapping[str, Float32]) -> dict[str, Float32] | None:
        """Per scale the row of the answered class, or the only one."""
        if "attention" not in self.manifest.explanations:
            return None
        maps = {n: outputs[f"attention_{n}"] for n in self.manifest.recipe.names}
        answered = int(outputs["probabilities"][0].argmax())
        return {n: rows[answered if len(rows) > 1 else 0] for n, rows in maps.items()}

    def _open(self, graph: str, threads: int) -> Engine:
        return load_engine(
            self.root / graph,
            engine=self._engine,
            device=self._device,
            threads=threads,
            engine_cache=self._engine_cache,
        )


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """The manifest of a bundle and its sha256.

    Raises:
        BundleCorrupt: missing or damaged.
        BundleUnsupported: written by a newer version.
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        document = json.loads(data)
    except OSError as problem:
        raise BundleCorrupt(
            f"{path} is no bundle, it has no readable {MANIFEST}; name the directory "
            "<name>/<version> that `cmamil export` wrote."
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise BundleCorrupt(f"{file} is not JSON ({problem}); export the model again.") from problem
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise BundleUnsupported(
            f"{file} has schema version {version}, this version reads up to {SCHEMA_VERSION}; "
            "update cmamil-sdk."
        )
    manifest = parse_document(Manifest, document, where=file, error=BundleCorrupt)
    return manifest, hashlib.sha256(data).hexdigest()


def verify_files(path: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest.

    Raises:
        BundleCorrupt: missing, or size or hash differ.
    """
    for name, entry in manifest.files.items():
        file = path / name
        try:
            size, digest = file.stat().st_size, sha256_of_file(file)
        except OSError as problem:
            raise BundleCorrupt(
                f"{file} is missing or unreadable; copy the whole bundle again."
            ) from problem
        if (size, digest) != (entry.size, entry.sha256):
            raise BundleCorrupt(
                f"{file} is not the file that was exported (sha256 {digest[:12]}… instead of "
                f"{entry.sha256[:12]}…); copy the bundle again."
            )


def _read_golden(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            golden = {name: stored[name] for name in stored.files}
    except (OSError, EOFError, TypeError, ValueError, AttributeError, BadZipFile) as problem:
        raise BundleCorrupt(
            f"{path} holds no golden values ({problem}); export the model again."
        ) from problem
    needed = {"encoder/in/tiles", "encoder/out/features", "aggregator/out/logits"}
    if not needed <= set(golden):
        raise BundleCorrupt(
            f"{path} lacks {', '.join(sorted(needed - set(golden)))}; export the model again."
        )
    return golden


def _worst_cosine(found: Float32, expected: Float32) -> float:
    """Smallest cosine of rows ``[B, D]``; -1 if the shapes differ, NaN where a feature is NaN."""
    if found.shape != expected.shape:
        return -1.0
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / norms).min())


def _largest_difference(
    found: Mapping[str, Float32], expected: Mapping[str, npt.NDArray[Any]]
) -> float:
    """Over all outputs; infinite if one is missing or of another shape, NaN where one is NaN."""
    if any(n not in found or found[n].shape != value.shape for n, value in expected.items()):
        return float("inf")
    # np.max, unlike max(), keeps a NaN.
    return float(np.max([np.abs(value - found[n]).max() for n, value in expected.items()]))


def _golden_part(
    golden: Mapping[str, npt.NDArray[Any]], prefix: str
) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): v for name, v in golden.items() if name.startswith(prefix)}


__all__ = ["Aggregated", "Bundle", "read_manifest", "verify_files"]
