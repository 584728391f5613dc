"""The jobs' file: what is written stays, its first server keeps it, and foreign files are refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cmamil_sdk.errors import (
    ConfigInvalid,
    JobFinished,
    JobNotFound,
    JobsUnavailable,
    QueueFull,
    RequestIdReused,
)
from cmamil_sdk.serving.jobs.database import SCHEMA_VERSION
from cmamil_sdk.serving.jobs.store import MAX_STARTS, JobRow, JobState, JobStore


def opened(path: Path, *, max_waiting: int = 100, keep_s: float = 1000.0) -> JobStore:
    store = JobStore(path, max_waiting=max_waiting, keep_s=keep_s)
    store.open(b"blame")
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[JobStore]:
    made = opened(path)
    yield made
    made.close()


def add(store: JobStore, name: str, owner: str = "clinic") -> JobRow:
    return store.add(owner, name, f"fingerprint of {name}", b"request")


def states(store: JobStore) -> list[JobState]:
    return [row.state for row in store.page(None, None, None, 100)]


def test_a_job_from_its_beginning_to_its_end(store: JobStore) -> None:
    made = add(store, "a")
    assert (made.state, made.position, made.started_ns) == (JobState.PENDING, 0, None)
    assert add(store, "b").position == 1 and store.counts[JobState.PENDING] == 2
    claimed = store.claim()
    assert claimed is not None and claimed.id == made.id and claimed.request == b"request"
    assert claimed.state is JobState.RUNNING and claimed.started_ns >= made.created_ns
    assert store.finish(made.id, JobState.SUCCEEDED, result=b"result")
    assert not store.finish(made.id, JobState.FAILED, error=b"late")
    done = store.get(made.id, "clinic", with_result=True)
    assert (done.state, done.result, done.error) == (JobState.SUCCEEDED, b"result", None)
    assert done.ended_ns is not None and done.expires_ns == done.ended_ns + 1000 * 10**9
    assert store.get(made.id, None).result is None
    assert store.counts == {JobState.PENDING: 1, JobState.RUNNING: 0}
    with pytest.raises(JobFinished, match="SUCCEEDED"):
        store.cancel(made.id, "clinic")
    assert store.delete(made.id, "clinic").id == made.id
    with pytest.raises(JobNotFound):
        store.get(made.id, "clinic")


def test_what_ran_or_waited_does_so_again_and_is_not_doubled(path: Path) -> None:
    store = opened(path)
    running, waiting = add(store, "a"), add(store, "b")
    store.claim()
    store.close()  # as a killed process leaves it
    store = opened(path)
    assert states(store) == [JobState.PENDING] * 2
    again = [store.claim(), store.claim(), store.claim()]
    assert [row and row.id for row in again] == [running.id, waiting.id, None]
    assert store.finish(running.id, JobState.SUCCEEDED) and store.put_back() == 1
    assert states(store) == [JobState.PENDING, JobState.SUCCEEDED]
    store.close()


def test_a_job_that_ends_the_server_again_and_again_has_failed(path: Path) -> None:
    store = opened(path)
    job = add(store, "a").id
    for _ in range(MAX_STARTS):
        assert store.claim() is not None
        assert store.put_back() == 1  # an end in good order does not count
        assert store.claim() is not None
        store.close()
        store = opened(path)
    found = store.get(job, None)
    assert (found.state, found.error) == (JobState.FAILED, b"blame") and store.claim() is None
    store.close()


def test_owners_take_turns(store: JobStore) -> None:
    for name in ("a", "b", "c"):
        add(store, name)
    late = [add(store, name, owner="other").id for name in ("d", "e")]
    order = [row.owner for _ in range(5) if (row := store.claim()) is not None]
    assert order == ["clinic", "other", "clinic", "other", "clinic"]
    assert {row.id for row in store.page("other", None, None, 9)} == set(late)


def test_jobs_of_others_are_not_there(store: JobStore) -> None:
    job = add(store, "a").id
    for look in (store.get, store.cancel, store.delete):
        with pytest.raises(JobNotFound):
            look(job, "other")
    assert store.page("other", None, None, 9) == [] and len(store.page(None, None, None, 9)) == 1
    assert store.cancel(job, None).state is JobState.CANCELLED


def test_an_id_makes_one_job(store: JobStore) -> None:
    assert store.known("clinic", "a", "fingerprint of a") is None
    made = add(store, "a")
    assert add(store, "a") == store.known("clinic", "a", "fingerprint of a") == made
    assert add(store, "a", owner="other").id != made.id
    with pytest.raises(RequestIdReused):
        store.add("clinic", "a", "another fingerprint", b"another request")
    with pytest.raises(RequestIdReused):
        store.known("clinic", "a", "another fingerprint")


def test_waiting_jobs_are_bounded(path: Path) -> None:
    store = opened(path, max_waiting=2)
    made = [add(store, name) for name in ("a", "b")]
    with pytest.raises(QueueFull, match="2 jobs that wait"):
        add(store, "c")
    assert add(store, "a") == made[0]  # one that is there needs no place
    store.claim()
    assert add(store, "c").position == 1
    store.close()


def test_pages_are_stable_while_jobs_come_and_go(store: JobStore) -> None:
    made = [add(store, str(number)).number for number in range(7)]
    first = store.page(None, None, None, 3)
    add(store, "new")
    store.delete(first[1].id, None)
    rest = store.page(None, None, first[-1].number, 100)
    assert [row.number for row in (*first, *rest)] == made[::-1]
    store.claim()
    assert len(store.page("clinic", JobState.RUNNING, None, 9)) == 1
    assert len(store.page("clinic", JobState.PENDING, made[3], 9)) == 2


def test_ended_jobs_expire(path: Path) -> None:
    store = opened(path, keep_s=1e-9)
    gone, kept = add(store, "a").id, add(store, "b").id
    store.cancel(gone, None)
    assert store.expire() == 1
    assert [row.id for row in store.page(None, None, None, 9)] == [kept]
    assert add(store, "a").id != gone
    store.close()


def test_a_full_disk_is_typed_and_loses_nothing(store: JobStore) -> None:
    job = add(store, "a")
    assert store._connection is not None
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JobsUnavailable, match="full"):
        store.add("clinic", "b", "f", bytes(100_000))
    store.claim()
    with pytest.raises(JobsUnavailable, match="full"):
        store.finish(job.id, JobState.SUCCEEDED, result=bytes(100_000))
    assert states(store) == [JobState.RUNNING] and store.counts[JobState.RUNNING] == 1
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert store.finish(job.id, JobState.SUCCEEDED, result=bytes(100_000))


def test_a_closed_store_is_typed(path: Path) -> None:
    store = opened(path)
    store.close()
    with pytest.raises(JobsUnavailable, match="closing"):
        add(store, "a")


def test_a_file_belongs_to_one_server(store: JobStore, path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="another server at work"):
        opened(path)
    assert add(store, "a").position == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    foreign, newer, text = tmp_path / "foreign", tmp_path / "newer", tmp_path / "text"
    with closing(sqlite3.connect(foreign)) as database:
        database.execute("CREATE TABLE patients (name TEXT)")
    opened(newer).close()
    with closing(sqlite3.connect(newer)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    text.write_text("no database at all, but long enough to be looked at" * 50)
    for path, words in (
        (foreign, "another program"),
        (newer, f"schema {SCHEMA_VERSION + 1}"),
        (text, "no file of jobs"),
        (tmp_path, "cannot be opened"),
        (tmp_path / "absent" / "jobs", "cannot be opened"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(ConfigInvalid, match=words):
            opened(path)
        assert not before or path.read_bytes() == before
