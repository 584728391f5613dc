"""The generated messages belong to the protos in the repository."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

import cmamil_sdk._proto
from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, server_pb2, slide_pb2
from cmamil_sdk._proto.inference import open_inference_pb2

_PROTOS = Path(__file__).resolve().parents[2] / "protos"
_GENERATED = Path(cmamil_sdk._proto.__file__).parent
_FILES = ("model", "prediction", "server", "slide")
_SOURCES = (
    *(f"cmamil/v1/{name}.proto" for name in _FILES),
    "inference/open_inference.proto",
)


def test_generated_code_was_made_from_these_sources() -> None:
    lines = (_GENERATED / "sources.sha256").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split() for line in lines)}
    found = {name: hashlib.sha256((_PROTOS / name).read_bytes()).hexdigest() for name in _SOURCES}
    assert recorded == found, "run `make protos`"


def test_generated_code_equals_a_fresh_generation(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(_PROTOS)]
    subprocess.run([*command, f"--descriptor_set_out={tmp_path / 'set'}", *_SOURCES], check=True)
    fresh = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    modules = (model_pb2, prediction_pb2, server_pb2, slide_pb2, open_inference_pb2)
    ours = {module.DESCRIPTOR.name: module.DESCRIPTOR for module in modules}
    assert {file.name for file in fresh} == set(ours)
    for file in fresh:
        for message in file.message_type:
            drop_json_names(message)
        assert file == FileDescriptorProto.FromString(ours[file.name].serialized_pb)


def drop_json_names(message: DescriptorProto) -> None:
    """Generated code leaves these out, as they follow from the field names."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        drop_json_names(nested)


def test_a_protobuf_6_runtime_may_read_the_generated_code() -> None:
    for name in _FILES:
        text = (_GENERATED / f"cmamil/v1/{name}_pb2.py").read_text()
        assert "# Protobuf Python Version: 6." in text
        assert "from cmamil.v1" not in text
