"""What the README says a user types works as it stands, and everything it names is there."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from cmamil_sdk.cli.app import app
from cmamil_sdk.cli.arguments import normalise
from cmamil_sdk.synthetic import write_svs

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    *("cmamil_sdk", "training", "export", "serving", "benchmarks"),
    *("protos", "tests", "docs", ".ci"),
)
SLIDES = 12
PORT = "50051"
READY_WITHIN_S = 60


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of a language, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def command_lines(page: Path, language: str = "bash") -> list[str]:
    """Commands of these blocks, continued lines joined, without prompt and comment."""
    joined = "\n".join(blocks(page, language)).replace("\\\n", " ")
    lines = [re.sub(r"\s#\s.*", "", line).strip() for line in joined.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


def spans(page: Path) -> list[str]:
    """Inline code, outside of fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def words_of(line: str) -> list[str]:
    """The words of a command, up to what a shell would make of the rest."""
    return re.split(r"\s(?:[|>&]|2>)", line + " ")[0].split()


def commands_named(page: Path) -> list[list[str]]:
    """Every `cmamil ...` of a page: in blocks for a shell, in bare blocks, and in running text."""
    lines = [*command_lines(page), *command_lines(page, ""), *command_lines(page, "console")]
    return [words_of(x) for x in [*lines, *spans(page)] if x.startswith("cmamil ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_named_exists(page: Path) -> None:
    for words in commands_named(page):
        command: Any = typer.main.get_command(app)
        given = normalise(words[1:])
        while hasattr(command, "commands") and given and not given[0].startswith("-"):
            assert given[0] in command.commands, f"{page.name}: {' '.join(words)}"
            command = command.commands[given.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        asked = {word.partition("=")[0] for word in given if word.startswith("-")}
        asked -= {"--help", "-h", "--debug"}
        assert asked <= known, f"{page.name}: {' '.join(words)}"


def test_the_readme_shows_the_whole_path() -> None:
    named = [" ".join(words[1:3]) for words in commands_named(README)]
    for command in ("features", "train", "export", "serve", "client predict", "demo"):
        assert any(name.startswith(command) for name in named), command
    assert {"make demo", "make test"} <= set(command_lines(README))
    assert len(blocks(README, "python")) >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [x.split()[1] for x in [*command_lines(page), *spans(page)] if x.startswith("make ")]
    assert set(asked) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_place_named_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    missing = [name for name in links if not (page.parent / name).exists()]
    # In running text: what begins with a folder of the repository.
    for span in spans(page):
        first, slash, _ = span.partition("/")
        if slash and re.fullmatch(r"[\w./-]+", span) and first in FOLDERS:
            missing += [span] if not (ROOT / span).exists() else []
    assert missing == []


def draw_slides(folder: Path) -> None:
    """Twelve slides of 4 x 4 tiles in two classes that colour tells apart, and their labels."""
    rng = np.random.default_rng(3)
    lines = ["slide,label"]
    for number in range(1, SLIDES + 1):
        label, colour = (("benign", (225, 150, 190)), ("tumour", (150, 80, 160)))[number % 2]
        pixels = np.array(colour) + rng.normal(0, 18, (896, 896, 1))
        path = folder / "slides" / f"case-{number:02d}.svs"
        write_svs(np.clip(pixels, 0, 255).astype(np.uint8), path, mpp=0.5, objective_power=20)
        lines.append(f"{path.stem},{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def port_to_use() -> str:
    """The one the README relies on, or a free one where that is taken."""
    for wanted in (int(PORT), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            return str(probe.getsockname()[1])
    raise AssertionError("there is no free port")


class Terminal:
    """Types commands in a folder; a server goes on until the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = port_to_use()
        self.said: dict[str, str] = {}
        self.server: subprocess.Popen[str] | None = None
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path}

    def type(self, line: str) -> None:
        """Run a command to its end, or, if it serves, until it is ready."""
        if line.startswith("cmamil serve"):
            self._serve(line.rstrip("& "))
            return
        typed = line
        if self.port != PORT and line.startswith("cmamil client"):
            typed = f"{line.replace(PORT, self.port)} --server 127.0.0.1:{self.port}"
        done = subprocess.run(
            ["bash", "-c", typed],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{line}:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        self.said[line] = done.stdout

    def _serve(self, line: str) -> None:
        typed = line if self.port == PORT else f"{line} --port {self.port}"
        log = (self.folder / "server.log").open("w")
        self.server = subprocess.Popen(
            ["bash", "-c", f"exec {typed}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        watchdog = threading.Timer(READY_WITHIN_S, self.server.kill)
        watchdog.start()
        assert self.server.stdout is not None
        said = self.server.stdout.readline()
        watchdog.cancel()
        assert said == f"serving on 127.0.0.1:{self.port}\n", (
            self.folder / "server.log"
        ).read_text()

    def stop(self) -> None:
        """End the server as a user would, and hold it to its word."""
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            try:
                assert self.server.wait(timeout=40) == 0
            finally:
                self.server.kill()
                self.server.wait()


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Everything of the README that begins with cmamil has been typed, in its order."""
    folder = tmp_path_factory.mktemp("readme")
    draw_slides(folder)
    terminal = Terminal(folder)
    try:
        for line in command_lines(README):
            if line.startswith("cmamil "):
                terminal.type(line)
            else:
                assert line.startswith("make "), f"this test does not know how to run: {line}"
        yield terminal
    finally:
        terminal.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_work_as_printed(terminal: Terminal) -> None:
    assert terminal.server is not None
    said = {" ".join(line.split()[1:3]): text for line, text in terminal.said.items()}
    assert f"{SLIDES} of {SLIDES} slides in features" in said["features --slides"]
    assert "95 % interval" in said["train --features"]
    assert "parity with the eager model" in said["export --run"]
    answer = json.loads(said["client predict"])
    assert answer["slide"] == "case-01"
    assert answer["tiles"] == {"5x": 1, "10x": 4, "20x": 16}
    assert set(answer["probabilities"]) == {"benign", "tumour"}
    assert len(list((terminal.folder / "features").glob("*.h5"))) == SLIDES
    (local,) = json.loads((terminal.folder / "predictions" / "predictions.json").read_text())[
        "predictions"
    ]
    assert local["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)
    heatmap = (terminal.folder / "predictions" / "case-01.heatmap.png").read_bytes()
    assert heatmap.startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_python_examples_run_against_the_same_server(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(terminal.folder)
    names: dict[str, Any] = {}
    for number, example in enumerate(blocks(README, "python"), start=1):
        code = example.replace(PORT, terminal.port)
        exec(compile(code, f"README.md, example {number}", "exec"), names)
    (served,) = (text for line, text in terminal.said.items() if " client predict " in line)
    assert names["prediction"].probabilities == pytest.approx(
        json.loads(served)["probabilities"], abs=1e-5
    )
    assert names["prediction"].label in capsys.readouterr().out
