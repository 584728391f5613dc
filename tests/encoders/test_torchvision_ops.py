"""torchvision works beside the torch that is installed, whichever it was built for."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torchvision.version")

from cmamil_sdk.encoders import torchvision_ops


@pytest.mark.parametrize(
    "statement",
    [
        "from cmamil_sdk.training.lightning_import import L",
        "from cmamil_sdk.training.torchmetrics_import import tm",
        "from cmamil_sdk.encoders.shufflenet import build",
    ],
)
def test_a_fresh_interpreter_imports(statement: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", statement], check=True)


def test_its_models_run() -> None:
    import torch

    torchvision_ops.import_torchvision()
    torchvision_ops.import_torchvision()
    from torchvision.models import resnet18

    with torch.inference_mode():
        assert resnet18().eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_another_fault_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("cmamil_sdk.encoders.torchvision_ops.importlib.import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_ops.import_torchvision()
