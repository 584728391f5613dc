"""Our messages are those of the protocol, and share a process with a client's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

import cmamil_sdk._proto
from cmamil_sdk._proto.inference import open_inference_pb2

GENERATED = Path(cmamil_sdk._proto.__file__).parent / "inference" / "open_inference_pb2.py"
OURS = open_inference_pb2.DESCRIPTOR
# Of newer versions of the protocol than the client's: unknown fields, which it skips.
NEWER = {"ModelMetadataResponse.properties"}


def theirs(name: str) -> Any:
    """A message of the client."""
    return getattr(service_pb2, name, None) or getattr(model_config_pb2, name)


def compare(ours: Any, other: Any) -> int:
    """Same names, numbers and types of all our fields; returns how many."""
    count = 0
    for field in ours.fields:
        if f"{ours.name}.{field.name}" in NEWER:
            assert field.number not in other.fields_by_number
            continue
        twin = other.fields_by_name[field.name]
        kinds = (field.number, field.type, field.is_repeated)
        assert kinds == (twin.number, twin.type, twin.is_repeated), field.full_name
        for oneof, whose in ((field.containing_oneof, twin), (twin.containing_oneof, field)):
            assert oneof is None or oneof.name == whose.containing_oneof.name
        count += 1
    for nested in ours.nested_types:
        if f"{ours.name}.properties" in NEWER and nested.name == "PropertiesEntry":
            continue
        count += compare(nested, other.nested_types_by_name[nested.name])
    return count


def test_fields_are_those_of_the_client() -> None:
    messages = OURS.message_types_by_name
    assert len(messages) > 15
    assert sum(compare(ours, theirs(name).DESCRIPTOR) for name, ours in messages.items()) > 60


def test_the_values_of_types_are_those_of_the_client() -> None:
    for name, number in open_inference_pb2.DataType.items():
        assert model_config_pb2.DataType.Value(name) == number


def test_nothing_of_the_open_protocol_is_left_out() -> None:
    """Of the client's messages that we have, we lack only fields of Triton's configuration."""
    for name in OURS.message_types_by_name:
        fields = {field.name for field in theirs(name).DESCRIPTOR.fields}
        ours = {field.name for field in OURS.message_types_by_name[name].fields}
        assert fields <= ours or name in ("ModelConfig", "ModelInput", "ModelOutput")


def test_the_methods_are_those_of_the_proto() -> None:
    from cmamil_sdk.serving.open_inference.service import OPEN_INFERENCE, OpenInference

    service = OURS.services_by_name["GRPCInferenceService"]
    assert service.full_name == OPEN_INFERENCE
    methods = OpenInference(*[None] * 4).methods()  # type: ignore[arg-type]
    assert set(methods) == {method.name for method in service.methods}


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_either_may_be_imported_first(first: str) -> None:
    imports = [
        "from cmamil_sdk._proto.inference import open_inference_pb2 as ours",
        "from tritonclient.grpc import service_pb2 as theirs",
    ]
    lines = imports if first == "ours" else imports[::-1]
    more = (
        "data = theirs.ModelReadyRequest(name='a', version='2').SerializeToString()",
        "found = ours.ModelReadyRequest.FromString(data)",
        "assert (found.name, found.version) == ('a', '2')",
    )
    subprocess.run([sys.executable, "-c", "\n".join((*lines, *more))], check=True, timeout=60)


def test_the_generated_code_has_a_pool_of_its_own_and_runs_under_protobuf_6() -> None:
    text = GENERATED.read_text()
    assert "# Protobuf Python Version: 6." in text
    assert "_descriptor_pool.DescriptorPool().AddSerializedFile" in text
    assert "_descriptor_pool.Default()" not in text
