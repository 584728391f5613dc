"""Parameters of a request: what is known is obeyed, and nothing is silently ignored."""

from __future__ import annotations

from collections.abc import Mapping

from cmamil_sdk._proto.inference.open_inference_pb2 import InferParameter, ModelInferRequest
from cmamil_sdk.errors import RequestUnsupported

from ..status import FieldProblem, RequestInvalid

_UNSUPPORTED = {
    "sequence_": "no model here keeps a state between requests",
    "classification": "ask for the output as it is",
    "binary_data": "it belongs to the HTTP form of the protocol",
    "shared_memory_": "send and receive tensors in the messages",
}
"""What Triton knows and this server does not do, by the beginning of its name, and why or what to do."""
_SHOWN_CHARACTERS = 80


def check_parameters(request: ModelInferRequest) -> float | None:
    """Refuse parameters that are not obeyed; returns the seconds that the request may wait, if limited.

    Raises:
        RequestUnsupported: Triton knows the parameter, this server does not do what it asks.
        RequestInvalid: nobody knows it, or its value makes no sense.
    """
    for where, parameters in _owners(request):
        for name in parameters:
            _refuse_unsupported(where, name)
    problems = []
    for where, parameters in _owners(request):
        known = {"timeout", "priority"} if not where else set()
        problems += [
            FieldProblem(_path(where, name), "is no parameter that this server knows")
            for name in parameters
            if name not in known
        ]
    timeout_us = _count(request, "timeout", "of microseconds", problems)
    priority = _count(request, "priority", "from 0", problems)
    if problems:
        raise RequestInvalid(problems)
    if priority:
        raise RequestUnsupported(
            "The request has a priority, and this server serves first come, first served; leave "
            "the parameter priority out."
        )
    return timeout_us / 1e6 if timeout_us else None


def _owners(request: ModelInferRequest) -> list[tuple[str, Mapping[str, InferParameter]]]:
    """All maps of parameters, each with the field that holds it; the request's own first."""
    return [
        ("", request.parameters),
        *((f"inputs[{n}].", tensor.parameters) for n, tensor in enumerate(request.inputs)),
        *((f"outputs[{n}].", tensor.parameters) for n, tensor in enumerate(request.outputs)),
    ]


def _path(where: str, name: str) -> str:
    return f"{where}parameters[{name[:_SHOWN_CHARACTERS]!r}]"


def _refuse_unsupported(where: str, name: str) -> None:
    for beginning, why in _UNSUPPORTED.items():
        if name.startswith(beginning):
            raise RequestUnsupported(
                f"This server does not do what {_path(where, name)} asks: {why}; leave it out."
            )


def _count(request: ModelInferRequest, name: str, unit: str, problems: list[FieldProblem]) -> int:
    """A whole number from 0; 0 if it is not given, which means the same."""
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
    if value < 0:
        problems.append(FieldProblem(_path("", name), f"must be a whole number {unit}"))
        return 0
    return int(value)


__all__ = ["check_parameters"]
