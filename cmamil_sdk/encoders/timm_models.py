"""Any image network of timm, up to its pooled features."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmamil_sdk.encoders.download import fetch_weights
from cmamil_sdk.encoders.registry import TIMM_PREFIX, EncoderSpec
from cmamil_sdk.encoders.torchvision_ops import import_torchvision
from cmamil_sdk.encoders.weights import UNLOADABLE, LoadedNetwork, read_weights, unloadable
from cmamil_sdk.errors import FieldInvalid, WeightsMissing

import_torchvision()

import timm  # noqa: E402
from timm.data.config import resolve_model_data_config  # noqa: E402

_SIMILAR = 3


def build(name: str, weights: Path | None = None) -> tuple[LoadedNetwork, EncoderSpec]:
    """Load a network; returns it with its facts.

    Args:
        name: ``timm:<model>`` or ``timm:<model>.<tag>``, as ``timm.list_models`` has it.
        weights: a state dict of that network, with a classifier or without; None takes the weights that
            timm names, which are downloaded on first use.

    Raises:
        FieldInvalid: timm has no such model, ``weights`` do not fit it, or it gives no features
            ``[B, D]`` of square RGB images.
        WeightsMissing: there is no network to download them through, or timm names none.
    """
    model = name.removeprefix(TIMM_PREFIX)
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        raise _no_such(name, "model", model, timm.list_models())
    try:
        timm.get_pretrained_cfg(model)
    except RuntimeError as problem:
        known = timm.list_pretrained(f"{architecture}*")
        raise _no_such(name, "weights", model, known) from problem
    path = weights or _published(name, model)
    state, digest = read_weights(path, name)
    network = _load(name, model, state, path)
    return LoadedNetwork(network, path, digest), _spec(name, network)


def _no_such(name: str, what: str, wanted: str, known: list[str]) -> FieldInvalid:
    close = difflib.get_close_matches(wanted, known, n=_SIMILAR)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names them all."
    return FieldInvalid(f"--encoder {name}: timm {timm.__version__} has no such {what}; {hint}")


def _published(name: str, model: str) -> Path:
    repository = getattr(timm.get_pretrained_cfg(model), "hf_hub_id", None)
    if not repository:
        raise WeightsMissing(
            f"timm names no weights for {name}; choose one of `timm.list_models(pretrained=True)`, or "
            "name a file with --weights FILE."
        )
    url = f"https://huggingface.co/{repository}/resolve/main/model.safetensors"
    return fetch_weights(url, f"{repository.replace('/', '--')}.safetensors", name)


def _load(name: str, model: str, state: dict[str, Tensor], path: Path) -> nn.Module:
    """The network without its classifier, all of whose tensors come from ``state``.

    timm leaves missing tensors at random values where the number of classes differs. So the file either
    fits the network with its own classifier, or fits it without one; both are strict.
    """
    try:
        network = _strict(model, state)
        cast(Any, network).reset_classifier(0)
        return network.eval()
    except UNLOADABLE as problem:
        whole = problem
    try:
        return _strict(model, _without_classifier(model, state), num_classes=0).eval()
    except UNLOADABLE as problem:
        raise unloadable(path, name, problem) from whole


def _strict(model: str, state: dict[str, Tensor], **changes: Any) -> nn.Module:
    overlay = {"state_dict": dict(state), **changes}
    return timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, **changes)


def _without_classifier(model: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = getattr(timm.get_pretrained_cfg(model), "classifier", None) or ()
    heads = tuple(f"{head}." for head in ([named] if isinstance(named, str) else named))
    return {key: tensor for key, tensor in state.items() if not key.startswith(heads)}


def _spec(name: str, network: nn.Module) -> EncoderSpec:
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise FieldInvalid(
            f"--encoder {name} takes images of {channels} channels and {width} x {height} px; choose a "
            "network for square RGB images."
        )
    with torch.inference_mode():
        features = network(torch.zeros(1, channels, height, width))
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise FieldInvalid(
            f"--encoder {name} gives no feature vector per image; choose a network that pools."
        )
    return EncoderSpec(
        name=name,
        dim=features.shape[1],
        tile_px=height,
        mean=_grey_levels(config["mean"]),
        std=_grey_levels(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def _grey_levels(shares: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = (255 * share for share in shares)
    return red, green, blue


__all__ = ["build"]
