"""The names under which models are chosen; naming them needs no torch."""

from __future__ import annotations

TORCHMIL = "torchmil:"
"""Prefix of a model of the library torchmil."""

OF_TORCHMIL = ("ABMIL", "CLAM_SB", "DSMIL", "TransMIL", "TransformerABMIL")
"""Those of its models that are offered."""

SINGLE_SCALE = ("abmil", "mean", "max", *(f"{TORCHMIL}{name}" for name in OF_TORCHMIL))
"""Models that read one scale."""

MODELS = ("cma-mil", "hmil", *SINGLE_SCALE)

_NEEDS_GRAPH = "it needs a graph of the tiles' neighbours"
_NOT_OFFERED = {
    "CAMIL": _NEEDS_GRAPH,
    "DTFDMIL": "it shuffles the tiles in prediction too, so its answers are random",
    "DeepGraphSurv": _NEEDS_GRAPH,
    "GTP": _NEEDS_GRAPH,
    "IIBMIL": "its tile loss knows two classes only",
    "PatchGCN": _NEEDS_GRAPH,
    "ProbSmoothABMIL": _NEEDS_GRAPH,
    "SETMIL": "it needs the tiles' coordinates",
    "SmABMIL": _NEEDS_GRAPH,
    "SmTransformerABMIL": _NEEDS_GRAPH,
    "SmoothABMIL": _NEEDS_GRAPH,
    "TransformerProbSmoothABMIL": _NEEDS_GRAPH,
    "VAEABMIL": "it draws random numbers in prediction, so its answers are random",
}
"""The other models of torchmil 1.0.2, and why each is left out."""


def why_no_model(name: str) -> str | None:
    """Why ``name`` cannot be chosen as a model; None if it can."""
    if name in MODELS:
        return None
    reason = _NOT_OFFERED.get(name.removeprefix(TORCHMIL)) if name.startswith(TORCHMIL) else None
    problem = (
        f"model {name!r} is not offered, because {reason}"
        if reason
        else f"there is no model {name!r}"
    )
    return f"{problem}; choose one of {', '.join(MODELS)}"


__all__ = ["MODELS", "OF_TORCHMIL", "SINGLE_SCALE", "TORCHMIL", "why_no_model"]
