"""Which reader a worker takes, and that its reasons name no path of the server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cmamil_sdk.serving.messages import Failed, ReadFacts, WorkerSetup
from cmamil_sdk.serving.paths import resolve
from cmamil_sdk.serving.worker import Worker
from cmamil_sdk.slides import ReaderName, SlideFacts

from ..slides.tiffs import set_entry


def ask(root: Path, name: str, reader: ReaderName) -> SlideFacts | Failed:
    setup = WorkerSetup(0, (), reader, 0, 1, 1, 2**40, 32)
    reply = Worker(setup).answer(ReadFacts(resolve(name, [root]), None))
    assert isinstance(reply, SlideFacts | Failed)
    return reply


@pytest.fixture
def root(synthetic_slide: Path, tmp_path: Path) -> Path:
    for name in ("whole.svs", "sparse.svs"):
        shutil.copy(synthetic_slide, tmp_path / name)
    set_entry(tmp_path / "sparse.svs", "TileByteCounts", 0, 0)
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "taken"), [("auto", "direct"), ("direct", "direct"), ("openslide", "openslide")]
)
def test_a_worker_takes_the_reader_of_the_configuration(
    root: Path, asked: ReaderName, taken: str
) -> None:
    facts = ask(root, "whole.svs", asked)
    assert isinstance(facts, SlideFacts)
    assert (facts.reader, facts.path) == (taken, "whole.svs")


def test_the_client_learns_why_a_slide_is_not_read_directly(root: Path) -> None:
    facts = ask(root, "sparse.svs", "auto")
    assert isinstance(facts, SlideFacts)
    assert facts.reader_reason == "not read directly, because level 0 leaves out 1 of 63 tiles"
    refused = ask(root, "sparse.svs", "direct")
    assert isinstance(refused, Failed)
    assert refused.reason == "SLIDE_FORMAT_UNSUPPORTED"
    assert refused.message.startswith("sparse.svs cannot be read directly: level 0 leaves out 1")
