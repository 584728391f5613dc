"""The comparison with other tools: turns, pairs, resuming, and the real workers on a small slide."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.benchmarks.peers import measure, report, tools
from cmamil_sdk.benchmarks.peers.child import Child
from cmamil_sdk.benchmarks.peers.measure import ROUNDS_FILE, PeersBench, measure_peers
from cmamil_sdk.benchmarks.peers.report import csv_rows, judged, write_peers
from cmamil_sdk.benchmarks.peers.rounds import (
    Record,
    better_batch,
    order_of_round,
    paired,
    read_records,
    summary,
    write_records,
)
from cmamil_sdk.benchmarks.peers.tools import (
    OURS,
    PEERS,
    Tool,
    peers_named,
    prepare_environments,
    python_of,
)
from cmamil_sdk.benchmarks.workshop import Workshop
from cmamil_sdk.errors import DependencyMissing, FieldInvalid, OutputExists, SlideNotFound

# A worker that needs nothing: it counts its runs in a file and breaks when told to.
FAKE = """
import json, sys, time
from pathlib import Path
name, broken, counter = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
engine = {"engine": "x-cpu-fp32"} if name == "ours" else {}
print(json.dumps({"ready": True, "versions": {"fake": name} | engine}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if broken.exists() and name == broken.read_text():
        sys.exit("it broke")
    held = bytearray(30_000_000)
    until = time.process_time() + 0.06
    while time.process_time() < until:
        pass
    with counter.open("a") as file:
        file.write(f"{name} {request['batch']} {Path(request['slide']).name}\\n")
    if request["keep"]:
        import numpy as np
        tiles = np.arange(4)
        features = np.eye(4, 6) + (0 if name.startswith("ours") else 0.01)
        np.savez(request["keep"], coords=np.stack([tiles, tiles], 1) * 224, features=features)
    seconds = {"ours": 1.0, "a": 4.0, "b": 2.0 + 1.0 * (request["batch"] == 128), "c": 8.0}[name]
    print(json.dumps({"tiles": 4, "wall_s": seconds}), flush=True)
"""


def tool(name: str, **options: Any) -> Tool:
    return Tool(name=name, label=name, driver=name, environment=None, batches=(32,), **options)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three peers and one form of ours, all played by one script; the folder it keeps its files in."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(
        measure,
        "worker_command",
        lambda tool, python, _task: [
            *(str(python), str(script), tool.driver),
            *(str(tmp_path / "broken"), str(tmp_path / "runs")),
        ],
    )
    ours = {name: replace(tool(name), driver="ours") for name in ("ours-default", "ours")}
    peers = {name: tool(name) for name in "abc"}
    peers["b"] = replace(peers["b"], batches=(32, 128))
    monkeypatch.setattr(tools, "PEERS", peers)
    for module in (measure, report):
        monkeypatch.setattr(module, "OURS", ours)
    monkeypatch.setattr(measure, "open_slide", lambda *_args, **_options: contextlib.nullcontext())
    for method in ("slide", "small_slide", "weights"):
        path = tmp_path / f"{method}.bin"
        path.write_bytes(b"x")
        monkeypatch.setattr(Workshop, method, lambda _self, path=path: path)
    return tmp_path


def bench(folder: Path, **options: Any) -> PeersBench:
    (folder / "out").mkdir(exist_ok=True)
    return PeersBench(**{"out": folder / "out", "tools": ("a", "b", "c"), "rounds": 5, **options})


def test_in_a_round_every_peer_stands_beside_our_runs() -> None:
    ours, peers = [tool("o1"), tool("o2")], [tool(name) for name in "abcde"]
    for number in range(1, 8):
        order = order_of_round(number, ours, peers)
        names = [each.name for _, each in order]
        assert sorted(name for name in names if name in "abcde") == list("abcde")
        for place, each in order:
            if each in peers:
                at = names.index(each.name)
                beside = set(names[max(at - 1, 0) : at + 2])
                assert beside & {"o1", "o2"}
                assert {t.name for p, t in order if p == place} >= {"o1", "o2", each.name}
    firsts = {order_of_round(number, ours, peers)[0][1].name for number in range(1, 6)}
    assert firsts == set("abcde"), "another goes first each time"
    assert order_of_round(1, ours, peers)[1][1] != order_of_round(2, ours, peers)[1][1]


def test_pairs_are_made_within_a_place() -> None:
    def record(number: int, place: int, name: str, wall_s: float, batch: int = 32) -> Record:
        return Record(number, place, name, batch, 10, wall_s, 2 * wall_s, 100.0)

    records = [
        record(0, 0, "a", 9.0, 32),
        record(0, 0, "a", 8.0, 128),
        *(record(1, 0, "a", 40.0), record(1, 0, "ours", 10.0), record(1, 1, "ours", 1.0)),
        *(record(2, 0, "ours", 5.0), record(2, 1, "a", 90.0), record(2, 1, "ours", 10.0)),
    ]
    assert paired(records, "ours", "a").ratios == [4.0, 9.0]
    assert better_batch(records, "a") == 128
    row = summary(records, tool("a"))
    assert (row["runs"], row["tiles_per_s"]) == (2, pytest.approx(1 / 6.5))
    assert row["cpu_ms_per_tile"] == pytest.approx(13_000)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [Record(1, 0, "a", 32, 10, 0.1 + 0.2, 1e-9, 1234.5)]
    write_records(tmp_path / "r.csv", records)
    assert read_records(tmp_path / "r.csv") == records
    (tmp_path / "r.csv").write_text("round,place\n1,x\n")
    with pytest.raises(FieldInvalid, match="no table of rounds"):
        read_records(tmp_path / "r.csv")


def test_a_whole_measurement(fakes: Path) -> None:
    document = measure_peers(bench(fakes))
    ratios = {row["peer"]: row["ratio"] for row in document["ratios"]}
    assert ratios == {"a": 4.0, "b": 2.0, "c": 8.0}
    assert [row["tool"] for row in document["tools"]] == ["ours", "a", "b", "c"]
    assert document["tools"][2]["batch"] == 32, "the faster of two"
    assert all(row["runs"] == 5 for row in document["tools"][1:])
    assert document["tools"][0]["runs"] == 10, "beside each two of three peers"
    assert document["tools"][0]["tiles_per_s"] == 4.0
    assert all(row["cpu_ms_per_tile"] >= 5 for row in document["tools"]), (
        "60 ms for 4 tiles, counted in steps of 10"
    )
    assert document["tools"][1]["versions"] == {"fake": "a"}
    assert [row["shared"] for row in document["agreement"]] == [4, 4, 4]
    assert document["agreement"][0]["cosine_mean"] > 0.99
    write_peers(fakes, document)
    assert (fakes / "peers.png").stat().st_size > 5000
    assert json.loads((fakes / "peers.json").read_text())["targets"] == judged(document)
    header, rows = csv_rows(document)
    assert document["tools"][0]["precision"] == "fp32"
    judgements = [(row["must"], row["value"]) for row in judged(document)]
    assert judgements[:2] == [(2.2, 2.0), (4.0, 2.0)], "where there is no bf16, fp32 is the default"
    assert rows[1][header.index("ours_ratio")] == 4.0
    assert rows[0][header.index("ours_ratio")] == ""


def test_a_broken_tool_loses_no_round_and_resume_goes_on(fakes: Path) -> None:
    runs = fakes / "runs"

    def break_in_round_three(what: str, _done: int, _total: int) -> None:
        if what.startswith("round 3"):
            (fakes / "broken").write_text("c")

    with pytest.raises(DependencyMissing, match="it broke"):
        measure_peers(bench(fakes), on_run=break_in_round_three)
    kept = read_records(fakes / "out" / ROUNDS_FILE)
    assert max(record.round for record in kept) == 2, "only whole rounds are kept"
    (fakes / "broken").unlink()
    with pytest.raises(OutputExists, match="--resume"):
        measure_peers(bench(fakes))
    with pytest.raises(FieldInvalid, match="other tools"):
        measure_peers(bench(fakes, tools=("a", "b"), resume=True))
    runs.unlink()
    document = measure_peers(bench(fakes, resume=True))
    assert read_records(fakes / "out" / ROUNDS_FILE)[: len(kept)] == kept
    assert [row["runs"] for row in document["tools"]] == [10, 5, 5, 5]
    again = [line.split() for line in runs.read_text().splitlines()]
    assert sum(line == ["b", "128", "slide.bin"] for line in again) == 0, "sizes are not tried anew"
    assert sum(line == ["a", "32", "slide.bin"] for line in again) == 3


def test_a_child_counts_its_children_too(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, subprocess, sys
            print(json.dumps({"ready": True, "versions": {}}), flush=True)
            burn = "import time; held = bytearray(80_000_000)\\n"
            burn += "while time.process_time() < 1.2: pass"
            for line in sys.stdin:
                subprocess.run([sys.executable, "-c", burn], check=True)
                print(json.dumps({"tiles": 1, "wall_s": 1.0}), flush=True)
            """
        )
    )
    with Child([sys.executable, str(script)], tmp_path / "log") as child:
        run = child.run(tmp_path, 1)
    assert run.cpu_s >= 1.1
    assert run.peak_mb > 80


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(DependencyMissing, match="no such driver"):
        Child([sys.executable, "-c", "import sys; sys.exit('no such driver')"], tmp_path / "log")


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldInvalid, match="at least 5"):
        PeersBench(out=tmp_path, rounds=4)
    with pytest.raises(FieldInvalid, match="choose of cma-mil-recipe"):
        peers_named(("other",))
    peer = PEERS["lazyslide"]
    with pytest.raises(DependencyMissing, match="--prepare DIR"):
        python_of(peer, None)
    with pytest.raises(DependencyMissing, match="no environment of lazyslide"):
        python_of(peer, tmp_path)


def test_a_missing_slide_is_told_before_anything_starts(tmp_path: Path) -> None:
    bench = PeersBench(out=tmp_path, tools=("dataloader",), slide=tmp_path / "none.svs")
    with pytest.raises(SlideNotFound):
        measure_peers(bench)


def test_environments_are_made_from_pinned_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(tools, "_run", commands.append)
    prepare_environments(tmp_path)
    for name in ("lazyslide", "tiatoolbox", "slide2vec"):
        (install,) = [c for c in commands if "--requirement" in c and str(tmp_path / name) in c[0]]
        pinned = Path(install[-1]).read_text().splitlines()
        assert all("==" in line for line in pinned)
        assert "torch==2.13.0" in pinned
    assert any("--no-deps" in c and c[-1] == "tiatoolbox==2.1.3" for c in commands)


@pytest.mark.long
def test_our_workers_encode_the_same_tiles_alike(
    tmp_path: Path, synthetic_slide: Path, shufflenet_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("CMAMIL_CACHE", str(tmp_path / "cache"))
    state = torch.load(shufflenet_weights, weights_only=True)
    weights = tmp_path / "weights.pth"
    torch.save({n: t for n, t in state.items() if not n.startswith("fc.")}, weights)
    kept = {}
    for each in (OURS["ours-fp32"], PEERS["dataloader"], PEERS["cma-mil-recipe"]):
        task = {
            "weights": str(weights),
            "scratch": str(tmp_path),
            "cores": 1,
            "options": each.options,
        }
        command = tools.worker_command(each, Path(sys.executable), json.dumps(task))
        with Child(command, tmp_path / "log") as child:
            run = child.run(synthetic_slide, 16, keep=tmp_path / f"{each.name}.npz")
            kept[each.name] = np.load(tmp_path / f"{each.name}.npz")
        assert run.tiles == len(kept[each.name]["features"]) > 20
        assert run.cpu_s > 0
        assert kept[each.name]["features"].shape[1] == 1024
    ours, eager = kept["ours-fp32"], kept["dataloader"]
    assert np.array_equal(ours["coords"], eager["coords"])
    np.testing.assert_allclose(ours["features"], eager["features"], atol=2e-3)
    recipe = {tuple(xy) for xy in kept["cma-mil-recipe"]["coords"].tolist()}
    assert {tuple(xy) for xy in ours["coords"].tolist()} <= recipe | {(-1, -1)}
