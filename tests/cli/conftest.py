"""The program in this process, and small slides, good and bad, to run it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.cli.app import main
from cmamil_sdk.synthetic import write_svs


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


@pytest.fixture
def cmamil(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run ``cmamil`` with arguments, as the console script does."""

    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        code = end.value.code
        return Answer(0 if code is None else int(code), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 4 x 4 tiles at 20x, all tissue: 16, 4 and 1 tiles."""
    rng = np.random.default_rng(1)
    pixels = np.array([205, 130, 175]) + rng.normal(0, 18, (896, 896, 1))
    path = tmp_path_factory.mktemp("small") / "small.svs"
    write_svs(np.clip(pixels, 0, 255).astype(np.uint8), path, mpp=0.5, objective_power=20.0)
    return path


@pytest.fixture
def not_a_slide(tmp_path: Path) -> Path:
    """A text file with a slide's name."""
    path = tmp_path / "broken.svs"
    path.write_text("this is no slide\n")
    return path
