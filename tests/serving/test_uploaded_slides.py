"""An uploaded slide is predicted and inspected as one beneath a root."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.cli.app import main
from cmamil_sdk.client import Client
from cmamil_sdk.errors import SlideCorrupt, SlideFormatUnsupported, SlideHashMismatch, SlideNotFound
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.serving.admission import Admission
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.features import FeatureFinder, Features
from cmamil_sdk.serving.hashing import SlideHasher
from cmamil_sdk.serving.paths import SlideRef, resolve
from cmamil_sdk.serving.server import background_server
from cmamil_sdk.serving.slide_request import SlideRequest
from cmamil_sdk.serving.uploads.uploads import unowned

from .conftest import Details
from .feature_cache.slides import extracted
from .uploading import files

LABELS = ("benign", "in_situ", "invasive")
PREDICT = "/cmamil.v1.SlidePredictionService/PredictSlide"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("taking") / "uploads"


@pytest.fixture(scope="module")
def address(config: ServerConfig, folder: Path) -> Iterator[str]:
    settings = config.model_copy(update={"uploads": folder, "workers": 1})
    with background_server(settings) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_s=60.0) as connected:
        yield connected


@pytest.fixture
def slide(synthetic_slide: Path, tmp_path: Path) -> Path:
    """A slide that the server cannot reach."""
    return Path(shutil.copy(synthetic_slide, tmp_path / "case 17.svs"))


def test_the_answers_are_those_for_the_file(client: Client, slide: Path) -> None:
    expected, facts = client.predict("a.svs"), client.inspect("a.svs")
    uploaded = client.upload_slide(slide)
    found = client.predict(uploaded.uri)
    assert found.slide == "case 17"
    assert replace(found, slide="a", seconds={}) == replace(expected, seconds={})
    inspected = client.inspect(uploaded.uri)
    assert (inspected.slide, inspected.sha256) == ("case 17", uploaded.slide_id)
    assert replace(inspected, slide=facts.slide) == facts
    client.delete_slide(uploaded.uri)
    with pytest.raises(SlideNotFound, match="upload it"):
        client.predict(uploaded.uri)


def test_the_open_inference_protocol_takes_it_as_well(
    client: Client, address: str, slide: Path
) -> None:
    uploaded = client.upload_slide(slide)
    expected = client.predict(uploaded.uri)
    asking = InferenceServerClient(address)

    def infer(uri: str) -> InferResult:
        named = InferInput("slide_uri", [1], "BYTES")
        named.set_data_from_numpy(np.array([uri.encode()], dtype=object))
        return asking.infer("tiny-slide", [named])

    found = infer(uploaded.uri)
    assert found.as_numpy("label")[0].decode() == expected.label
    np.testing.assert_allclose(
        found.as_numpy("probabilities"), list(expected.probabilities.values()), rtol=1e-6
    )
    client.delete_slide(uploaded.uri)
    for uri, code in ((uploaded.uri, "NOT_FOUND"), ("upload:../a.svs", "INVALID_ARGUMENT")):
        with pytest.raises(InferenceServerException) as caught:
            infer(uri)
        assert caught.value.status() == f"StatusCode.{code}"
    asking.close()


def test_owners_share_a_reading_and_not_their_names(tmp_path: Path, config: ServerConfig) -> None:
    (tmp_path / ("ab" * 32 + ".slide")).touch()
    ref = resolve("ab" * 32 + ".slide", [tmp_path])
    mine, theirs = (replace(ref, label=f"{name}.svs") for name in ("mine", "theirs"))
    begun, outcomes = [], [extracted(), SlideCorrupt("upload-abababababab is damaged.")]

    async def compute(ref: SlideRef, *_: object) -> Features:
        begun.append(ref.shown)
        await asyncio.sleep(0.05)
        outcome = outcomes.pop(0)
        if isinstance(outcome, SlideCorrupt):
            raise outcome
        return Features(outcome, {})

    async def ask() -> list[object]:
        finder = FeatureFinder(config, SlideHasher(), None, compute)
        admission = Admission(4, 4)
        request = cast(SlideRequest, SimpleNamespace(bypass_cache=False))
        with admission.enter() as one, admission.enter() as other:
            return await asyncio.gather(
                finder.find("key", mine, request, one, lambda _: None),
                finder.find("key", theirs, request, other, lambda _: None),
                return_exceptions=True,
            )

    found = asyncio.run(ask())
    assert [(each.slide.facts.slide_id, each.slide.bag.slide_id) for each in found] == [  # type: ignore[attr-defined]
        ("mine", "mine"),
        ("theirs", "theirs"),
    ]
    assert list(map(str, asyncio.run(ask()))) == ["mine.svs is damaged.", "theirs.svs is damaged."]
    assert begun == ["upload-abababababab"] * 2 and unowned(mine) == unowned(theirs)


def test_the_expected_hash_is_compared(client: Client, slide: Path) -> None:
    uri = client.upload_slide(slide).uri
    assert client.predict(uri, expected_sha256=sha256_of_file(slide).upper()).label
    with pytest.raises(SlideHashMismatch, match=r"case 17\.svs has sha256"):
        client.predict(uri, expected_sha256="0" * 64)
    client.delete_slide(uri)


def test_what_is_no_slide_is_refused_by_its_label(client: Client, tmp_path: Path) -> None:
    text = tmp_path / "text.svs"
    text.write_text("this is no slide")
    uploaded = client.upload_slide(text)
    with pytest.raises(SlideFormatUnsupported) as caught:
        client.predict(uploaded.uri)
    message = str(caught.value)
    assert message.startswith("text.svs is no slide") and uploaded.slide_id not in message


def test_the_example_of_the_page(
    address: str, slide: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    (example,) = re.findall(r"^## Uploads$.*?^```python\n(.*?)^```", page, re.S | re.M)
    slide.rename(slide.with_name("case-17.svs"))
    monkeypatch.chdir(slide.parent)
    exec(example.replace("127.0.0.1:50051", address), {})
    said = capsys.readouterr().out
    assert "stage='upload'" in said and said.splitlines()[-1].split()[0] in LABELS


@pytest.mark.parametrize("slide_id", ["", "x", "../" + "0" * 61, "A" * 64, "0" * 65])
def test_an_id_that_can_be_none(address: str, raw_call: object, slide_id: str) -> None:
    source = slide_pb2.SlideSource(slide_id=slide_id)
    request = prediction_pb2.PredictSlideRequest(slide=source).SerializeToString()
    found: Details = raw_call(address, PREDICT, request)  # type: ignore[operator]
    assert found[:2] == (found[0].INVALID_ARGUMENT, "FIELD_INVALID")
    assert [problem.field for problem in found[2][1].field_violations] == ["slide.slide_id"]


def test_the_command_line(
    address: str, folder: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> object:
        with pytest.raises(SystemExit) as ended:
            main(["client", *words, "--server", address])
        return ended.value.code

    assert run("upload", str(slide)) == 0
    uri = capsys.readouterr().out.strip()
    assert uri == f"upload:{sha256_of_file(slide)}"
    assert run("inspect", uri) == 0
    assert "case 17" in capsys.readouterr().out
    assert run("delete", uri) == 0
    assert run("delete", uri) == 3
    assert uri.removeprefix("upload:") not in " ".join(files(folder))
