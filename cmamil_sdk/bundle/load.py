"""Load a bundle: verify every byte, open the graphs, run the golden test."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from cmamil_sdk.bundle.aggregator import aggregator_differences, open_aggregator
from cmamil_sdk.bundle.answer import Aggregated, answer_of, is_finite
from cmamil_sdk.bundle.bags import MAX_ATTENTION_MIB, check_finite, check_size
from cmamil_sdk.bundle.golden import GOLDEN_MAX_DIFFERENCE, Golden, read_golden
from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH, Manifest
from cmamil_sdk.bundle.verify import read_manifest, verify_files
from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.engines.gated import GatedEncoder, Loader, ParityRow, open_encoder, parity_table
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
from cmamil_sdk.features.isolated_encoder import encoder_loader
from cmamil_sdk.machine import available_cores
from cmamil_sdk.slides import ReaderName


class Bundle:
    """A verified bundle with its aggregator loaded.

    Attributes:
        root: its directory.
        manifest: what it says of itself.
        sha256: of the manifest, its identity.
        encoder_info: the engine that :meth:`open_encoder` opens.
        aggregator_info: the engine of the aggregator: in fp16 with such an encoder, in bf16 with one on
            a CPU where that gains and reproduces the golden values, else in fp32; on TensorRT where that
            was asked for, else on onnxruntime, in bf16 with OpenVINO for the products of features.
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
        callers: int,
        max_attention_mib: int,
        loader: Loader | None,
        hashes: Mapping[str, str] | None,
    ) -> None:
        """Use :meth:`load`."""
        self.root = root
        self.manifest = manifest
        self.sha256 = sha256
        self.encoder_info = encoder.engine.info
        self.aggregator_info = aggregator.info
        self.warnings = tuple(_warnings(manifest, encoder.parity))
        self.encoder_parity = encoder.parity
        self._tested_encoder: Engine | None = encoder.engine
        self._callers = callers
        self._aggregator = aggregator
        self._engine_cache = engine_cache
        self._max_attention_mib = max_attention_mib
        self._loader = loader
        self._hashes = hashes

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        engine: str = "auto",
        device: str = "auto",
        engine_cache: Path | None = None,
        precision: str = "auto",
        callers: int | None = None,
        reader: ReaderName = "auto",
        allow_failed_parity: bool = False,
        max_attention_mib: int = MAX_ATTENTION_MIB,
    ) -> Self:
        """Load a bundle, or refuse it with the reason.

        The encoder that the golden test ran on stays open for the first :meth:`open_encoder` with as many
        callers; where nothing is going to be encoded, :meth:`release_encoder` frees it.

        Args:
            path: the directory that holds ``manifest.json``.
            engine, device, engine_cache: the encoder's, as :func:`~cmamil_sdk.engines.load_engine`.
            precision: the encoder's, as :func:`~cmamil_sdk.engines.gated.open_encoder`.
            callers: threads that will call the encoder at a time; default one per core.
            reader: what slides will be read with. With ``cucim`` an encoder on a GPU is loaded in a
                process of its own, which decodes there as well and may crash without harm.
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
        callers = callers or available_cores()
        loader = encoder_loader(reader)
        encoder = _open_encoder(
            path, manifest, golden, engine, device, engine_cache, precision, callers, loader
        )
        bundle = cls.of_graphs(
            path,
            manifest,
            encoder,
            golden=golden,
            sha256=sha256,
            callers=callers,
            engine_cache=engine_cache,
            max_attention_mib=max_attention_mib,
            loader=loader,
            hashes=manifest.hashes,
        )
        bundle._check_parity(golden, allow_failed=allow_failed_parity)
        return bundle

    @classmethod
    def of_graphs(
        cls,
        root: Path,
        manifest: Manifest,
        encoder: GatedEncoder,
        *,
        golden: Golden | None = None,
        sha256: str = "",
        callers: int | None = None,
        engine_cache: Path | None = None,
        max_attention_mib: int = MAX_ATTENTION_MIB,
        loader: Loader | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> Self:
        """A bundle around an encoder that was opened for so many callers.

        ``golden`` are its golden values, if they were read. ``loader`` opens further encoders, in place
        of :func:`~cmamil_sdk.engines.load_engine`. What is loaded is compared with ``hashes``, as there;
        without them nothing is verified.

        Raises:
            BundleCorrupt: the golden values cannot be read.
            BundleUnsupported, EngineMissing: the aggregator cannot be run.
            BundleCorrupt: it is not the one of ``hashes``.
        """
        golden = golden or read_golden(root, manifest)
        info = encoder.engine.info
        aggregator = open_aggregator(
            root, manifest, info, golden, engine_cache=engine_cache, hashes=hashes
        )
        return cls(
            root,
            manifest,
            sha256,
            encoder,
            aggregator,
            engine_cache,
            callers or available_cores(),
            max_attention_mib,
            loader,
            hashes,
        )

    @property
    def label(self) -> str:
        """``name/version``."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def engine_label(self) -> str:
        """The encoder's engine, device and precision in use."""
        return self.encoder_info.label

    def open_encoder(self, threads: int = 1, callers: int | None = None) -> Engine:
        """An encoder engine of one's own: ``tiles [B, px, px, 3]`` uint8 -> ``features [B, D]``.

        ``threads`` and ``callers`` are those of :func:`~cmamil_sdk.engines.load_engine`.

        Raises:
            BundleCorrupt: the graph was exchanged since the bundle was verified.
        """
        tested, self._tested_encoder = self._tested_encoder, None
        if tested is not None:
            if (threads, callers or available_cores()) == (1, self._callers):
                return tested
            tested.close()
        info = self.encoder_info
        return (self._loader or load_engine)(
            self.root / ENCODER_GRAPH,
            engine=info.name,
            device=info.device,
            precision=info.precision,
            threads=threads,
            callers=callers,
            engine_cache=self._engine_cache,
            reason=info.reason,
            hashes=self._hashes,
        )

    def check_size(self, counts: Mapping[str, int], slide: str) -> None:
        """Refuse a bag too large for the aggregator; ``counts`` are tiles per scale, coarse to fine.

        Raises:
            TooManyTiles: see :func:`~cmamil_sdk.bundle.bags.check_size`.
        """
        check_size(counts, self.manifest, slide=slide, max_attention_mib=self._max_attention_mib)

    def release_encoder(self) -> None:
        """Close the encoder of the golden test, unless it was handed out."""
        if self._tested_encoder is not None:
            self._tested_encoder.close()
            self._tested_encoder = None

    def close(self) -> None:
        """Free the graphs' memory; nothing can be aggregated any more."""
        self.release_encoder()
        self._aggregator.close()

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
        if not is_finite(outputs):
            raise NonFiniteOutput(
                f"Slide {bag.slide_id}: bundle {self.label} returned NaN or infinity; "
                "check the features, or load the bundle on another engine."
            )
        return answer_of(outputs, self.manifest, seconds=time.perf_counter() - started)

    def self_test(self) -> dict[str, float]:
        """Reproduce the golden values on this engine; returns the differences found.

        Raises:
            ParityFailed, SelfTestFailed: they are not reproduced.
        """
        golden = read_golden(self.root, self.manifest)
        encoder = self.open_encoder()
        self.encoder_parity = _measure(encoder, self.root, golden)
        encoder.close()
        return self._check_parity(golden, allow_failed=bool(self.warnings))

    def aggregator_differences(self) -> dict[str, float]:
        """See :func:`~cmamil_sdk.bundle.aggregator.aggregator_differences`."""
        golden = read_golden(self.root, self.manifest)
        return aggregator_differences(self.root, self.manifest, golden, self._hashes)

    def parity_table(self) -> list[ParityRow]:
        """The encoder on every engine and precision of this machine."""
        golden = read_golden(self.root, self.manifest)
        measure = partial(_measure, root=self.root, golden=golden)
        return parity_table(
            self.root / ENCODER_GRAPH,
            measure,
            engine_cache=self._engine_cache,
            hashes=self._hashes,
        )

    def _check_parity(self, golden: Golden, *, allow_failed: bool) -> dict[str, float]:
        parity = self.encoder_parity
        try:
            outputs = self._aggregator.infer(golden.inputs)
        except FieldInvalid as problem:
            raise _foreign(self.root / AGGREGATOR_GRAPH, str(problem)) from problem
        difference = golden.aggregator_difference(outputs)
        accepted = allow_failed and (self.manifest.parity_failed or parity.precision != "fp32")
        if not accepted and parity.precision != "fp32":
            refuse_encoder(parity, f"{self.root / ENCODER_GRAPH}")
        most = GOLDEN_MAX_DIFFERENCE[self.aggregator_info.precision]
        if not accepted and not (parity.passed and difference <= most):
            raise SelfTestFailed(
                f"Bundle {self.label} does not reproduce its golden values on {self.engine_label}: "
                f"encoder {parity.missed or 'as it should be'}, aggregator difference {difference:.2e} "
                f"(at most {most}); use another engine."
            )
        return {"encoder_cosine": parity.cosine_worst, "aggregator_difference": difference}


def _open_encoder(
    root: Path,
    manifest: Manifest,
    golden: Golden,
    engine: str,
    device: str,
    engine_cache: Path | None,
    precision: str,
    callers: int,
    loader: Loader | None,
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
        callers=callers,
        allow_failed=True,
        loader=loader,
        hashes=manifest.hashes,
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


__all__ = ["Bundle"]
