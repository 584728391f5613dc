"""What the page on the server says of access works as it stands: settings, tokens, commands, example."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from cmamil_sdk.cli.app import app, main
from cmamil_sdk.client import Client
from cmamil_sdk.errors import TokenInvalid
from cmamil_sdk.serving.config import ServerConfig

from ..serving.certificates import issue

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text("utf-8")
ACCESS = PAGE.partition("## Access")[2].partition("\n## ")[0]
READY_WITHIN_S = 60


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", ACCESS, re.S | re.M)


START, MAKE_TOKEN, ASK = blocks("bash")


class Site:
    """A folder as the page describes it, with the server at work in it."""

    def __init__(self, folder: Path, address: str, log: list[str]) -> None:
        self.folder, self.address, self.log = folder, address, log

    def type(self, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return shell(f"{line} --server {self.address}", self.folder, **variables)


def shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def site(
    tiny_bundle: Path, synthetic_slide: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "bundles" / "demo").mkdir(parents=True)
    (folder / "bundles" / "demo" / "1").symlink_to(tiny_bundle)
    (folder / "slides").mkdir()
    shutil.copy(synthetic_slide, folder / "slides" / "case-17.svs")
    authority = issue(folder, "authority", authority=True)
    issue(folder, "server", authority)
    (folder / "server.toml").write_text(blocks("toml")[0])
    assert shell(MAKE_TOKEN, folder).stderr == ""
    assert shell(MAKE_TOKEN.replace("clinic", "other").replace(",metrics", ""), folder).stderr == ""
    more = ["--host", "127.0.0.1", "--port", "0", "--workers", "1"]
    program = subprocess.Popen(
        [sys.executable, "-m", "cmamil_sdk.cli", *START.split()[1:], *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(program.stderr or ()), daemon=True)
    reader.start()
    watchdog = threading.Timer(READY_WITHIN_S, program.kill)
    watchdog.start()
    try:
        assert program.stdout is not None
        said = program.stdout.readline()
        assert said.startswith("serving on 127.0.0.1:"), "".join(log)
        yield Site(folder, said.split()[-1], log)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0
    finally:
        watchdog.cancel()
        program.kill()
        program.wait()


def test_the_commands_work_as_printed(site: Site) -> None:
    predict, info = ASK.splitlines()
    predicted = site.type(f"{predict} --json")
    assert predicted.returncode == 0, predicted.stderr
    assert '"slide": "case-17"' in predicted.stdout
    shown = site.type(info)
    assert shown.returncode == 0 and "0 slides at work, 0 waiting" in shown.stdout


def test_the_example_works(site: Site) -> None:
    (example,) = blocks("python")
    code = example.replace("127.0.0.1:50051", site.address)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=site.folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("benign", "in_situ", "invasive")


@pytest.mark.parametrize(
    ("options", "token", "reason"),
    [
        ("--ca authority.crt", "", "TOKEN_INVALID"),
        ("--ca authority.crt", "guessed", "TOKEN_INVALID"),
        ("--ca authority.crt", "two words", "FIELD_INVALID"),
        ("", "", "SERVER_UNREACHABLE"),
        ("--tls", "", "CERTIFICATE_REFUSED"),
        ("--ca server.key", "", "FIELD_INVALID"),
        ("--ca authority.crt --key server.key", "", "FIELD_INVALID"),
        ("--ca authority.crt --token-file absent.token", "", "FIELD_INVALID"),
        ("--ca authority.crt --token-file authority.crt", "", "FIELD_INVALID"),
    ],
)
def test_who_is_not_let_in_is_told_why(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    token: str,
    reason: str,
) -> None:
    monkeypatch.chdir(site.folder)
    monkeypatch.setenv("CMAMIL_TOKEN", token)
    with pytest.raises(SystemExit) as end:
        main(["client", "models", *options.split(), "--server", site.address])
    said = capsys.readouterr()
    assert end.value.code == (2 if reason == "FIELD_INVALID" else 4)
    assert said.err.startswith(f"cmamil: {reason}: ") and said.out == ""
    assert not token or token not in said.err


def test_no_token_stands_in_the_servers_log(site: Site) -> None:
    ca = site.folder / "authority.crt"
    with Client(site.address, ca=ca, token="guessed-token") as client, pytest.raises(TokenInvalid):
        client.models()
    log = "".join(site.log)
    assert "reason=TOKEN_INVALID" in log
    for token in ("guessed-token", (site.folder / "clinic.token").read_text().strip()):
        assert token not in log


def test_the_file_shown_names_settings_and_the_roles_are_all_there() -> None:
    assert set(tomllib.loads(blocks("toml")[0])) <= set(ServerConfig.model_fields)
    assert re.findall(r"^\| `(\w+)` \|", ACCESS, re.M) == ["predict", "metrics", "admin"]


def test_options_show_the_defaults_of_the_settings() -> None:
    """The command line repeats them for its help alone: what is not given is not handed on."""
    command = typer.main.get_command(app).commands["serve"]
    fields = ServerConfig.model_fields
    shown = {p.name: p.default for p in command.params if p.name in fields}
    assert {"port", "host", "max_queued", "max_calls_per_client"} <= set(shown)
    for name, default in shown.items():
        if name not in ("bundles", "workers"):  # needed; one per core
            assert default == fields[name].default, name
