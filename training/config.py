"""The training configuration: every field has an effect, and an unknown one is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.files import parse_document

Loss = Literal["ce", "svm"]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class TrainConfig(BaseModel):
    """How a model is trained; the defaults are CMA-MIL's documented ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Literal["cma-mil"] = Field("cma-mil", description="which model is trained")
    scales: tuple[str, ...] | None = Field(
        None, min_length=1, description="scales to train on, among those of the features; None: all"
    )
    cross_attention: Literal["nested", "global", "none"] | None = Field(
        None,
        description="how scales attend to each other; None: nested where the tiles' parents are "
        "known, else global; without effect on a single scale",
    )
    cross_norm: Literal["none", "layer"] = Field(
        "none", description="what follows the cross attention: nothing, or a LayerNorm as published"
    )
    pooling: Literal["attention", "reference"] = Field(
        "attention", description="softmax attention, or exp(softmax) as published"
    )
    dim: int = Field(128, ge=2, le=4096, description="width of the tile embeddings")
    drop_out: Rate = Field(0.2, description="dropout rate in the gated attention")
    standardize: bool = Field(
        True, description="standardise features by the training tiles, inside the model"
    )

    bag_loss: Loss = Field("ce", description="slide loss: cross-entropy or smooth top-1 SVM")
    inst_loss: Literal["ce", "svm", "none"] = Field(
        "svm", description="loss on the most and least telling tiles of each scale"
    )
    bag_weight: float = Field(
        0.7, ge=0.0, le=1.0, description="share of the slide loss; the rest is the tile loss"
    )
    k_sample: int = Field(8, ge=1, description="tiles at each end of the ranking for inst_loss")
    subtyping: bool = Field(
        False, description="tile loss also teaches that top tiles of other classes are not theirs"
    )
    scale_loss: float = Field(
        0.0, ge=0.0, description="weight of the slide loss on each scale's own answer, averaged"
    )
    label_smoothing: Rate = Field(0.0, description="smoothing of the cross-entropy slide loss")

    epochs: int = Field(50, ge=1, description="passes over the training slides, at most")
    lr: float = Field(2e-4, gt=0.0, description="learning rate (with onecycle: its peak)")
    weight_decay: float = Field(1e-5, ge=0.0, description="decoupled weight decay of AdamW")
    schedule: Literal["constant", "onecycle", "cosine"] = Field(
        "constant", description="learning rate over the steps"
    )
    accumulate: int = Field(1, ge=1, description="slides per optimiser step")
    gradient_clip: float | None = Field(
        None, gt=0.0, description="largest norm of the gradient; None: unlimited"
    )
    early_stopping: bool = Field(
        False, description="stop when the validation has not improved for patience epochs"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="epochs without improvement; None: a fifth of the epochs, between 2 and 20",
    )

    folds: int = Field(
        5, ge=1, description="cross-validation folds; 1: one split; not used with given splits"
    )
    val_share: float = Field(
        0.15,
        ge=0.0,
        lt=1.0,
        description="share of a fold's non-test patients that select the epoch and set the "
        "temperature; 0: the last epoch is kept, uncalibrated",
    )
    test_share: Share = Field(0.2, description="share of patients for test when folds is 1")
    ignore_unlabelled: bool = Field(
        False, description="leave out feature files that the labels table does not name"
    )

    seed: int = Field(1, ge=0, le=2**31 - 1, description="of splits, weights, order and dropout")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU if there is one"
    )
    threads: int = Field(
        1,
        ge=1,
        description="CPU threads of torch; a step is small, and more threads than idle cores slow "
        "it down a hundredfold",
    )
    cache_mb: int = Field(2048, ge=0, description="memory for features kept between epochs, MB")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label_smoothing > 0 and self.bag_loss != "ce":
            raise ValueError("label_smoothing works with bag_loss 'ce' only; set it to 0")
        if self.patience is not None and not self.early_stopping:
            raise ValueError("patience works with early_stopping only; switch that on")
        if self.early_stopping and self.val_share == 0:
            raise ValueError("early_stopping needs validation slides; set val_share above 0")
        return self

    @property
    def effective_patience(self) -> int:
        """Epochs without improvement after which early stopping ends the training."""
        return self.patience or min(20, max(2, self.epochs // 5))


def load_config(path: Path, **overrides: Any) -> TrainConfig:
    """Read a YAML configuration; ``overrides`` win over the file.

    Raises:
        ConfigInvalid: unreadable, not a mapping, an unknown key or a value out of range.
    """
    import yaml  # noqa: PLC0415 - comes with the extra train; the options' names are read without it

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        first_line = str(problem).splitlines()[0]
        raise ConfigInvalid(f"{path} cannot be read ({first_line}); mend the file.") from problem
    if not isinstance(document, dict):
        raise ConfigInvalid(f"{path} must hold 'name: value' lines; mend the file.")
    merged = {str(key): value for key, value in document.items()} | overrides
    return parse_document(TrainConfig, merged, where=path, error=ConfigInvalid)


def make_config(**fields: Any) -> TrainConfig:
    """Make a configuration from single values.

    Raises:
        ConfigInvalid: an unknown field or a value out of range.
    """
    return parse_document(TrainConfig, fields, where="training options", error=ConfigInvalid)


__all__ = ["TrainConfig", "load_config", "make_config"]
