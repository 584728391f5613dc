"""Start, readiness, drain, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.client import Client
from cmamil_sdk.engines.choose import choose_engine
from cmamil_sdk.errors import (
    BundleCorrupt,
    BundleUnsupported,
    ConfigInvalid,
    ModelNotReady,
    ServerDraining,
    ServerUnreachable,
)
from cmamil_sdk.serving import server as server_module
from cmamil_sdk.serving import trial
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server, background_server

from .programs import children, running, start_program
from .waiting import wait_until


def test_health_is_not_serving_until_the_models_are_there(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load = threading.Event()
    load = server_module.load_models

    def slow_load(*given: Any) -> object:
        may_load.wait(30)
        return load(*given)

    monkeypatch.setattr(server_module, "load_models", slow_load)

    async def scenario() -> None:
        server = Server(config)
        starting = asyncio.create_task(server.start())
        while server.port is None:
            await asyncio.sleep(0.01)
        with Client(f"127.0.0.1:{server.port}") as client:
            assert await asyncio.to_thread(client.health) == "NOT_SERVING"
            with pytest.raises(ModelNotReady):
                await asyncio.to_thread(client.predict, "a.svs", timeout_s=1.0)
            info = await asyncio.to_thread(client.server_info)
            assert info.engines == {} and info.workers == ()
            may_load.set()
            await starting
            assert await asyncio.to_thread(client.health) == "SERVING"
            info = await asyncio.to_thread(client.server_info)
            (engines,) = info.engines.values()
            choice = choose_engine("auto", "auto")
            assert engines[0].startswith(f"{choice.engine}-{choice.device}-")
            in_bf16 = engines[0].endswith("bf16")
            assert engines[1] == ("openvino-cpu-bf16" if in_bf16 else "onnxruntime-cpu-fp32")
            assert len(info.workers) == 2 and info.packages["onnxruntime"]
        await server.stop()

    asyncio.run(scenario())


@pytest.mark.usefixtures("one_attempt")
def test_sigterm_drains(config: ServerConfig, slides_root: Path, big_slide: Path) -> None:
    shutil.copy(big_slide, slides_root / "drained.svs")
    program, port = start_program(config.model_copy(update={"grace_s": 60.0}))
    workers = children(program.pid)
    assert len(workers) == 2
    with Client(f"127.0.0.1:{port}", timeout_s=60.0) as client, ThreadPoolExecutor(1) as threads:
        begun = threading.Event()
        work = threads.submit(client.predict, "drained.svs", on_progress=lambda _: begun.set())
        assert begun.wait(10)
        program.send_signal(signal.SIGTERM)
        wait_until(lambda: client.health() == "NOT_SERVING")
        with pytest.raises(ServerDraining):
            client.predict("a.svs")
        assert work.result().label
    assert program.wait(timeout=10) == 0
    assert not any(running(pid) for pid in workers)


def test_a_second_sigterm_stops_at_once(
    config: ServerConfig, slides_root: Path, big_slide: Path
) -> None:
    shutil.copy(big_slide, slides_root / "hurried.svs")
    program, port = start_program(config.model_copy(update={"grace_s": 60.0}))
    with Client(f"127.0.0.1:{port}", timeout_s=60.0) as client, ThreadPoolExecutor(1) as threads:
        begun = threading.Event()
        work = threads.submit(client.predict, "hurried.svs", on_progress=lambda _: begun.set())
        assert begun.wait(10)
        program.send_signal(signal.SIGTERM)
        wait_until(lambda: client.health() == "NOT_SERVING")
        stopped_at = time.monotonic()
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=10) == 0
        assert time.monotonic() - stopped_at < 3.0
        with pytest.raises((ServerDraining, ServerUnreachable)):
            work.result()


def test_no_worker_outlives_a_killed_server(config: ServerConfig) -> None:
    program, _ = start_program(config)
    workers = children(program.pid)
    assert len(workers) == 2 and all(running(pid) for pid in workers)
    program.kill()
    program.wait()
    wait_until(lambda: not any(running(pid) for pid in workers), timeout_s=3.0)


def test_stopping_leaves_no_process_and_no_port(config: ServerConfig) -> None:
    before = set(children(os.getpid()))
    with background_server(config) as server:
        port = server.port
        assert len(set(children(os.getpid())) - before) == 2
        with (
            pytest.raises(ConfigInvalid, match="cannot listen"),
            background_server(config.model_copy(update={"port": port})),
        ):
            pass
    assert set(children(os.getpid())) <= before
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(ServerUnreachable):
        client.health()


def test_a_corrupt_bundle_is_refused_and_nothing_runs(
    config: ServerConfig, tiny_bundle: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "1"
    shutil.copytree(tiny_bundle, broken)
    graph = broken / "aggregator.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    before = set(children(os.getpid()))
    with (
        pytest.raises(BundleCorrupt),
        background_server(config.model_copy(update={"bundles": (broken,)})),
    ):
        pass
    assert set(children(os.getpid())) <= before


def test_an_encoder_changed_after_verification_is_refused(
    config: ServerConfig, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "late" / "1"
    shutil.copytree(tiny_bundle, bundle)
    load = server_module.load_models

    def load_then_change(*given: Any) -> object:
        models = load(*given)
        with (bundle / "encoder.onnx").open("ab") as file:
            file.write(b"x")
        return models

    monkeypatch.setattr(server_module, "load_models", load_then_change)
    with (
        pytest.raises(BundleCorrupt, match=r"encoder\.onnx is not the file"),
        background_server(config.model_copy(update={"bundles": (bundle,)})),
    ):
        pass


def test_a_bundle_that_crashes_the_runtime_is_named(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = (sys.executable, "-S", "-c", "import os; os.abort()")
    monkeypatch.setattr(trial, "TRIAL_COMMAND", crash)
    with (
        pytest.raises(BundleUnsupported, match=r"tiny/1 ended .* by SIGABRT"),
        background_server(config),
    ):
        pass


def test_the_same_bundle_twice_is_refused(config: ServerConfig, tiny_bundle: Path) -> None:
    twice = config.model_copy(update={"bundles": (tiny_bundle, tiny_bundle)})
    with pytest.raises(ConfigInvalid, match="both models/tiny"), background_server(twice):
        pass


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"wokers": 2}, "wokers"),
        ({"port": 70_000}, "port"),
        ({"workers": 0}, "workers"),
        ({"bundles": ()}, "bundles"),
        ({"device": "tpu"}, "device"),
        ({"default_deadline_s": 9e9}, "default_deadline_s"),
        ({"max_request_bytes": 2**30}, "max_request_bytes"),
        ({"slides_roots": ("/no/such/folder",)}, "/no/such/folder"),
    ],
)
def test_wrong_settings_are_named(
    config: ServerConfig, change: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigInvalid, match=named):
        ServerConfig.parse({**config.model_dump(), **change})


def with_recipe(bundle: Path, folder: Path, change: dict[str, Any]) -> Path:
    """A copy of a bundle that reads other tiles."""
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for part, values in change.items():
        manifest["recipe"][part] = manifest["recipe"].get(part, {}) | values
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_a_bundle_that_needs_mask_files_is_refused(
    config: ServerConfig, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = with_recipe(tiny_bundle, tmp_path, {"tissue": {"method": "mask"}})
    refused = background_server(config.model_copy(update={"bundles": (bundle,)}))
    with pytest.raises(BundleUnsupported, match="cmamil predict --tissue-masks"), refused:
        pass


def test_a_server_reads_the_tiles_that_the_recipe_says(
    config: ServerConfig, tiny_bundle: Path, tmp_path: Path
) -> None:
    change = {"tissue": {"pens": "exclude", "fill_holes_um2": 900.0}, "sample": {"max_tiles": 7}}
    bundle = with_recipe(tiny_bundle, tmp_path, change)
    with (
        background_server(config.model_copy(update={"bundles": (bundle,), "workers": 1})) as server,
        Client(f"127.0.0.1:{server.port}", timeout_s=60.0) as client,
    ):
        assert client.predict("a.svs").tiles["20x"] == 7
