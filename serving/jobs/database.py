"""The SQLite file of the jobs: ours, of this version, and of one server at a time, or refused."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from cmamil_sdk.errors import ConfigInvalid

APPLICATION_ID = 0x636D_616A
"""Marks the file as ours, where SQLite has a place for it."""
SCHEMA_VERSION = 1

_LOCK_TIMEOUT_S = 1.0
# What may be long stands last, so that lists do not read it. States are those of PredictionJob.
_SCHEMA = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        request_id TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        state INTEGER NOT NULL,
        starts INTEGER NOT NULL DEFAULT 0,
        created_ns INTEGER NOT NULL,
        started_ns INTEGER,
        ended_ns INTEGER,
        expires_ns INTEGER,
        request BLOB NOT NULL,
        error BLOB,
        result BLOB
    ) STRICT
    """,
    "CREATE UNIQUE INDEX jobs_by_request ON jobs (owner, request_id)",
    "CREATE INDEX jobs_by_owner ON jobs (owner, number)",
    "CREATE INDEX jobs_by_turn ON jobs (owner, started_ns)",
    "CREATE INDEX jobs_by_state ON jobs (state, number)",
    "CREATE INDEX jobs_by_expiry ON jobs (expires_ns)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file, or make it, and hold it until the connection is closed or the process ends.

    A commit is on the disk when it returns (WAL, synchronous FULL), and what is deleted is overwritten.

    Raises:
        ConfigInvalid: no such folder, not to be written to, no file of jobs, one of a newer version, or
            in use by another server.
    """
    try:
        # Results name slides, so that nobody else may read them.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_TIMEOUT_S)
    except (OSError, sqlite3.Error) as problem:
        raise _unusable(path, problem) from problem
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        if _is_new(connection, path):
            for statement in _SCHEMA:
                connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
    except sqlite3.Error as problem:
        connection.close()
        raise _unusable(path, problem) from problem
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the database is empty; refuses one that is neither empty nor ours."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not (application or version or tables):
        return True
    if application != APPLICATION_ID:
        raise ConfigInvalid(
            f"{path} is a database of another program; name another jobs_file, or one that does not "
            "exist yet."
        )
    if version > SCHEMA_VERSION:
        raise ConfigInvalid(
            f"The jobs in {path} are of a newer version (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); install that version, or name another jobs_file."
        )
    return False


def _unusable(path: Path, problem: OSError | sqlite3.Error) -> ConfigInvalid:
    match getattr(problem, "sqlite_errorcode", None):
        case sqlite3.SQLITE_BUSY:
            return ConfigInvalid(
                f"The jobs in {path} belong to another server at work; give each a jobs_file of its "
                "own, or stop the other."
            )
        case sqlite3.SQLITE_NOTADB:
            return ConfigInvalid(
                f"{path} is no file of jobs; name another jobs_file, or one that does not exist yet."
            )
    return ConfigInvalid(
        f"The jobs in {path} cannot be opened ({problem}); check the folder, its permissions and the "
        "space on its disk."
    )


__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "open_database"]
