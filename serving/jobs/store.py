"""What is known of each job, in SQLite; every method is one transaction, on disk when it returns."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from cmamil_sdk.errors import (
    JobFinished,
    JobNotFound,
    JobsUnavailable,
    QueueFull,
    RequestIdReused,
)
from cmamil_sdk.wording import counted

from .database import open_database

MAX_STARTS = 5
"""A job over which the server ended so often is not tried again."""


class JobState(IntEnum):
    """Numbered as ``PredictionJob.State``."""

    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self > JobState.RUNNING


@dataclass(frozen=True)
class JobRow:
    """One job.

    Attributes:
        number: rises with each job.
        id: a UUID.
        owner: name of the token that made it; empty without tokens.
        request_id, fingerprint, request: the id, the sha256, and the message itself.
        created_ns, started_ns, ended_ns, expires_ns: nanoseconds since 1970.
        position: of a job that waits: how many were created before it and wait, too.
        error: a ``google.rpc.Status``, of a job that failed.
        result: a ``PredictSlideResponse``, of one that succeeded, where it was asked for.
    """

    number: int
    id: str
    owner: str
    request_id: str
    fingerprint: str
    state: JobState
    created_ns: int
    started_ns: int | None
    ended_ns: int | None
    expires_ns: int | None
    position: int
    request: bytes
    error: bytes | None
    result: bytes | None = None


_COLUMNS = """
    number, id, owner, request_id, fingerprint, state, created_ns, started_ns, ended_ns, expires_ns,
    CASE state WHEN 1 THEN
        (SELECT count(*) FROM jobs AS other WHERE other.state = 1 AND other.number < jobs.number)
    ELSE 0 END,
    request, error
"""
# Owners take turns: first whose last start is longest ago, or who never had one.
_NEXT = """
    SELECT number FROM
        (SELECT owner, min(number) AS number FROM jobs WHERE state = 1 GROUP BY owner) AS firsts
    ORDER BY (SELECT max(started_ns) FROM jobs WHERE jobs.owner = firsts.owner), number LIMIT 1
"""


class JobStore:
    """The jobs of one server. To be used from one thread, but for :attr:`counts`.

    Every method raises :class:`JobsUnavailable` if the file cannot be read or written now; nothing has
    changed then.
    """

    def __init__(self, path: Path, *, max_waiting: int, keep_s: float) -> None:
        self._path = path
        self._max_waiting, self._keep_ns = max_waiting, round(keep_s * 1e9)
        self._connection: sqlite3.Connection | None = None
        self.counts: dict[JobState, int] = {JobState.PENDING: 0, JobState.RUNNING: 0}
        """How many jobs wait and run."""

    def open(self, blame: bytes) -> int:
        """Open the file; what ran when a server ended waits again. Returns how many that are.

        A job that ran at :data:`MAX_STARTS` such ends has failed with the error ``blame``.

        Raises:
            ConfigInvalid: as :func:`open_database`.
        """
        self._connection = open_database(self._path)
        with self._transaction() as execute:
            execute(
                "UPDATE jobs SET state = ?, error = ?, ended_ns = ?, expires_ns = ?"
                " WHERE state = ? AND starts >= ?",
                (JobState.FAILED, blame, *self._end(), JobState.RUNNING, MAX_STARTS),
            )
            return execute(
                "UPDATE jobs SET state = ?, started_ns = NULL WHERE state = ?",
                (JobState.PENDING, JobState.RUNNING),
            ).rowcount

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def add(self, owner: str, request_id: str, fingerprint: str, request: bytes) -> JobRow:
        """A new job that waits, or the one that ``owner`` has made with this id already.

        Raises:
            RequestIdReused: that one has another fingerprint.
            QueueFull: as many jobs wait as may.
        """
        with self._transaction() as execute:
            known = self._known(owner, request_id, fingerprint)
            if known is not None:
                return known
            waiting = self.counts[JobState.PENDING]
            if waiting >= self._max_waiting:
                jobs = counted(waiting, "job")
                raise QueueFull(f"The server has {jobs} that wait, its limit; try again later.")
            job = str(uuid.uuid4())
            execute(
                "INSERT INTO jobs (id, owner, request_id, fingerprint, state, created_ns, request)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job, owner, request_id, fingerprint, JobState.PENDING, time.time_ns(), request),
            )
            return self._find(job, None)

    def known(self, owner: str, request_id: str, fingerprint: str) -> JobRow | None:
        """The job that ``owner`` has made with this id, if there is one.

        Raises:
            RequestIdReused: it has another fingerprint.
        """
        with self._transaction():
            return self._known(owner, request_id, fingerprint)

    def get(self, job: str, owner: str | None, *, with_result: bool = False) -> JobRow:
        """A job of ``owner``, or of anybody if that is None.

        Raises:
            JobNotFound: there is none.
        """
        with self._transaction():
            return self._find(job, owner, with_result=with_result)

    def page(
        self, owner: str | None, state: JobState | None, before: int | None, limit: int
    ) -> list[JobRow]:
        """Jobs of ``owner`` (None: of anybody) in ``state`` (None: any), the newest first.

        ``before``: only those whose number is lower.
        """
        wanted = {"owner = ?": owner, "state = ?": state, "number < ?": before}
        given = {test: value for test, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        with self._transaction() as execute:
            found = execute(
                f"SELECT {_COLUMNS} FROM jobs {where} ORDER BY number DESC LIMIT ?",
                (*given.values(), limit),
            )
            return [_row(values) for values in found]

    def claim(self) -> JobRow | None:
        """The job whose turn it is, which runs from now on; None if no job waits."""
        with self._transaction() as execute:
            found = execute(_NEXT).fetchone()
            if found is None:
                return None
            execute(
                "UPDATE jobs SET state = ?, started_ns = ?, starts = starts + 1 WHERE number = ?",
                (JobState.RUNNING, time.time_ns(), *found),
            )
            return _row(execute(f"SELECT {_COLUMNS} FROM jobs WHERE number = ?", found).fetchone())

    def finish(
        self, job: str, state: JobState, *, result: bytes | None = None, error: bytes | None = None
    ) -> bool:
        """End a job that runs; False if it has ended or is gone."""
        with self._transaction() as execute:
            done = execute(
                "UPDATE jobs SET state = ?, result = ?, error = ?, ended_ns = ?, expires_ns = ?"
                " WHERE id = ? AND state = ?",
                (state, result, error, *self._end(), job, JobState.RUNNING),
            )
            return done.rowcount == 1

    def put_back(self) -> int:
        """Let every job that runs wait again, because the server is about to end; how many."""
        with self._transaction() as execute:
            return execute(
                "UPDATE jobs SET state = ?, started_ns = NULL, starts = starts - 1 WHERE state = ?",
                (JobState.PENDING, JobState.RUNNING),
            ).rowcount

    def cancel(self, job: str, owner: str | None) -> JobRow:
        """End a job that waits or runs.

        Raises:
            JobNotFound: as :meth:`get`.
            JobFinished: it has ended.
        """
        with self._transaction() as execute:
            row = self._find(job, owner)
            if row.state.ended:
                raise JobFinished(
                    f"The job {job} has ended ({row.state.name}); delete it to forget it."
                )
            execute(
                "UPDATE jobs SET state = ?, ended_ns = ?, expires_ns = ? WHERE number = ?",
                (JobState.CANCELLED, *self._end(), row.number),
            )
            return self._find(job, owner)

    def delete(self, job: str, owner: str | None) -> JobRow:
        """Forget a job; returns what it was. Raises JobNotFound as :meth:`get`."""
        with self._transaction() as execute:
            row = self._find(job, owner)
            execute("DELETE FROM jobs WHERE number = ?", (row.number,))
            return row

    def expire(self) -> int:
        """Forget the jobs whose time is over; returns how many."""
        with self._transaction() as execute:
            return execute("DELETE FROM jobs WHERE expires_ns <= ?", (time.time_ns(),)).rowcount

    def _end(self) -> tuple[int, int]:
        """Times of the end and of the expiry of a job that ends now."""
        now = time.time_ns()
        return now, now + self._keep_ns

    def _known(self, owner: str, request_id: str, fingerprint: str) -> JobRow | None:
        assert self._connection is not None
        found = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE owner = ? AND request_id = ?", (owner, request_id)
        ).fetchone()
        if found is None:
            return None
        row = _row(found)
        if row.fingerprint != fingerprint:
            raise RequestIdReused(
                f"The request id {request_id} is that of another request, job {row.id}; make a new "
                "one."
            )
        return row

    def _find(self, job: str, owner: str | None, *, with_result: bool = False) -> JobRow:
        assert self._connection is not None
        columns = f"{_COLUMNS}, result" if with_result else _COLUMNS
        found = self._connection.execute(
            f"SELECT {columns} FROM jobs WHERE id = ?", (job,)
        ).fetchone()
        if found is None or (owner is not None and owner != found[2]):
            raise JobNotFound(f"The server has no job {job} of yours; it may have expired.")
        return _row(found)

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Everything in the block or nothing; gives what executes a statement."""
        if self._connection is None:
            raise JobsUnavailable("The server is closing its jobs; ask again later.")
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection.execute
                counts = {state: _count(connection, state) for state in self.counts}
                connection.execute("COMMIT")
                self.counts = counts
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as problem:
            raise JobsUnavailable(
                f"The server cannot use its jobs now ({problem}); ask again later, or its "
                "administrator."
            ) from problem


def _count(connection: sqlite3.Connection, state: JobState) -> int:
    found = connection.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,))
    return int(found.fetchone()[0])


def _row(values: tuple[Any, ...]) -> JobRow:
    number, job, owner, request_id, fingerprint, state, *rest = values
    return JobRow(number, job, owner, request_id, fingerprint, JobState(state), *rest)


__all__ = ["MAX_STARTS", "JobRow", "JobState", "JobStore"]
