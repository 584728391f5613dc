"""The generated messages belong to the protos in the repository."""

from __future__ import annotations

import hashlib
import shutil
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


def test_the_image_is_of_these_protos() -> None:
    """``make protos`` compares with it, then writes it anew: it holds what clients may rely on."""
    image = FileDescriptorSet.FromString((_PROTOS / "published.binpb").read_bytes())
    modules = (model_pb2, prediction_pb2, server_pb2, slide_pb2)
    ours = {module.DESCRIPTOR.name: module.DESCRIPTOR for module in modules}
    published = {file.name: file for file in image.file if not file.name.startswith("google/")}
    assert set(published) == set(ours)
    for name, file in published.items():
        file.DiscardUnknownFields()  # buf's own notes
        for message in file.message_type:
            drop_json_names(message)
        assert file == FileDescriptorProto.FromString(ours[name].serialized_pb), "run `make protos`"


def buf(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("buf")
    if not program.exists():
        pytest.skip("buf is not installed; it is in the extra dev, as buf-bin")
    command = [str(program), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_buf_finds_nothing_to_say() -> None:
    for arguments in (("lint",), ("breaking", "--against", "published.binpb")):
        done = buf(_PROTOS, *arguments)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  string label = 6;\n", ""),
        ("string label = 6;", "string label = 60;"),
        ("int64 tiles_failed = 10;", "int32 tiles_failed = 10;"),
        ("rpc PredictSlide(", "rpc PredictOneSlide("),
    ],
)
def test_a_change_that_breaks_clients_is_found(tmp_path: Path, old: str, new: str) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(_PROTOS, protos)
    changed = protos / "cmamil" / "v1" / "prediction.proto"
    text = changed.read_text("utf-8")
    assert old in text
    changed.write_text(text.replace(old, new))
    done = buf(protos, "breaking", "--against", "published.binpb")
    assert done.returncode != 0 and "prediction.proto" in done.stdout


def test_a_protobuf_6_runtime_may_read_the_generated_code() -> None:
    for name in _FILES:
        text = (_GENERATED / f"cmamil/v1/{name}_pb2.py").read_text()
        assert "# Protobuf Python Version: 6." in text
        assert "from cmamil.v1" not in text
