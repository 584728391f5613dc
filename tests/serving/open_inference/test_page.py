"""The example of the page on the server runs as it stands, and its tables name what there is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.serving.open_inference.service import OpenInference
from cmamil_sdk.serving.server import Server

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "serving.md").read_text("utf-8")
SECTION = PAGE.partition("## Open Inference Protocol")[2].partition("\n## ")[0]


@pytest.fixture
def workplace(
    server: Server, slides_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with ``features/case-17.h5``, and the slide beneath the server's root."""
    slide = slides_root / "case-17.svs"
    shutil.copy(slides_root / "a.svs", slide)
    (model,) = server._services.models.all()
    manifest, engine = model.bundle.manifest, model.bundle.open_encoder()
    extract_slide(
        slide,
        tmp_path / "features",
        recipe=manifest.recipe,
        encoder=manifest.encoder,
        engine=engine,
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_works_and_its_answers_agree(
    address: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.S | re.M)
    code = example.replace("127.0.0.1:50051", address).replace("demo-", "tiny-")
    names: dict[str, Any] = {}
    exec(compile(code, "the page's example", "exec"), names)
    names["client"].close()
    assert names["features"].shape == (2, 1280)
    whole = names["slide"].as_numpy("probabilities")
    np.testing.assert_allclose(names["bag_answer"][0], whole, rtol=0, atol=1e-4)
    assert capsys.readouterr().out.split()[0] in ("benign", "in_situ", "invasive")


def test_the_page_names_every_method() -> None:
    service = OpenInference(*[None] * 4)  # type: ignore[arg-type]
    methods = list(service.methods())
    assert re.findall(r"^\| `(\w+)` \|", SECTION, re.M)[: len(methods)] == methods
