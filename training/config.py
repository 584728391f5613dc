"""The training configuration: every field has an effect, and an unknown one is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.files import parse_document
from cmamil_sdk.models.names import MODELS, why_no_model

from .defaults import DEFAULT_FOLDS, DEFAULT_TEST_SHARE, DEFAULT_VAL_SHARE
from .option_rules import why_inconsistent
from .yaml_files import INPUTS, read_hierarchy, read_mapping

Loss = Literal["ce", "svm"]
Precision = Literal["fp32", "bf16-mixed", "fp16-mixed"]
Weight = Annotated[float, Field(ge=0.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]

_MOST_PER_STEP = 64
_LEAST_STEPS = 6


def _only(*models: str) -> dict[str, JsonValue]:
    return {"only": list(models)}


_ONLY_CMA = _only("cma-mil")
_ONLY_HMIL = _only("hmil")
_WITH_SCALES = _only("cma-mil", "hmil")
_WITH_TILE_LOSS = _only("cma-mil", "torchmil:CLAM_SB")
_WITH_ONE_LEVEL = _only(*(model for model in MODELS if model != "hmil"))
_WITH_ATTENTION = _only(
    "cma-mil",
    "abmil",
    "torchmil:ABMIL",
    "torchmil:CLAM_SB",
    "torchmil:DSMIL",
    "torchmil:TransformerABMIL",
)


def _hmil(default: float | None) -> dict[str, JsonValue]:
    return {"defaults": {"hmil": default}}


class TrainConfig(BaseModel):
    """How a model is trained; the defaults are each model's documented ones.

    A field whose schema says ``only`` belongs to those models and is refused for another;
    ``defaults`` in the schema are those of a model whose default differs from the field's.
    """

    # The help describes the fields without ever checking one.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    model: str = Field("cma-mil", description=f"which model is trained: {', '.join(MODELS)}")
    scales: tuple[str, ...] | None = Field(
        None, min_length=1, description="scales to train on; None: all that the features have"
    )
    cross_attention: Literal["nested", "global", "nested-bias", "none"] | None = Field(
        None,
        description="whom a tile asks at the next scale; None: nested, or global where that is "
        "unknown. On one scale None: nobody; global: the other tiles",
        json_schema_extra=_WITH_SCALES,
    )
    cross_norm: Literal["none", "layer"] = Field(
        "none",
        description="what follows the cross attention, or stands in its place; layer: LayerNorm, "
        "as published",
        json_schema_extra=_WITH_SCALES,
    )
    pooling: Literal["attention", "reference"] = Field(
        "attention",
        description="weights of the tiles: softmax, or exp(softmax) as published",
        json_schema_extra=_ONLY_CMA,
    )
    embed_dim: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="width of a learned projection in front of all else; None: no projection",
    )
    dim: int = Field(
        128,
        ge=2,
        le=4096,
        description="width of the tile embeddings",
        json_schema_extra=_hmil(256),
    )
    attention_dim: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="width of the layer that weighs the tiles; None: half of dim",
        json_schema_extra=_WITH_ATTENTION,
    )
    heads: int | None = Field(
        None,
        ge=1,
        le=64,
        description="attentions over the tiles, each with a tile classifier of its own, that answer "
        "together; None: 8 where scales attend to each other, else 1; published: 1",
        json_schema_extra=_ONLY_CMA,
    )
    drop_out: Rate = Field(
        0.2,
        description="dropout after the first layer, and in CMA-MIL's gated attention",
    )
    standardize: bool = Field(True, description="standardise features by the training tiles")

    bag_loss: Loss = Field(
        "ce",
        description="slide loss: cross-entropy or smooth top-1 SVM",
        json_schema_extra=_WITH_ONE_LEVEL,
    )
    inst_loss: Literal["ce", "svm", "none"] = Field(
        "svm",
        description="tile loss, on the most and least telling tiles",
        json_schema_extra=_WITH_TILE_LOSS,
    )
    bag_weight: float = Field(
        0.7,
        ge=0.0,
        le=1.0,
        description="share of the slide loss; the rest is the tile loss",
        json_schema_extra=_WITH_TILE_LOSS,
    )
    k_sample: int = Field(
        8,
        ge=1,
        description="tiles at each end of the ranking",
        json_schema_extra=_WITH_TILE_LOSS,
    )
    subtyping: bool = Field(
        False,
        description="tile loss teaches other classes, too",
        json_schema_extra=_WITH_TILE_LOSS,
    )
    scale_loss: float = Field(
        0.0,
        ge=0.0,
        description="weight of the slide loss on each scale's own answer",
        json_schema_extra=_ONLY_CMA,
    )
    label_smoothing: Rate = Field(0.0, description="smoothing of the cross-entropy slide loss")

    hierarchy: dict[str, str] | None = Field(
        None,
        description="YAML file with a line 'label: coarse label' for each label",
        json_schema_extra=_ONLY_HMIL,
    )
    recipe: Literal["ours", "paper", "repo"] = Field(
        "ours",
        description="form of the losses: repaired, as in the paper, or as published code runs",
        json_schema_extra=_ONLY_HMIL,
    )
    head: Literal["per_class", "shared"] | None = Field(
        None,
        description="weights of each class or of all; None: per_class with ours, or shared",
        json_schema_extra=_ONLY_HMIL,
    )
    fine_weight: Weight = Field(
        1.0, description="of the slide loss on the labels", json_schema_extra=_ONLY_HMIL
    )
    coarse_weight: Weight | None = Field(
        None,
        description="of that on coarse labels; 0: their answer is summed; None: 1",
        json_schema_extra=_ONLY_HMIL,
    )
    bag_align_weight: Weight | None = Field(
        None,
        description="of the loss on fine answers outside the coarse label; None: with ours 0.5, or 1",
        json_schema_extra=_ONLY_HMIL,
    )
    inst_align_weight: Weight | None = Field(
        None,
        description="of that on fine attention off the coarse one; None: with ours 4, paper 1, repo 0",
        json_schema_extra=_ONLY_HMIL,
    )
    contrast_weight: Weight | None = Field(
        None,
        description="of the contrast of a step's slides; None: with ours 0, or 1",
        json_schema_extra=_ONLY_HMIL,
    )
    logit_adjust: Weight | None = Field(
        None,
        description="share of log class frequencies in training logits; None: with ours 1, balanced 0",
        json_schema_extra=_ONLY_HMIL,
    )

    epochs: int = Field(
        50,
        ge=1,
        description="passes over the training slides, at most",
        json_schema_extra=_hmil(200),
    )
    lr: float = Field(
        2e-4,
        gt=0.0,
        description="learning rate (with onecycle: its peak)",
        json_schema_extra=_hmil(1e-4),
    )
    weight_decay: float = Field(1e-5, ge=0.0, description="decoupled weight decay of AdamW")
    schedule: Literal["constant", "onecycle", "cosine", "plateau"] = Field(
        "constant",
        description="learning rate over time; plateau: a tenth after 6 epochs without a lower val_loss",
    )
    accumulate: int | None = Field(
        1,
        ge=1,
        description="slides per optimiser step; None: a sixth of them, at most 64",
        json_schema_extra=_hmil(None),
    )
    sampling: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="slides of an epoch: each once, or all labels equally often in each step",
    )
    max_tiles: int | None = Field(
        None,
        ge=1,
        description="tiles of a slide in a step, drawn anew each epoch; None: all",
    )
    gradient_clip: float | None = Field(
        None, gt=0.0, description="largest norm of the gradient; None: unlimited"
    )
    early_stopping: bool = Field(
        False, description="stop after patience epochs without a better one"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="None: a fifth of the epochs, between 2 and 20",
    )

    folds: int | None = Field(
        None,
        ge=1,
        description=f"cross-validation folds; None: {DEFAULT_FOLDS}, or all that are given",
    )
    val_share: float = Field(
        DEFAULT_VAL_SHARE,
        ge=0.0,
        lt=1.0,
        description="share of the other patients to select the epoch; 0: the last is kept, uncalibrated",
    )
    test_share: Share = Field(
        DEFAULT_TEST_SHARE, description="share of patients for test when folds is 1"
    )
    ignore_unlabelled: bool = Field(False, description="leave out features without label")

    seed: int = Field(1, ge=0, le=2**31 - 1, description="of splits, weights, order and dropout")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU if there is one"
    )
    precision: Precision = Field(
        "fp32",
        description="of training steps; fp16-mixed on CUDA only",
    )
    log_data: bool = Field(False, description="write TensorBoard events")
    threads: int = Field(
        1,
        ge=1,
        description="CPU threads of torch; more than idle cores make it a hundred times slower",
    )
    cache_mb: int = Field(2048, ge=0, description="memory for features kept between epochs, MB")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_model(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return _defaults_of(str(data.get("model"))) | data

    @field_validator("model")
    @classmethod
    def _model_is_offered(cls, value: str) -> str:
        problem = why_no_model(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    @field_validator("scales", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("hierarchy", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_hierarchy(Path(value)) if isinstance(value, str | Path) else value

    @model_serializer(mode="wrap")
    def _without_options_of_others(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        foreign = _options_of_others(self.model)
        return {name: value for name, value in handler(self).items() if name not in foreign}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        others = _options_of_others(self.model)
        foreign = sorted(set(others) & self.model_fields_set)
        if foreign:
            owners = " and ".join(f"'{owner}'" for owner in others[foreign[0]])
            raise ValueError(
                f"{foreign[0]} is an option of model {owners} and has no effect on '{self.model}'"
            )
        problem = why_inconsistent(self)
        if problem is not None:
            raise ValueError(problem)
        return self

    def slides_per_step(self, n_train: int) -> int:
        """Slides that make an optimiser step, of ``n_train`` to train on.

        Where ``accumulate`` does not say it: a sixth of them, at least two and at most 64.
        """
        return self.accumulate or max(2, min(_MOST_PER_STEP, n_train // _LEAST_STEPS))

    @property
    def effective_patience(self) -> int:
        """Epochs without improvement after which early stopping ends the training."""
        return self.patience or min(20, max(2, self.epochs // 5))


def _extra(name: str) -> dict[str, Any]:
    extra = TrainConfig.model_fields[name].json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def _defaults_of(model: str) -> dict[str, Any]:
    """Defaults of a model that differ from the fields' own."""
    found = {name: _extra(name).get("defaults", {}) for name in TrainConfig.model_fields}
    return {name: defaults[model] for name, defaults in found.items() if model in defaults}


def _options_of_others(model: str) -> dict[str, list[str]]:
    """Fields without effect on a model, with the models that they belong to."""
    found = {name: _extra(name).get("only", [model]) for name in TrainConfig.model_fields}
    return {name: only for name, only in found.items() if model not in only}


def owners_of(name: str) -> str:
    """The models that have a field, as ``only ...`` or ``not ...``, which is shorter; "": all."""
    only = _extra(name).get("only", MODELS)
    others = [model for model in MODELS if model not in only]
    if not others:
        return ""
    few = only if len(only) <= len(others) else others
    return f"{'only' if few is only else 'not'} {', '.join(few)}"


def load_config(path: Path, **overrides: Any) -> TrainConfig:
    """Read a YAML configuration; ``overrides`` win over the file.

    Paths of input and output in it are left to :func:`~cmamil_sdk.training.yaml_files.read_inputs`.
    A hierarchy may stand in it as a mapping, or as the name of its file, relative to ``path``.

    Raises:
        ConfigInvalid: unreadable, not a mapping, an unknown key or a value out of range.
    """
    document = read_mapping(path)
    if isinstance(document.get("hierarchy"), str):
        document["hierarchy"] = path.parent / document["hierarchy"]
    fields = {str(key): value for key, value in document.items() if key not in INPUTS}
    return parse_document(TrainConfig, fields | overrides, where=path, error=ConfigInvalid)


def make_config(**fields: Any) -> TrainConfig:
    """Make a configuration from single values.

    Raises:
        ConfigInvalid: an unknown field or a value out of range.
    """
    return parse_document(TrainConfig, fields, where="training options", error=ConfigInvalid)


__all__ = [
    "TrainConfig",
    "load_config",
    "make_config",
    "owners_of",
]
