"""Whose jobs a caller sees, and may end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmamil_sdk.client import Client
from cmamil_sdk.errors import JobNotFound, RoleMissing
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server

from .listening import on_a_loop

ROLES = {"clinic": "predict", "lab": "predict", "root": "admin", "grafana": "metrics"}


@pytest.fixture
def clients(config: ServerConfig, tmp_path: Path) -> Iterator[dict[str, Client]]:
    """A client of each role, of a server whose jobs wait because nothing works on them."""
    tokens = tmp_path / "tokens.txt"
    tokens.touch(mode=0o600)
    tokens.write_text(
        "".join(
            f"{name} {role} {hashlib.sha256(name.encode()).hexdigest()}\n"
            for name, role in ROLES.items()
        )
    )
    jobs = tmp_path / "jobs.sqlite"
    server = Server(config.model_copy(update={"tokens": tokens, "jobs_file": jobs}))
    model: Any = SimpleNamespace(
        resource="models/tiny/versions/1",
        bundle=SimpleNamespace(label="tiny/1", manifest=SimpleNamespace(name="tiny", version="1")),
    )

    async def start() -> int:
        await server._services.jobs.open()
        await server._listen()
        server._services.models.fill([model])
        assert server.port is not None
        return server.port

    with on_a_loop(start, server.stop) as port:
        made = {name: Client(f"127.0.0.1:{port}", token=name) for name in ROLES}
        yield made
        for client in made.values():
            client.close()


def names(client: Client) -> list[str]:
    return [job.name for job in client.jobs()]


def test_jobs_are_their_makers_and_the_administrators(clients: dict[str, Client]) -> None:
    clinic, lab, root, grafana = clients.values()
    identity = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    ours = clinic.create_job("a.svs", request_id=identity).name
    theirs = lab.create_job("b.svs", request_id=identity).name
    assert (names(clinic), names(lab), names(root)) == ([ours], [theirs], [theirs, ours])
    for ask in (clinic.job, clinic.watch_job, clinic.cancel_job, clinic.delete_job):
        with pytest.raises(JobNotFound, match="of yours"):
            ask(theirs)
    assert lab.job(theirs).state == root.job(theirs).state == "PENDING"
    assert root.cancel_job(ours).state == clinic.job(ours).state == "CANCELLED"
    root.delete_job(theirs)
    assert names(lab) == []
    with pytest.raises(RoleMissing, match="role predict"):
        root.create_job("a.svs")
    with pytest.raises(RoleMissing, match="role predict or admin"):
        names(grafana)
