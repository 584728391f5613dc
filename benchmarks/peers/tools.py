"""The tools that are compared, and the environments that they run in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmamil_sdk.errors import DependencyMissing, FieldInvalid

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Tool:
    """One tool as it is run.

    Attributes:
        name: in options, tables and files.
        label: for people.
        driver: module of ``workers/``.
        environment: of :data:`ENVIRONMENTS`; None runs in this package's own.
        batches: batch sizes of which the faster is taken.
        options: of the driver.
        own_tiles: whether it tiles by a tissue mask of its own, so that only times per tile compare.
    """

    name: str
    label: str
    driver: str
    environment: str | None
    batches: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    own_tiles: bool = False


@dataclass(frozen=True)
class PeerEnvironment:
    """Packages pinned in ``requirements/<name>.txt``; of ``bare``, dependencies are not installed."""

    name: str
    bare: tuple[str, ...] = ()


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        PeerEnvironment("lazyslide"),
        # It asks for torch below 2.13, and runs with it all the same.
        PeerEnvironment("tiatoolbox", bare=("tiatoolbox==2.1.3",)),
        PeerEnvironment("slide2vec"),
    )
}

OURS = {
    tool.name: tool
    for tool in (
        Tool(
            name="ours-default",
            label="cmamil-sdk, default precision",
            driver="ours",
            environment=None,
            batches=(24,),
            options={"precision": "auto"},
        ),
        Tool(
            name="ours-fp32",
            label="cmamil-sdk, fp32",
            driver="ours",
            environment=None,
            batches=(24,),
            options={"precision": "fp32"},
        ),
    )
}

# The generated tissue is smoother than real tissue: the published threshold of 15 drops half of it, 7
# keeps it and drops the glass, which scores 4.5.
_RECIPE_THRESHOLD = 7.0

PEERS = {
    tool.name: tool
    for tool in (
        Tool(
            name="cma-mil-recipe",
            label="CMA-MIL's recipe (DeepZoom, JPEG files, torch)",
            driver="cma_mil_recipe",
            environment=None,
            batches=(32, 128),
            options={"threshold": _RECIPE_THRESHOLD},
            own_tiles=True,
        ),
        Tool(
            name="dataloader",
            label="OpenSlide in a DataLoader, torch (as CLAM, TRIDENT)",
            driver="dataloader",
            environment=None,
            batches=(32, 128),
        ),
        Tool(
            name="lazyslide",
            label="lazyslide",
            driver="lazyslide_peer",
            environment="lazyslide",
            batches=(32, 128),
            own_tiles=True,
        ),
        Tool(
            name="tiatoolbox",
            label="TIAToolbox",
            driver="tiatoolbox_peer",
            environment="tiatoolbox",
            batches=(32, 128),
            own_tiles=True,
        ),
        Tool(
            name="slide2vec",
            label="slide2vec",
            driver="slide2vec_peer",
            environment="slide2vec",
            batches=(32, 128),
            own_tiles=True,
        ),
    )
}


def peers_named(names: tuple[str, ...]) -> list[Tool]:
    """The peers called ``names``, in the order of :data:`PEERS`.

    Raises:
        FieldInvalid: there is no such peer, or none was named.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown or not names:
        raise FieldInvalid(
            f"--tools {','.join(names)!r} names no tool that is compared; choose of {', '.join(PEERS)}."
        )
    return [tool for name, tool in PEERS.items() if name in names]


def prepare_environments(folder: Path, *, on_step: Callable[[str], None] | None = None) -> None:
    """Make every environment in ``folder``; what is there already is completed.

    Raises:
        DependencyMissing: a package cannot be installed.
    """
    report = on_step or (lambda _text: None)
    for environment in ENVIRONMENTS.values():
        report(f"{environment.name}: installing into {folder / environment.name}")
        _run([sys.executable, "-m", "venv", str(folder / environment.name)])
        pip = [str(interpreter(folder, environment.name)), "-m", "pip", "install", "--quiet"]
        _run([*pip, "--requirement", str(_HERE / "requirements" / f"{environment.name}.txt")])
        if environment.bare:
            _run([*pip, "--no-deps", *environment.bare])


def interpreter(folder: Path, name: str) -> Path:
    """The Python of an environment made by :func:`prepare_environments`."""
    return folder / name / "bin" / "python"


def python_of(tool: Tool, environments: Path | None) -> Path:
    """The interpreter that ``tool`` runs in.

    Raises:
        DependencyMissing: its environment has not been made.
    """
    if tool.environment is None:
        return Path(sys.executable)
    if environments is None:
        raise DependencyMissing(
            f"{tool.label} runs in an environment of its own; make it with `cmamil bench peers --prepare "
            "DIR`, then give --environments DIR, or leave it out with --tools."
        )
    python = interpreter(environments, tool.environment)
    if not python.exists():
        raise DependencyMissing(
            f"There is no environment of {tool.label} at {python.parent.parent}; make it with "
            f"`cmamil bench peers --prepare {environments}`."
        )
    return python


def worker_command(tool: Tool, python: Path, task: str) -> list[str]:
    """How to start ``tool``'s worker with the JSON ``task``."""
    return [str(python), str(_HERE / "workers" / "worker.py"), tool.driver, task]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise DependencyMissing(
            f"`{' '.join(command)}` left with {done.returncode} ({said}); "
            "check the network, and try again."
        )


__all__ = [
    "ENVIRONMENTS",
    "OURS",
    "PEERS",
    "PeerEnvironment",
    "Tool",
    "interpreter",
    "peers_named",
    "prepare_environments",
    "python_of",
    "worker_command",
]
