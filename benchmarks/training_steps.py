"""One optimiser step on one bag, of each form of our models and of the published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import build_model
from cmamil_sdk.synthetic.bags import SCALES
from cmamil_sdk.tiling.nesting import nesting_arrays
from cmamil_sdk.training.config import TrainConfig, make_config
from cmamil_sdk.training.data import TrainingBag
from cmamil_sdk.training.hyperparameters import hyperparameters_of
from cmamil_sdk.training.objective import make_objective

from .published import PublishedCMAMIL, PublishedHMIL

FORMS = ("nested", "nested-bias", "global", "none", "hmil")
"""CMA-MIL by its cross attention, and HMIL on the finest scale alone."""
PARENTS = (0, 0, 1)

_CHILDREN = 4
_HIERARCHY = {"a": "x", "b": "x", "c": "y"}

Step = Callable[[TrainingBag], None]


def draw_bag(form: str, finest_tiles: int, feature_dim: int, seed: int) -> TrainingBag:
    """Random features: ``finest_tiles`` at 20x, a quarter at 10x, a sixteenth at 5x (HMIL: 20x)."""
    generator = torch.Generator().manual_seed(seed)
    scales = SCALES if form != "hmil" else SCALES[-1:]
    counts = [finest_tiles // _CHILDREN**steps for steps in reversed(range(len(scales)))]
    names = [scale.name for scale in scales]
    parent = {name: np.arange(n) // _CHILDREN for name, n in zip(names, counts, strict=True)}
    return TrainingBag(
        slide=f"bag {seed}",
        label=seed % len(PARENTS),
        features={
            name: torch.randn(n, feature_dim, generator=generator)
            for name, n in zip(names, counts, strict=True)
        },
        index={
            name: torch.from_numpy(rows) for name, rows in nesting_arrays(scales, parent).items()
        },
    )


def build_form(form: str, feature_dim: int) -> tuple[MILModel, TrainConfig]:
    """A model as `cmamil train` makes it, and the settings, which are the defaults."""
    hmil = form == "hmil"
    config = (
        make_config(model="hmil", hierarchy=_HIERARCHY)
        if hmil
        else make_config(cross_attention=form)
    )
    scales = SCALES[-1:] if hmil else SCALES
    settings = hyperparameters_of(
        config,
        scales=[scale.name for scale in scales],
        feature_dim=feature_dim,
        n_classes=len(PARENTS),
        cross_attention="none" if hmil else form,
        parents=PARENTS if hmil else None,
    )
    return build_model(config.model, settings), config


def our_step(form: str, feature_dim: int) -> Step:
    """A step with the default settings of ``cmamil train``."""
    model, config = build_form(form, feature_dim)
    model.train()
    objective = make_objective(model, config, range(len(PARENTS)))

    def loss(bag: TrainingBag) -> Tensor:
        value: Tensor = objective(model(bag.features, bag.index), bag.label, 0)
        return value

    return _step(nn.ModuleList([model, objective]).parameters(), loss, config)


def published_step(form: str, feature_dim: int) -> Step:
    """A step of the published model that ``form`` stands beside, same optimiser."""
    if form == "hmil":
        hmil = PublishedHMIL(feature_dim, PARENTS)
        config = make_config(model="hmil", hierarchy=_HIERARCHY)
        finest = SCALES[-1].name
        return _step(
            hmil.parameters(), lambda bag: hmil.loss(bag.features[finest], bag.label), config
        )
    cma = PublishedCMAMIL([scale.name for scale in SCALES], feature_dim, len(PARENTS))
    return _step(cma.parameters(), lambda bag: cma.loss(bag.features, bag.label), make_config())


def _step(
    parameters: Iterable[nn.Parameter], loss: Callable[[TrainingBag], Tensor], config: TrainConfig
) -> Step:
    optimizer = torch.optim.AdamW(
        list(parameters), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )

    def step(bag: TrainingBag) -> None:
        loss(bag).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


__all__ = ["FORMS", "PARENTS", "Step", "build_form", "draw_bag", "our_step", "published_step"]
