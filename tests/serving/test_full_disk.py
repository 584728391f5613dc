"""The disk of cache, uploads and jobs fills up, all at once, and has room again; in the long run only."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from cmamil_sdk.client import Client, PredictionJob
from cmamil_sdk.errors import JobsUnavailable, UploadsFull
from cmamil_sdk.serving.config import ServerConfig

from .programs import start_program
from .results import record
from .soak.known import ENGINE, Known, predicted
from .soak.slides import write_copies, write_slides
from .waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

DISK_BYTES = 12 * 2**20
_MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'
_JOBS = 200


class Disk:
    """A small one that only the server has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.within = (
            *("unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT),
            *(str(DISK_BYTES), str(folder)),
        )
        self.seen = folder
        """Where this process finds it, once the server is up."""

    def fill(self) -> None:
        """Until not a byte more goes in."""
        with (self.seen / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)) == 4096:
                pass

    def empty(self) -> None:
        (self.seen / "filler").unlink()

    def files(self, folder: str) -> set[str]:
        return {path.name for path in (self.seen / folder).rglob("*") if path.is_file()}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = Disk(folder)
    if subprocess.run([*made.within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs `unshare --map-root-user --mount` and tmpfs")
    return made


@pytest.fixture
def known(config: ServerConfig, big_slide: Path, tmp_path: Path) -> Known:
    root = tmp_path / "slides"
    root.mkdir()
    shutil.copy(big_slide, root / "big.svs")
    return predicted(config.bundles[0], root, ["big.svs", *write_slides(root, 6)])


@pytest.fixture
def client(config: ServerConfig, disk: Disk, known: Known, tmp_path: Path) -> Iterator[Client]:
    settings = {
        **{"slides_roots": (tmp_path / "slides",), "engine": ENGINE, "max_active_jobs": 1},
        **{name: disk.folder / name for name in ("cache", "uploads")},
        "jobs_file": disk.folder / "jobs.sqlite",
    }
    program, port = start_program(config.model_copy(update=settings), within=disk.within)
    disk.seen = Path(f"/proc/{program.pid}/root{disk.folder}")
    with Client(f"127.0.0.1:{port}", timeout_s=120.0) as connected:
        yield connected
    program.terminate()
    assert program.wait(timeout=30) == 0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask again soon."""
    monkeypatch.setattr("cmamil_sdk._client_retries._LONGEST_DELAY_S", 0.05)


def until_refused(client: Client) -> list[PredictionJob]:
    """Jobs that were accepted: what SQLite has of the disk already may take some more."""
    accepted: list[PredictionJob] = []
    with pytest.raises(JobsUnavailable):
        while len(accepted) < _JOBS:
            accepted.append(client.create_job("0.svs"))
    return accepted


def test_a_full_disk_of_everything(
    client: Client, disk: Disk, known: Known, tmp_path: Path
) -> None:
    copies = write_copies(tmp_path / "slides", ["0.svs", "1.svs"], tmp_path, 1)[0]
    kept = client.upload_slide(copies["0.svs"])
    known.check("0.svs", client.predict("0.svs"))
    at_work = client.create_job("big.svs", bypass_cache=True)
    wait_until(lambda: client.job(at_work.name).state == "RUNNING")
    disk.fill()
    entries = disk.files("cache")

    accepted = until_refused(client)
    with ThreadPoolExecutor(4) as threads:
        slides = [f"{number}.svs" for number in range(6)]
        answers = threads.map(client.predict, [*slides, kept.uri])
        upload = threads.submit(client.upload_slide, copies["1.svs"])
        for slide, found in zip([*slides, "0.svs"], answers, strict=True):
            known.check(slide, found)
        with pytest.raises(UploadsFull):
            upload.result()
    assert client.health() == "SERVING"
    assert disk.files("cache") == entries, "something half written was left"
    assert not [name for name in disk.files("uploads") if name.endswith((".part", ".tmp"))]

    disk.empty()
    late = client.watch_job(client.create_job("2.svs").name)
    jobs = [client.watch_job(job.name) for job in (at_work, *accepted)]
    known.check("2.svs", late.prediction)
    for slide, job in zip(["big.svs", *["0.svs"] * len(accepted)], jobs, strict=True):
        known.check(slide, job.prediction)
    names = {job.name for job in client.jobs()}
    assert names == {job.name for job in (late, *jobs)}, "a job was lost, or made twice"
    stored = client.upload_slide(copies["1.svs"])
    known.check("1.svs", client.predict(stored.uri))
    wait_until(lambda: client.predict("5.svs").feature_source == "cached")
    record(
        "disk of cache, uploads and jobs full at once",
        f"7 predictions right, an upload refused, {len(accepted)} jobs accepted before one was refused; "
        f"with room again the job at work and these ended right, uploads and cache went on",
        "nothing lost, nothing half written",
    )
