"""``cmamil serve`` as a process of its own, and ``cmamil client`` asking it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.client import Client
from cmamil_sdk.features.file import read_feature_file

READY_WITHIN_S = 60
NOBODY = "127.0.0.1:1"
EVENTS = ["starting", "listening", "worker_ready", "model", "model", "serving"]


@pytest.fixture(scope="module")
def address(
    tiny_bundle: Path, small_slide: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A served folder with small.svs and text.svs; SIGTERM must end the server cleanly."""
    root = tmp_path_factory.mktemp("served")
    shutil.copy(small_slide, root / "small.svs")
    (root / "text.svs").write_text("this is no slide")
    program = subprocess.Popen(
        [
            *(sys.executable, "-m", "cmamil_sdk.cli", "serve", "--port", "0", "--workers", "1"),
            *("--bundles", str(tiny_bundle), "--slides_root", str(root)),
            *("--log-format", "json", "--log-level", "debug", "--reflection"),
            *("--jobs-file", str(root.with_name("jobs.sqlite"))),
            *("--cache", str(root.with_name("cache")), "--uploads", str(root.with_name("uploads"))),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Standard error is read on the way, so that a full pipe cannot stop the server.
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(program.stderr or ()), daemon=True)
    reader.start()
    watchdog = threading.Timer(READY_WITHIN_S, program.kill)
    watchdog.start()
    assert program.stdout is not None
    ready = re.fullmatch(r"serving on (127\.0\.0\.1:\d+)\n", program.stdout.readline())
    watchdog.cancel()
    if ready is None:
        program.kill()
        reader.join(timeout=5)
        pytest.fail("the server did not start: " + "".join(log))
    try:
        yield ready.group(1)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0
        reader.join(timeout=5)
        assert "Traceback" not in "".join(log)
        events = [json.loads(line)["event"] for line in log]
        end = ["draining", "drained", "stopped"]
        assert [event for event in events if event in (*EVENTS, *end)] == [*EVENTS, *end]
        assert events.count("call") > 10
    finally:
        program.kill()


def test_health(cmamil: Callable[..., Any], address: str) -> None:
    answer = cmamil("client", "health", "--server", address)
    assert (answer.code, answer.out) == (0, "SERVING\n")
    document = cmamil("client", "health", "--server", address, "--json").document
    assert document == {"server": address, "status": "SERVING"}


def test_models_and_info(cmamil: Callable[..., Any], address: str) -> None:
    (model,) = cmamil("client", "models", "--server", address, "--json").document
    assert model["name"] == "models/tiny/versions/1"
    assert model["labels"] == ["benign", "in_situ", "invasive"]
    assert "tiny" in cmamil("client", "models", "--server", address).out
    facts = cmamil("client", "info", "--server", address, "--json").document
    assert len(facts["workers"]) == 1
    shown = cmamil("client", "info", "--server", address).out
    ((encoder, aggregator),) = facts["engines"].values()
    assert facts["reasons"]["models/tiny/versions/1"] in shown
    assert {"grpcio", "protobuf"} <= facts["packages"].keys()
    assert f"models/tiny/versions/1*: encoder on {encoder}, aggregator on {aggregator}" in shown
    assert "0 slides at work, 0 waiting" in shown
    limits = facts["limits"]
    assert (limits["max_message_bytes"], limits["max_call_tiles"]) == (16 * 2**20, 64)
    assert limits["cache"] == {"max_bytes": 10 * 2**30}
    assert limits["jobs"] == {"max_active": 2, "max_waiting": 1000, "keep_s": 604_800}
    assert limits["uploads"]["max_slide_bytes"] == 8 * 2**30
    assert "cache on, jobs on, uploads on" in shown


def test_stats_say_what_was_done(cmamil: Callable[..., Any], address: str) -> None:
    assert cmamil("client", "predict", "small.svs", "--server", address).code == 0
    found = cmamil("client", "stats", "--server", address, "--json").document
    done = {
        (call["rpc"].rpartition("/")[2], call["model"], call["code"]) for call in found["calls"]
    }
    assert ("StreamPredictSlide", "tiny/1", "OK") in done
    assert found["stages"]["encode"]["count"] >= 1
    assert found["tiles_ok"] > 0 and found["worker_restarts"] == 0
    shown = cmamil("client", "stats", "--server", address).out
    assert "StreamPredictSlide" in shown and "0 worker restarts" in shown
    assert found["cache"]["misses"] == 1 and f"{found['cache']['hits']} found, 1 not" in shown
    assert set(found["jobs"]) == {"pending", "running", "succeeded", "failed", "cancelled"}
    assert "uploads: 0 slides of 0 bytes" in shown


def test_features_are_written_as_a_local_file(
    cmamil: Callable[..., Any], address: str, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "features"
    command = ("client", "features", "small.svs", "--server", address, "--out", out)
    told = cmamil(*command, "--json")
    assert told.code == 0 and told.document["tiles"] == {"5x": 1, "10x": 4, "20x": 16}
    bag, provenance = read_feature_file(out / "small.h5")
    with Client(address, timeout_s=60.0) as client:
        expected, origin = client.extract_features("small.svs")
    for scale, rows in expected.features.items():
        np.testing.assert_array_equal(bag.features[scale], rows)
    undated = {"created": ""}
    assert provenance.model_copy(update=undated) == origin.model_copy(update=undated)
    again = cmamil(*command)
    assert again.code == 0 and "small.h5: in place of an older file" in again.err
    assert [file.name for file in out.iterdir()] == ["small.h5"]
    (tmp_path / "file").touch()
    for bad, reason in (
        (("none.svs", "--out", out), "SLIDE_NOT_FOUND"),
        (("small.svs", "--out", tmp_path / "file"), "OUTPUT_UNWRITABLE"),
    ):
        answer = cmamil("client", "features", *bad, "--server", address)
        assert answer.code != 0 and f"cmamil: {reason}: " in answer.err


def test_prediction_is_the_local_one(
    cmamil: Callable[..., Any], address: str, tiny_bundle: Path, small_slide: Path
) -> None:
    served = cmamil("client", "predict", "small.svs", "--server", address, "--json").document
    (local,) = cmamil("predict", small_slide, "--bundle", tiny_bundle, "--json").document[
        "predictions"
    ]
    assert set(served) == set(local)
    for name in (
        "slide",
        "label",
        "tiles",
        "quality",
        "mpp",
        "mpp_source",
        "bundle",
        "bundle_sha256",
    ):
        assert served[name] == local[name], name
    assert served["probabilities"] == pytest.approx(local["probabilities"], abs=1e-5)
    table = cmamil("client", "predict", "small.svs", "--server", address)
    assert table.code == 0
    assert local["label"] in table.out


def test_jobs(cmamil: Callable[..., Any], address: str) -> None:
    def ask(*words: str) -> Any:
        return cmamil("client", "jobs", *words, "--server", address)

    good, bad = (ask("create", uri).out.strip() for uri in ("small.svs", "none.svs"))
    watched = ask("watch", good)
    assert watched.code == 0 and watched.out.startswith(f"{good} of small.svs: SUCCEEDED\n")
    served = cmamil("client", "predict", "small.svs", "--server", address, "--json").document
    kept = ask("watch", good, "--json").document["prediction"]
    assert kept | {"seconds": None} == served | {"seconds": None}
    failed = ask("watch", bad, "--json")
    assert failed.code == 3 and failed.document["error"]["reason"] == "SLIDE_NOT_FOUND"
    assert failed.err.startswith("cmamil: SLIDE_NOT_FOUND: ")
    assert ask("show", bad).out.startswith(f"{bad} of none.svs: FAILED, SLIDE_NOT_FOUND: ")
    assert [job["name"] for job in ask("list", "--json").document] == [bad, good]
    listed = ask("list", "--state", "failed").out
    assert bad in listed and good not in listed
    cancelled = ask("cancel", bad)
    assert cancelled.code == 4 and cancelled.err.startswith("cmamil: JOB_FINISHED: ")
    assert (ask("delete", bad).code, ask("show", bad).code) == (0, 4)
    assert ask("list", "--state", "done").code == 2


def test_inspection_is_the_local_one(
    cmamil: Callable[..., Any], address: str, small_slide: Path
) -> None:
    served = cmamil("client", "inspect", "small.svs", "--server", address, "--json").document
    local = cmamil("inspect", small_slide, "--json").document
    assert set(served) == set(local)
    for name in ("sha256", "width", "height", "mpp", "levels", "tiles", "vendor"):
        assert served[name] == local[name], name
    assert "896 x 896 px" in cmamil("client", "inspect", "small.svs", "--server", address).out


@pytest.mark.parametrize("command", ["predict", "inspect"])
@pytest.mark.parametrize(
    ("uri", "code", "reason"),
    [
        ("none.svs", 3, "SLIDE_NOT_FOUND"),
        ("text.svs", 3, "SLIDE_FORMAT_UNSUPPORTED"),
        ("../small.svs", 3, "SLIDE_URI_FORBIDDEN"),
        ("/etc/passwd", 3, "SLIDE_URI_FORBIDDEN"),
        ("https://example.org/a.svs", 3, "SLIDE_URI_FORBIDDEN"),
    ],
)
def test_what_the_server_refuses_is_typed_here(
    cmamil: Callable[..., Any], address: str, command: str, uri: str, code: int, reason: str
) -> None:
    answer = cmamil("client", command, uri, "--server", address, "--json")
    assert answer.code == code
    assert answer.err.startswith(f"cmamil: {reason}: ")
    assert answer.out == ""


def test_no_server_there(cmamil: Callable[..., Any]) -> None:
    for arguments in (["health"], ["models"], ["predict", "a.svs"]):
        answer = cmamil("client", *arguments, "--server", NOBODY)
        assert answer.code == 4
        assert "Traceback" not in answer.err
    assert "SERVER_UNREACHABLE" in answer.err


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--port", "70000"), 2),
        (("--bundles", "/nowhere"), 3),
        (("--slides-root", "/nowhere"), 2),
        (("--device", "tpu"), 2),
    ],
)
def test_a_server_that_cannot_start_says_why(
    cmamil: Callable[..., Any],
    tiny_bundle: Path,
    tmp_path: Path,
    options: tuple[str, str],
    code: int,
) -> None:
    given = {"--bundles": tiny_bundle, "--slides-root": tmp_path, "--port": "0"} | dict([options])
    answer = cmamil("serve", *(str(part) for pair in given.items() for part in pair))
    assert answer.code == code
    assert "Traceback" not in answer.err
