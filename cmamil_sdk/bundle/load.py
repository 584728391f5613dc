"""Load a bundle: verify every byte, open the graphs, run the golden test."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle.bags import MAX_ATTENTION_MIB, check_finite, check_size
from cmamil_sdk.bundle.golden import GOLDEN_MAX_DIFFERENCE, Golden, read_golden
from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH, Manifest
from cmamil_sdk.bundle.verify import read_manifest, verify_files
from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.engines.base import TENSORRT
from cmamil_sdk.engines.gated import GatedEncoder, ParityRow, open_encoder, parity_table
from cmamil_sdk.engines.parity import EncoderParity, measure_encoder, refuse_encoder
from cmamil_sdk.errors import (
    BundleUnsupported,
    FieldInvalid,
    NonFiniteOutput,
    NoTissue,
    ParityFailed,
    RecipeMismatch,
    SelfTestFailed,
)
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import read_feature_file, recipe_key

Float32 = npt.NDArray[np.float32]


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
    """A verified bundle with its aggregator loaded.

    Attributes:
        root: its directory.
        manifest: what it says of itself.
        sha256: of the manifest, its identity.
        encoder_info: the engine that :meth:`open_encoder` opens.
        aggregator_info: the engine of the aggregator: in float32 on TensorRT where that was asked for,
            else on onnxruntime, because OpenVINO would compile anew for every number of tiles, and not
            refuse an index that points nowhere.
        warnings: what every answer of this bundle must say.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        sha256: str,
        encoder: GatedEncoder,
        aggregator: Engine,
        engine_cache: Path | None,
        max_attention_mib: int,
    ) -> None:
        """Use :meth:`load`."""
        self.root = root
        self.manifest = manifest
        self.sha256 = sha256
        self.encoder_info = encoder.engine.info
        self.aggregator_info = aggregator.info
        self.warnings = tuple(_warnings(manifest, encoder.parity))
        self._encoder_parity = encoder.parity
        self._aggregator = aggregator
        self._engine_cache = engine_cache
        self._max_attention_mib = max_attention_mib

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        engine: str = "auto",
        device: str = "auto",
        engine_cache: Path | None = None,
        precision: str = "auto",
        allow_failed_parity: bool = False,
        max_attention_mib: int = MAX_ATTENTION_MIB,
    ) -> Self:
        """Load a bundle, or refuse it with the reason.

        Args:
            path: the directory that holds ``manifest.json``.
            engine: the encoder's, as :func:`~cmamil_sdk.engines.load_engine`.
            device: likewise.
            engine_cache: likewise.
            precision: the encoder's, as :func:`~cmamil_sdk.engines.gated.open_encoder`.
            allow_failed_parity: take a bundle, or a precision, that misses its gate; every answer then
                carries a warning.
            max_attention_mib: most memory that attention between all tiles of a bag may take.

        Raises:
            BundleCorrupt: a file is missing or changed.
            BundleUnsupported: a newer schema, or a graph that cannot be run.
            ParityFailed: it was exported although it misses a gate, or the precision misses its own.
            SelfTestFailed: the golden test does not reproduce on this engine.
            EngineMissing: the engine, device or precision asked for is not here.
        """
        manifest, sha256 = read_manifest(path)
        verify_files(path, manifest)
        if manifest.parity_failed and not allow_failed_parity:
            raise ParityFailed(
                f"Bundle {path} was exported with --force and misses its gate: "
                f"{manifest.parity_failed}; export a model that passes, or accept it with "
                "--allow-failed-parity."
            )
        golden = read_golden(path, manifest)
        encoder = _open_encoder(path, manifest, golden, engine, device, engine_cache, precision)
        info = encoder.engine.info
        aggregator = load_engine(
            path / AGGREGATOR_GRAPH,
            engine=info.name if info.name in TENSORRT else "onnxruntime",
            device=info.device,
            engine_cache=engine_cache,
        )
        bundle = cls(path, manifest, sha256, encoder, aggregator, engine_cache, max_attention_mib)
        encoder.engine.close()
        bundle._check_parity(golden, allow_failed=allow_failed_parity)
        return bundle

    @property
    def label(self) -> str:
        """``name/version``."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def engine_label(self) -> str:
        """The encoder's engine, device and precision in use."""
        return self.encoder_info.label

    def open_encoder(self, threads: int = 1, callers: int | None = None) -> Engine:
        """A new encoder engine: ``tiles [B, px, px, 3]`` uint8 -> ``features [B, D]``.

        ``threads`` and ``callers`` are those of :func:`~cmamil_sdk.engines.load_engine`.
        """
        info = self.encoder_info
        return load_engine(
            self.root / ENCODER_GRAPH,
            engine=info.name,
            device=info.device,
            precision=info.precision,
            threads=threads,
            callers=callers,
            engine_cache=self._engine_cache,
            reason=info.reason,
        )

    def check_size(self, counts: Mapping[str, int], slide: str) -> None:
        """Refuse a bag too large for the aggregator; ``counts`` are tiles per scale, coarse to fine.

        Raises:
            TooManyTiles: see :func:`~cmamil_sdk.bundle.bags.check_size`.
        """
        check_size(counts, self.manifest, slide=slide, max_attention_mib=self._max_attention_mib)

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
            TooManyTiles: it is too large.
            FieldInvalid: features of another width or type.
            NonFiniteOutput: a feature or a logit is NaN or infinite.
        """
        if bag.is_empty:
            raise NoTissue(
                f"Slide {bag.slide_id} has no tissue, so there are no tiles to predict from; "
                "leave it out."
            )
        started = time.perf_counter()
        names = self.manifest.recipe.names
        bag = bag.select(names)
        self.check_size(bag.counts(), f"Slide {bag.slide_id}")
        check_finite(bag)
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
            ParityFailed, SelfTestFailed: they are not reproduced.
        """
        golden = read_golden(self.root, self.manifest)
        encoder = self.open_encoder(callers=1)
        self._encoder_parity = _measure(encoder, self.root, golden)
        encoder.close()
        return self._check_parity(golden, allow_failed=bool(self.warnings))

    def parity_table(self) -> list[ParityRow]:
        """The encoder on every engine and precision of this machine."""
        golden = read_golden(self.root, self.manifest)
        measure = partial(_measure, root=self.root, golden=golden)
        return parity_table(self.root / ENCODER_GRAPH, measure, engine_cache=self._engine_cache)

    def _check_parity(self, golden: Golden, *, allow_failed: bool) -> dict[str, float]:
        parity = self._encoder_parity
        try:
            outputs = self._aggregator.infer(golden.inputs)
        except FieldInvalid as problem:
            raise _foreign(self.root / AGGREGATOR_GRAPH, str(problem)) from problem
        difference = golden.aggregator_difference(outputs)
        accepted = allow_failed and (self.manifest.parity_failed or parity.precision != "fp32")
        if not accepted and parity.precision != "fp32":
            refuse_encoder(parity, f"{self.root / ENCODER_GRAPH}")
        if not accepted and not (parity.passed and difference <= GOLDEN_MAX_DIFFERENCE):
            raise SelfTestFailed(
                f"Bundle {self.label} does not reproduce its golden values on {self.engine_label}: "
                f"encoder {parity.missed or 'as it should be'}, aggregator difference {difference:.2e} "
                f"(at most {GOLDEN_MAX_DIFFERENCE}); use another engine."
            )
        return {"encoder_cosine": parity.cosine_worst, "aggregator_difference": difference}

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


def _open_encoder(
    root: Path,
    manifest: Manifest,
    golden: Golden,
    engine: str,
    device: str,
    engine_cache: Path | None,
    precision: str,
) -> GatedEncoder:
    """The encoder, whether or not it passes; bundles from before the gate's tiles run in fp32."""
    if manifest.schema_version < 3 and precision == "auto":
        precision = "fp32"
    if manifest.schema_version < 3 and precision != "fp32":
        raise ParityFailed(
            f"{root} is of schema version {manifest.schema_version} and holds no tiles to measure "
            f"{precision} on; export the model again, or use --precision fp32."
        )
    return open_encoder(
        root / ENCODER_GRAPH,
        partial(_measure, root=root, golden=golden),
        engine=engine,
        device=device,
        engine_cache=engine_cache,
        precision=precision,
        callers=1,
        allow_failed=True,
    )


def _measure(encoder: Engine, root: Path, golden: Golden) -> EncoderParity:
    try:
        return measure_encoder(encoder, golden.encoder)
    except FieldInvalid as problem:
        raise _foreign(root / ENCODER_GRAPH, str(problem)) from problem
    except KeyError as problem:
        raise _foreign(root / ENCODER_GRAPH, f"it has no output {problem}") from problem


def _foreign(graph: Path, why: str) -> BundleUnsupported:
    return BundleUnsupported(
        f"{graph} is no graph of this bundle ({why.partition(';')[0]}); export the model again."
    )


def _warnings(manifest: Manifest, parity: EncoderParity) -> list[str]:
    warnings = []
    if manifest.parity_failed:
        warnings.append(f"The bundle was exported although {manifest.parity_failed}.")
    if not parity.passed:
        warnings.append(f"The encoder on {parity.label} misses its gate: {parity.missed}.")
    return warnings


__all__ = ["Aggregated", "Bundle", "read_manifest", "verify_files"]
