"""One process at a time; what a killed one leaves is taken over."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cmamil_sdk import locks
from cmamil_sdk.locks import STALE_S, Locks, holder_of, this_process

HOLD = """
import sys, time
from pathlib import Path
from cmamil_sdk.locks import Locks
lock = Locks().take(Path(sys.argv[1]))
print(lock is not None, flush=True)
time.sleep(600)
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".a.lock"


def test_only_one_has_it_and_it_leaves_nothing(path: Path) -> None:
    lock = Locks().take(path)
    assert lock is not None and not lock.taken_over
    assert holder_of(path) == this_process() == f"process {os.getpid()} on {os.uname().nodename}"
    assert Locks().take(path) is None
    lock.release()
    assert not path.exists()
    with Locks().wait(path) as again:
        assert not again.taken_over


def test_a_killed_process_leaves_a_lock_that_is_taken_over(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert Locks().take(path) is None
        assert f"process {other.pid} " in holder_of(path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert path.exists()
    lock = Locks().take(path)
    assert lock is not None and lock.taken_over
    lock.release()
    assert not path.exists()


def test_a_lock_of_another_machine_counts_while_it_is_renewed(path: Path) -> None:
    path.write_text("process 1 on elsewhere\nanother-kernel 00\n")
    clock = Clock()
    watched = Locks(clock=clock)
    assert watched.take(path) is None
    clock.now = STALE_S - 1
    assert watched.take(path) is None
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    clock.now = STALE_S + 1
    assert watched.take(path) is None, "it has been renewed meanwhile"
    clock.now = 2 * STALE_S + 1
    lock = watched.take(path)
    assert lock is not None and lock.taken_over
    lock.release()


def test_without_flock_the_file_alone_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    clock = Clock()
    watched = Locks(clock=clock)
    lock = watched.take(path)
    assert lock is not None
    assert watched.take(path) is None
    clock.now = STALE_S
    late = watched.take(path)
    assert late is not None and late.taken_over
    lock.release()
    assert path.exists(), "it is not the first one's any more"
    late.release()
    assert not path.exists()


def test_its_time_is_renewed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = locks.threading.Event()
    monkeypatch.setattr(locks, "RENEW_S", 0.01)
    monkeypatch.setattr(locks.os, "utime", lambda _fd: renewed.set())
    with Locks().wait(path):
        assert renewed.wait(timeout=60)


def test_an_empty_file_is_of_a_process_killed_before_it_could_sign(path: Path) -> None:
    path.touch()
    lock = Locks().take(path)
    assert lock is not None and lock.taken_over
    lock.release()


def test_where_none_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Locks().take(tmp_path / "nowhere" / ".a.lock")
