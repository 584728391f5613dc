"""What a bundle says of its graphs in lower precisions, and how they were judged."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from cmamil_sdk.engines.base import Precision
from cmamil_sdk.engines.parity import END_TO_END_GATES, EncoderParity


class EndToEnd(BaseModel):
    """Answers on slides in a lower precision, beside those of the same bundle in fp32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str = Field(description="engine, device and precision of the encoder")
    slides: int = Field(gt=0, description="that were judged")
    held_out: bool = Field(description="whether they are test slides of all its folds")
    tiles: EncoderParity = Field(description="features of some of their tiles, by the eager model")
    label_flips: int = Field(ge=0, description="slides whose most probable label changed")
    probability_change: float = Field(ge=0, description="largest, of any label of any slide")
    labelled: int = Field(ge=0, description="of the slides, those whose class is known")
    auc_fp32: float | None = Field(description="of the labelled; None: they are of one class")
    auc: float | None = Field(description="the same in the lower precision")

    @property
    def auc_change(self) -> float | None:
        """How far apart the two are."""
        if self.auc is None or self.auc_fp32 is None:
            return None
        return abs(self.auc - self.auc_fp32)

    def missed(self, precision: Precision) -> str:
        """The figures that miss their gate, in words; empty if none does."""
        gates = END_TO_END_GATES.get(precision, {})
        figures = {name: getattr(self, name) for name in gates}
        missed = [
            f"{name.replace('_', ' ')} {value:.4g} (gate {gates[name]:g})"
            for name, value in figures.items()
            if value is not None and value > gates[name]
        ]
        tiles = self.tiles.missed
        return ", ".join([*([f"{tiles} on tiles of the slides"] if tiles else []), *missed])


class PrecisionReport(BaseModel):
    """One lower precision: its graphs, and what came of judging it; the encoder's rows are apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    graphs: tuple[str, ...] = Field(
        description="files of its own; of bf16, those of its aggregator"
    )
    calibration_slides: int = Field(0, ge=0, description="that set the scales of int8")
    calibration_tiles: int = Field(0, ge=0)
    aggregator: Mapping[str, float] = Field(
        {},
        description="largest differences of its aggregator; empty where that can only be in fp32",
    )
    end_to_end: EndToEnd | None = Field(None, description="None: there were no slides")
    missed: str = Field("", description="which gates it misses, of a bundle exported with --force")


__all__ = ["EndToEnd", "PrecisionReport"]
