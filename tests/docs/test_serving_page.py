"""What the page on the server says of access works as it stands: settings, tokens, commands, example."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from prometheus_client.parser import text_string_to_metric_families

from cmamil_sdk.cli.app import app, main
from cmamil_sdk.client import Client
from cmamil_sdk.errors import TokenInvalid
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.serving.config import ServerConfig

from ..serving.certificates import issue

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text("utf-8")
HEAD = PAGE.partition("\n## ")[0]
ACCESS = PAGE.partition("## Access")[2].partition("\n## ")[0]
JOBS = PAGE.partition("## Jobs")[2].partition("\n## ")[0]
FEATURES = PAGE.partition("## Features alone")[2].partition("\n## ")[0]
WATCHING = PAGE.partition("## Watching it")[2].partition("\n## ")[0]
READY_WITHIN_S = 60


def blocks(language: str, text: str = ACCESS) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


START, MAKE_TOKEN, ASK = blocks("bash")
(WATCH,) = blocks("bash", WATCHING)


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
    for name in ("case-17.svs", "case-18.svs"):
        shutil.copy(synthetic_slide, folder / "slides" / name)
    authority = issue(folder, "authority", authority=True)
    issue(folder, "server", authority)
    (folder / "server.toml").write_text(blocks("toml")[0])
    assert shell(MAKE_TOKEN, folder).stderr == ""
    assert shell(MAKE_TOKEN.replace("clinic", "other").replace(",metrics", ""), folder).stderr == ""
    assert WATCH.startswith(START.strip())
    more = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--health-port", "0"]
    more += ["--jobs-file", "jobs.sqlite"]
    program = subprocess.Popen(
        [sys.executable, "-m", "cmamil_sdk.cli", *WATCH.split()[1:], *more, "--workers", "1"],
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
        watchdog.cancel()
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


def said_by(example: str, site: Site) -> list[str]:
    """What an example prints, made to ask the site."""
    token = (site.folder / "clinic.token").read_text().strip()
    who = "" if "token" in example else f', ca="authority.crt", token="{token}"'
    code = example.replace('"127.0.0.1:50051"', f'"{site.address}"{who}')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=site.folder, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_examples_work(site: Site) -> None:
    (example,) = blocks("python")
    (label,) = said_by(example, site)
    assert label in ("benign", "in_situ", "invasive")
    plain, on_asyncio = blocks("python", HEAD)
    *events, last = said_by(plain, site)
    assert last.startswith(f"{label} {{") and "ProgressEvent" in events[0]
    assert said_by(on_asyncio, site) == [f"case-17 {label}", f"case-18 {label}"]
    (of_features,) = blocks("python", FEATURES)
    (features,) = said_by(of_features, site)
    bag, provenance = read_feature_file(site.folder / "features" / "case-17.h5")
    assert features == f"{bag.counts()} {provenance.slide_sha256}"
    (command,) = blocks("bash", FEATURES)
    written = site.type(f"{command.strip()} --ca authority.crt --token-file clinic.token")
    assert written.returncode == 0 and "case-17.h5: in place of an older file" in written.stderr


def test_the_jobs_are_those_of_the_page(site: Site) -> None:
    (example,) = blocks("python", JOBS)
    named, *events, last = said_by(example, site)
    assert re.fullmatch(r"jobs/[0-9a-f-]{36} PENDING", named) and "ProgressEvent" in events[0]
    assert last.endswith("['case-17.svs']")
    create, listing = blocks("bash", JOBS)[0].splitlines()
    who = "--ca authority.crt --token-file clinic.token"
    made = site.type(f"{create} {who}")
    assert made.returncode == 0, made.stderr
    watched = site.type(f"cmamil client jobs watch {made.stdout.strip()} {who}")
    assert watched.returncode == 0 and "case-17" in watched.stdout
    listed = site.type(f"{listing} {who}")
    assert made.stdout.strip() in listed.stdout and listed.stdout.count("SUCCEEDED") == 2


def test_the_metrics_are_those_of_the_page(site: Site) -> None:
    """After the predictions above each one has moved, but for what needs a fault or a hang-up."""
    listening = next(json.loads(line) for line in site.log if '"listening"' in line)
    token = (site.folder / "clinic.token").read_text().strip()
    request = urllib.request.Request(
        f"https://127.0.0.1:{listening['metrics_port']}/metrics",
        headers={"Authorization": f"Bearer {token}"},
    )
    trusting = ssl.create_default_context(cafile=str(site.folder / "authority.crt"))
    with urllib.request.urlopen(request, timeout=10, context=trusting) as answer:
        text = answer.read().decode("utf-8")
    families = {
        family.name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in text_string_to_metric_families(text)
        if family.name.startswith("cmamil_") and family.type != "unknown"
    }
    rows = re.findall(r"`(cmamil_\w+?)(?:_total)?(?:\{([\w,]+)\})?`", WATCHING)
    documented = {name: set(labels.split(",")) - {""} for name, labels in rows}
    never = {"cmamil_cancelled"}
    assert {k: v for k, v in families.items() if k not in never and not k.endswith("_created")} == {
        k: v for k, v in documented.items() if k not in never
    }
    assert never <= set(families) and "case-17" not in text
    with Client(site.address, ca=site.folder / "authority.crt", token=token) as client:
        stats = client.server_stats()
    assert all(f"`{stage}`" in WATCHING for stage in set(stats.stages) - {"queued"})


def test_the_values_and_events_of_the_log_are_those_of_the_page(site: Site) -> None:
    documents = [json.loads(line) for line in site.log]
    for document in documents:
        assert f"`{document['event']}`" in WATCHING or document["event"] == "message", document
        if document["event"] == "call":
            for name in document:
                assert f"`{name}`" in WATCHING, name
    assert "case-17" not in "".join(site.log)


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
    assert '"reason": "TOKEN_INVALID"' in log
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
