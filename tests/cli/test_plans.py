"""Plans of tensorrt-rtx, which needs no GPU to build them, in ``export``, ``plans`` and ``verify``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

rtx = pytest.importorskip("tensorrt_rtx")

from cmamil_sdk.bundle import Bundle  # noqa: E402
from cmamil_sdk.bundle.verify import read_manifest  # noqa: E402
from cmamil_sdk.cli.app import main  # noqa: E402
from cmamil_sdk.engines.cuda import Cuda  # noqa: E402
from cmamil_sdk.engines.plans import cached_plans, listed_plans  # noqa: E402
from cmamil_sdk.errors import BundleCorrupt  # noqa: E402
from cmamil_sdk.files import sha256_of_file  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_parity_bags")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tensorrt.md").read_text("utf-8")


@pytest.fixture(scope="module")
def terminal(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where the commands of the page that need no GPU have been typed, and what each said."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "run").symlink_to(small_run)
    said = []
    on_build, on_device = re.findall(r"^```bash\n(.*?)^```", PAGE, re.S | re.M)
    assert "--engine tensorrt-rtx" in on_device
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in on_build.splitlines():
            program, *arguments = shlex.split(command)
            assert program == "cmamil"
            with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as end:
                main(arguments)
            assert end.value.code in (None, 0), command
            said.append(out.getvalue())
    return folder, said


@pytest.fixture(scope="module")
def planned(terminal: tuple[Path, list[str]]) -> Path:
    """A bundle exported with plans."""
    return terminal[0] / "bundles" / "mine" / "1"


@pytest.fixture(scope="module")
def cache(terminal: tuple[Path, list[str]]) -> Path:
    """An engine cache with plans of that bundle for another GPU."""
    return terminal[0] / "plans"


@pytest.fixture
def copy(planned: Path, tmp_path: Path) -> Path:
    """A copy whose files are links: replace them, never write into them."""
    for file in planned.rglob("*.*"):
        link = tmp_path / "copy" / file.relative_to(planned)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return tmp_path / "copy"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(data)


def test_a_bundle_holds_its_plans_and_verify_lists_them(
    cmamil: Callable[..., Any], planned: Path, terminal: tuple[Path, list[str]]
) -> None:
    files = read_manifest(planned)[0].files
    on_disk = {f.relative_to(planned).as_posix() for f in planned.rglob("*") if f.is_file()}
    assert set(files) | {"manifest.json"} == on_disk
    answer = cmamil("verify", planned, "--json")
    assert answer.code == 0, answer.err
    told = {plan["graph_sha256"]: plan for plan in answer.document["plans"]}
    for plan in listed_plans(planned):
        key = plan.document.key
        assert key.graph_sha256 == sha256_of_file(planned / f"{plan.path.stem}.onnx")
        assert told[key.graph_sha256]["sha256"] == sha256_of_file(plan.path)
        assert told[key.graph_sha256]["compute_capabilities"] == ["86", "89"]
        assert plan.path.parent.name == key.digest
    assert {plan.path.stem for plan in listed_plans(planned)} == {"encoder", "aggregator"}
    if not Cuda.device_count():
        assert "no device cuda:0" in answer.document["not_here"]["tensorrt-rtx-cuda-fp32"]
    exported, before, _, after = terminal[1]
    for text, plans in ((exported, 1), (before, 1), (after, 2)):
        assert text.count("encoder.plan") == text.count("aggregator.plan") == plans
        assert f"tensorrt-rtx {rtx.__version__}" in text
        assert "86,89" in text


def test_the_bundle_runs_without_tensorrt(planned: Path) -> None:
    bundle = Bundle.load(planned, device="cpu")
    assert bundle.warnings == ()
    assert "tensorrt" not in bundle.engine_label + bundle.aggregator_info.label


def test_the_cache_holds_whole_plans(cache: Path, planned: Path) -> None:
    plans = {plan.path.stem: plan for plan in cached_plans(cache)}
    assert set(plans) == {"encoder", "aggregator"}
    for name, plan in plans.items():
        key = plan.document.key
        assert key.graph_sha256 == sha256_of_file(planned / f"{name}.onnx")
        kept = {file.name for file in (cache / key.digest).iterdir()}
        assert kept == {f"{name}.plan", f"{name}.json", "manifest.json"}
    assert {path.name for path in cache.iterdir()} == {
        plan.document.key.digest for plan in plans.values()
    }
    profile = plans["aggregator"].document.key.profiles[0]
    assert profile == {"features_20x": ((1, 1280), (1024, 1280), (2048, 1280))}


@pytest.mark.parametrize("suffix", ["plan", "json"])
def test_a_changed_byte_of_a_plan_is_refused(copy: Path, suffix: str) -> None:
    (file,) = copy.glob(f"engines/*/aggregator.{suffix}")
    flip(file)
    with pytest.raises(BundleCorrupt, match=rf"aggregator\.{suffix} is not the file"):
        Bundle.load(copy)


def test_a_changed_byte_in_the_cache_is_refused(
    cmamil: Callable[..., Any], planned: Path, cache: Path
) -> None:
    (file,) = cache.glob("*/encoder.plan")
    whole = file.read_bytes()
    flip(file)
    answer = cmamil("verify", planned, "--engine-cache", cache)
    file.write_bytes(whole)
    assert answer.code == 3
    assert "BUNDLE_CORRUPT" in answer.err
    assert "encoder.plan" in answer.err


def test_a_manifest_that_lists_anything_else_is_refused(copy: Path) -> None:
    manifest = copy / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"]["engines/run.sh"] = {"sha256": "0" * 64, "size": 0}
    manifest.unlink()
    manifest.write_text(json.dumps(document))
    with pytest.raises(BundleCorrupt, match=r"must not list 'engines/run\.sh'"):
        read_manifest(copy)


@pytest.mark.parametrize("command", ["verify", "predict"])
def test_a_missing_device_is_an_error_and_not_the_cpu(
    cmamil: Callable[..., Any], planned: Path, cache: Path, synthetic_slide: Path, command: str
) -> None:
    if Cuda.device_count():
        pytest.skip("this machine has a CUDA device")
    where = [planned] if command == "verify" else [synthetic_slide, "--bundle", planned]
    options = ("--engine", "tensorrt-rtx", "--engine-cache", cache)
    answer = cmamil(command, *where, *options)
    assert answer.code == 4
    assert "no device cuda:0" in answer.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--targets", "onnx,caffe"], "caffe is unknown; choose of onnx, triton, tensorrt"),
        (["--targets", "onnx,"], "no list of different names"),
        (["--compute-capability", "89"], "belongs to the target tensorrt-rtx"),
        (["--targets", "tensorrt-rtx", "--compute-capability", "5"], "builds for 75, 80"),
    ],
)
def test_export_refuses_targets_before_it_works(
    cmamil: Callable[..., Any], tmp_path: Path, options: list[str], said: str
) -> None:
    answer = cmamil("export", "--run", tmp_path, "--name", "n", "--out", tmp_path / "o", *options)
    assert answer.code == 2
    assert said in answer.err
    assert not (tmp_path / "o").exists()


def test_plans_are_built_for_tensorrt_alone(
    cmamil: Callable[..., Any], planned: Path, tmp_path: Path
) -> None:
    answer = cmamil("plans", planned, "--engine-cache", tmp_path / "c", "--target", "onnx")
    assert answer.code == 2
    assert "--target onnx is unknown" in answer.err
    assert not (tmp_path / "c").exists()


def test_plans_where_nothing_runs_them_are_refused(
    cmamil: Callable[..., Any], planned: Path, synthetic_slide: Path, tmp_path: Path
) -> None:
    answer = cmamil("predict", synthetic_slide, "--bundle", planned, "--engine-cache", tmp_path)
    assert answer.code == 2
    assert "--engine-cache has no effect with --engine auto" in answer.err
    options = ("--out", tmp_path / "f", "--engine", "tensorrt-rtx")
    answer = cmamil("features", "--slides", synthetic_slide, *options)
    assert answer.code == 2
    assert "bundles alone have" in answer.err
    assert not (tmp_path / "f").exists()
