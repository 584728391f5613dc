"""An aggregator, run by an engine or by torch: ``python -m ... CASE`` prints the figures of one."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.export.probe_bags import Arrays, probe_bag
from cmamil_sdk.tiling.recipe import Scale

from .cases import EAGER, OpenCase, main_of


@dataclass(frozen=True)
class AggregatorCase:
    """One way to run one on bags of one size.

    Attributes:
        graph: the ``.onnx`` file.
        model_kind, hyperparameters: of the same model, whose weights do not matter here.
        scales: names and microns per pixel, coarse to fine.
        index_inputs: the arrays of the nested grid that it reads.
        coarse_temperature: of the coarse logits, of a model that has them.
        engine: an engine's name, or :data:`~cmamil_sdk.benchmarks.cases.EAGER`.
        device, precision: as :func:`~cmamil_sdk.engines.load_engine`; eager is on the CPU in fp32.
        tiles: of the finest scale; others follow.
        threads: within a call.
        callers: always one, as in a prediction.
    """

    graph: str
    model_kind: str
    hyperparameters: dict[str, Any]
    scales: list[tuple[str, float]]
    index_inputs: list[str]
    coarse_temperature: float | None
    engine: str
    device: str
    precision: str
    tiles: int
    threads: int
    callers: int = 1

    def open(self) -> OpenCase:
        """Load it, and draw a bag."""
        return self._eager() if self.engine == EAGER else self._engine()

    def products_share(self) -> float:
        """See :func:`~cmamil_sdk.benchmarks.products.products_share`; of a case on onnxruntime."""
        from cmamil_sdk.benchmarks.products import products_share  # noqa: PLC0415

        return products_share(Path(self.graph), self._bag(), self.threads)

    def missed(self) -> str:
        """Which gates its answers miss, in words, compared with onnxruntime's in fp32.

        That is no measure of the model, which export has compared with its graph, but of the precision.
        """
        if self.precision == "fp32":
            return ""
        from cmamil_sdk.engines.parity import missed_gates  # noqa: PLC0415
        from cmamil_sdk.export.parity import aggregator_parity  # noqa: PLC0415

        exact = replace(self, engine="onnxruntime", device="cpu", precision="fp32")
        bag = self._bag()
        with closing(self._load()) as engine, closing(exact._load()) as reference:
            found = aggregator_parity(reference.infer(bag), engine.infer(bag))
            missed = missed_gates(found, self.precision)
            return f"{engine.info.label}: {missed}" if missed else ""

    def _load(self) -> Engine:
        return load_engine(
            Path(self.graph),
            engine=self.engine,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
        )

    def _engine(self) -> OpenCase:
        engine, bag = self._load(), self._bag()
        return OpenCase(
            call=lambda: engine.infer(bag),
            label=engine.info.label,
            version=engine.info.version,
            missed="",
            close=engine.close,
            memory_bytes=engine.memory_bytes,
        )

    def _eager(self) -> OpenCase:
        import torch  # noqa: PLC0415 - it would be in the memory of every engine

        from cmamil_sdk.export.aggregator import AggregatorGraph, eager_outputs  # noqa: PLC0415
        from cmamil_sdk.models.build import build_model  # noqa: PLC0415

        torch.set_num_threads(self.threads)
        model = build_model(self.model_kind, self.hyperparameters)
        module, bag = AggregatorGraph(model, 1.0, self.coarse_temperature).eval(), self._bag()
        return OpenCase(
            call=lambda: eager_outputs(module, bag),
            label=f"{EAGER}-cpu-fp32",
            version=torch.__version__,
            missed="",
            close=lambda: None,
        )

    def _bag(self) -> Arrays:
        scales = [Scale(name=name, mpp=mpp) for name, mpp in self.scales]
        dim = int(self.hyperparameters["feature_dim"])
        bag = probe_bag(scales, dim, finest_tiles=self.tiles, seed=0)
        names = [*(f"features_{scale.name}" for scale in scales), *self.index_inputs]
        return {name: bag[name] for name in names}


if __name__ == "__main__":
    main_of(AggregatorCase)


__all__ = ["AggregatorCase"]
