"""The wheel, in an environment of its own without torch: it helps, predicts, serves and answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import venv
import zipfile
from pathlib import Path

import pytest

from cmamil_sdk import __version__
from cmamil_sdk.bundle import Bundle
from cmamil_sdk.predict import LocalPredictor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
WORKSHOPS = ("training", "export", "serving", "benchmarks")
# Everything that setuptools could mistake for a part of the package is there when it is built.
SOURCES = (
    *("cmamil_sdk", *WORKSHOPS, "protos", "tests", "docs"),
    *("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"),
)
READY_WITHIN_S = 60


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run away from the checkout; what the process says is in the failure."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=bare,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if check and done.returncode != 0:
        pytest.fail(f"{command} left with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools takes what it finds in an old build/ folder."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave)
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out)
    run(*build, source, cwd=out)
    (built,) = out.iterdir()
    return built


def pip_of(binaries: Path) -> tuple[object, ...]:
    """This environment's pip at work in another, which needs none of its own."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    return (*pip, "--python", binaries / "python")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and what serving needs."""
    home = tmp_path_factory.mktemp("away")
    venv.create(home / "env")
    binaries = home / "env" / "bin"
    constraints = home / "constraints.txt"
    shutil.copy(ROOT / "constraints.txt", constraints)
    install = (*pip_of(binaries), "install", "--quiet", "--no-compile")
    run(*install, "--constraint", constraints, f"{wheel}[cpu,serve]", cwd=home)
    return binaries


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    assert wheel.name == f"cmamil_sdk-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"cmamil_sdk-{__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert {name.partition("/")[0] for name in names} == {"cmamil_sdk", info}
    wanted = {
        path.relative_to(ROOT / "cmamil_sdk").as_posix()
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in (ROOT / "cmamil_sdk").rglob(pattern)
    }
    wanted |= {
        f"{name}/{path.relative_to(ROOT / name).as_posix()}"
        for name in WORKSHOPS
        for pattern in ("*.py", "requirements/*.txt")
        for path in (ROOT / name).rglob(pattern)
    }
    held = {name.removeprefix("cmamil_sdk/") for name in names if name.startswith("cmamil_sdk/")}
    assert held == wanted
    assert {"py.typed", "_proto/cmamil/v1/prediction_pb2.py"} <= held
    assert {f"{name}/__init__.py" for name in WORKSHOPS} <= held
    assert f"{info}/licenses/LICENSE" in names
    assert "cmamil = cmamil_sdk.cli:main" in scripts
    assert re.search("^License(-Expression)?: Apache-2.0$", metadata, re.MULTILINE)
    assert "Requires-Python: >=3.11" in metadata
    # The page a registry shows is the README.
    assert "# cmamil-sdk" in metadata


def test_the_environment_is_whole_and_without_torch(environment: Path) -> None:
    tell = (
        "import importlib.util as u, json, sys, cmamil_sdk\n"
        "found = {n: u.find_spec(n) is not None for n in sys.argv[1:]}\n"
        "print(json.dumps([found, cmamil_sdk.__file__, cmamil_sdk.__version__]))"
    )
    absent = ("torch", "lightning", "onnx", "pytest", "protos", "tests", *WORKSHOPS)
    present = [f"cmamil_sdk.{name}" for name in WORKSHOPS]
    told = run(environment / "python", "-c", tell, *absent, *present, cwd=environment.parent)
    found, where, version = json.loads(told.stdout)
    assert found == dict.fromkeys(absent, False) | dict.fromkeys(present, True)
    assert Path(where).is_relative_to(environment.parent)
    assert version == __version__
    run(*pip_of(environment), "check", cwd=environment.parent)


def test_help_and_what_needs_torch(environment: Path, tmp_path: Path) -> None:
    shown = run(environment / "cmamil", "--help", cwd=tmp_path).stdout
    for command in ("features", "train", "export", "predict", "serve", "client", "demo"):
        assert f" {command} " in shown
    assert (
        run(environment / "cmamil", "--version", cwd=tmp_path).stdout == f"cmamil {__version__}\n"
    )
    for arguments in (
        ("train", "--features", tmp_path, "--labels", tmp_path / "labels.csv"),
        ("export", "--run", tmp_path, "--name", "a", "--out", tmp_path / "bundles"),
    ):
        refused = run(environment / "cmamil", *arguments, cwd=tmp_path, check=False)
        assert refused.returncode == 4, refused.stderr
        assert refused.stderr.startswith("cmamil: DEPENDENCY_MISSING: ")
        assert "Traceback" not in refused.stderr


def local_answer(bundle: Path, slide: Path) -> dict[str, float]:
    predictor = LocalPredictor(Bundle.load(bundle, device="cpu"), workers=1)
    found = predictor.predict(slide).probabilities
    predictor.close()
    return found


def test_it_predicts_as_the_checkout_does(
    environment: Path, tiny_bundle: Path, synthetic_slide: Path, tmp_path: Path
) -> None:
    command = (environment / "cmamil", "predict", synthetic_slide, "--bundle", tiny_bundle)
    told = run(*command, "--json", cwd=tmp_path)
    document = json.loads(told.stdout)
    assert document["failed"] == []
    (found,) = document["predictions"]
    assert found["tiles"] == {"5x": 4, "10x": 12, "20x": 36}
    local = local_answer(tiny_bundle, synthetic_slide)
    assert found["probabilities"] == pytest.approx(local, abs=1e-5)


def test_it_serves_answers_and_stops(
    environment: Path, tiny_bundle: Path, synthetic_slide: Path, tmp_path: Path
) -> None:
    cmamil = environment / "cmamil"
    serve = (cmamil, "serve", "--port", "0", "--workers", "1", "--bundles", tiny_bundle)
    program = subprocess.Popen(
        [str(part) for part in (*serve, "--slides-root", synthetic_slide.parent)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
    )
    try:
        watchdog = threading.Timer(READY_WITHIN_S, program.kill)
        watchdog.start()
        assert program.stdout is not None
        line = program.stdout.readline()
        watchdog.cancel()
        assert line.startswith("serving on 127.0.0.1:"), (tmp_path / "log").read_text()
        server = ("--server", line.split()[-1])
        assert run(cmamil, "client", "health", *server, cwd=tmp_path).stdout == "SERVING\n"
        ask = (cmamil, "client", "predict", synthetic_slide.name, *server, "--json")
        answer = json.loads(run(*ask, cwd=tmp_path).stdout)
        local = local_answer(tiny_bundle, synthetic_slide)
        assert answer["probabilities"] == pytest.approx(local, abs=1e-5)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=40) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        program.kill()
        program.wait()
