"""Image, compose file and manifest: checked by linters, and against the server's own settings.

No engine runs them here: what they say must be right as it stands.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cmamil_sdk.cli.app import app
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.health import LIVENESS

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "serving" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
MANIFEST = {
    document["kind"]: document
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
}
POD = MANIFEST["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
MARGIN_S = 10  # from the end of the drain to the end of the process


def lint(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{program} is not installed; it is in the extra dev")
    return subprocess.run(
        [found, *arguments], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )


def instructions(name: str) -> list[str]:
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = lint("hadolint", "serving/deploy/Dockerfile")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_compose_file_keeps_its_schema(tmp_path: Path) -> None:
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = lint(*check, "serving/deploy/compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = (DEPLOY / "compose.yaml").read_text("utf-8").replace("cap_drop", "cap_drops")
    (tmp_path / "compose.yaml").write_text(wrong)
    assert lint(*check, str(tmp_path / "compose.yaml")).returncode != 0


def test_the_manifest_keeps_its_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="it is in the extra dev")
    assert set(MANIFEST) == {"ConfigMap", "Deployment", "Service", "NetworkPolicy"}
    for document in MANIFEST.values():
        validate.validate(document, "1.31", strict=True)
    CONTAINER["livenessProb"] = CONTAINER["livenessProbe"]
    with pytest.raises(validate.ValidationError):
        validate.validate(MANIFEST["Deployment"], "1.31", strict=True)
    del CONTAINER["livenessProb"]


def settings_of_the_pod() -> ServerConfig:
    return ServerConfig.model_validate(
        {**tomllib.loads(MANIFEST["ConfigMap"]["data"]["server.toml"]), "health_port": 50052}
    )


def test_the_pod_is_confined_and_the_server_agrees() -> None:
    config = settings_of_the_pod()
    assert config.tls_certificate and config.tokens and not config.insecure
    assert POD["securityContext"]["runAsNonRoot"] and CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/tmp"}
    assert {mount["name"] for mount in mounts.values()} == {v["name"] for v in POD["volumes"]}
    for path in (*config.slides_roots, config.tls_certificate, config.tls_key, config.tokens):
        assert path is not None
        assert any(path.is_relative_to(mount) for mount in mounts), path
    # A secret's files are root's, so the group that reads them is the pod's.
    modes = [v["secret"]["defaultMode"] for v in POD["volumes"] if "secret" in v]
    assert modes == [0o440, 0o440]
    assert str(config.workers) == CONTAINER["resources"]["limits"]["cpu"]


def test_probes_ask_the_health_port_and_the_drain_has_its_time() -> None:
    config = settings_of_the_pod()
    probes = {
        kind: CONTAINER[f"{kind}Probe"]["grpc"] for kind in ("startup", "readiness", "liveness")
    }
    assert {probe["port"] for probe in probes.values()} == {config.health_port}
    assert probes["liveness"]["service"] == LIVENESS
    assert "service" not in probes["readiness"]
    needed_s = config.drain_delay_s + config.grace_s + MARGIN_S
    assert POD["terminationGracePeriodSeconds"] > needed_s
    ports = {port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {config.port, config.health_port, config.metrics_port}
    assert {p["port"] for p in MANIFEST["Service"]["spec"]["ports"]} == ports - {50052}


def test_compose_confines_the_container_and_waits_for_its_drain() -> None:
    config = ServerConfig.model_validate(tomllib.loads((DEPLOY / "server.toml").read_text("utf-8")))
    for name, service in COMPOSE["services"].items():
        assert service["build"]["args"]["EXTRA"] == {"server": "cpu", "gpu": "gpu"}[name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert all(volume["read_only"] for volume in service["volumes"])
        # Without TLS nothing may be reached from another machine.
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert int(service["stop_grace_period"].removesuffix("s")) > config.grace_s + MARGIN_S
        assert service["cpus"] == config.workers


def test_the_image_is_pinned_has_no_torch_and_is_nobodys() -> None:
    (install,) = instructions("RUN")
    assert "--constraint constraints.txt" in install and "find_spec('torch')" in install
    assert instructions("USER") == ["10001:10001"]
    assert "latest" not in DOCKERFILE
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for name in copied - {"--from=build", "/cmamil"}:
        assert (ROOT / name).exists() and f"!{name}" in kept
    for extra in ("serve", "otel", "cpu", "gpu"):
        assert f"\n{extra} =\n" in (ROOT / "setup.cfg").read_text()


def test_the_image_runs_and_checks_the_server_by_options_that_there_are() -> None:
    command: Any = typer.main.get_command(app)
    serve, (check,) = yaml.safe_load(instructions("CMD")[0]), instructions("HEALTHCHECK")
    known = {name for parameter in command.commands["serve"].params for name in parameter.opts}
    assert serve[0] == "serve" and {word for word in serve if word.startswith("-")} <= known
    asked = yaml.safe_load(check.partition("CMD")[2])
    health = command.commands["client"].commands["health"]
    assert asked[:3] == ["cmamil", "client", "health"]
    assert asked[3] in {name for parameter in health.params for name in parameter.opts}
    assert asked[4] == f"127.0.0.1:{serve[serve.index('--health-port') + 1]}"
