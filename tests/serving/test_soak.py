"""A server under everything at once: good, bad and cancelled requests while workers are killed.

``make soak`` runs it for ``CMAMIL_SOAK_S`` seconds (120 by default).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmamil_sdk.client import Client
from cmamil_sdk.errors import DeadlineExceeded, DecoderCrashed, SlideNotFound
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server, background_server

CLIENTS = 6
KILL_EVERY_S = 3.0
MAX_GROWTH_MIB = 100


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def kill_workers(server: Server, stop: threading.Event, killed: list[int]) -> None:
    while not stop.wait(KILL_EVERY_S):
        pool = server._services.pool
        assert pool is not None
        running = [slot.child.pid for slot in pool.slots if slot.child and slot.child.pid]
        if running:
            killed.append(random.choice(running))
            os.kill(killed[-1], signal.SIGKILL)


def ask(address: str, seed: int, until_s: float, expected: dict[str, float]) -> Counter[str]:
    """Requests of three kinds until the time is over; each must end as its kind may."""
    rng, outcomes = random.Random(seed), Counter[str]()
    with Client(address, timeout_s=60.0) as client:
        while time.monotonic() < until_s:
            kind = rng.choice(("good", "good", "cancelled", "missing"))
            try:
                if kind == "missing":
                    client.predict("nothing.svs")
                elif kind == "cancelled":
                    client.predict("a.svs", timeout_s=rng.uniform(0.01, 0.5))
                else:
                    assert client.predict("a.svs").probabilities == expected
                outcomes["answered"] += 1
            except SlideNotFound:
                assert kind == "missing"
                outcomes["missing"] += 1
            except DeadlineExceeded:
                assert kind == "cancelled"
                outcomes["cancelled"] += 1
            except DecoderCrashed:
                outcomes["crashed"] += 1  # the same batch was hit by two kills
    return outcomes


@pytest.mark.long
@pytest.mark.timeout(0)
def test_soak(config: ServerConfig) -> None:
    seconds = float(os.environ.get("CMAMIL_SOAK_S", "120"))
    settings = config.model_copy(update={"max_active_slides": 4, "max_queued": CLIENTS})
    stop, killed = threading.Event(), list[int]()
    with (
        background_server(settings) as server,
        ThreadPoolExecutor(CLIENTS + 1) as threads,
    ):
        address = f"127.0.0.1:{server.port}"
        with Client(address) as client:
            expected = client.predict("a.svs").probabilities
            before_mib = resident_mib()
            killer = threads.submit(kill_workers, server, stop, killed)
            until_s = time.monotonic() + seconds
            work = [threads.submit(ask, address, n, until_s, expected) for n in range(CLIENTS)]
            outcomes = sum((each.result() for each in work), Counter[str]())
            stop.set()
            killer.result()
            assert client.predict("a.svs").probabilities == expected
            info = client.server_info()
    grown_mib = resident_mib() - before_mib
    print(f"{seconds:.0f} s, {len(killed)} kills, {dict(outcomes)}, {grown_mib:+.0f} MiB")  # noqa: T201
    assert outcomes["answered"] and outcomes["cancelled"] and outcomes["missing"]
    assert outcomes["crashed"] <= len(killed) / 2
    assert info.active_slides == info.queued_slides == 0
    assert grown_mib < MAX_GROWTH_MIB
