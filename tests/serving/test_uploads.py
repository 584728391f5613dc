"""UploadSlide and DeleteSlide: what is stored is whole, what goes wrong is typed and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cmamil_sdk.client import AsyncClient, Client
from cmamil_sdk.errors import (
    ConfigInvalid,
    ServerDraining,
    SlideNotFound,
    SlideUnreadable,
    UploadsDisabled,
)
from cmamil_sdk.predict import ProgressEvent
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server
from cmamil_sdk.serving.tokens import Caller
from cmamil_sdk.serving.uploads import folder as folder_module
from cmamil_sdk.serving.uploads.folder import UploadRecord
from cmamil_sdk.serving.uploads.uploads import Upload, Uploads

from .listening import listening, listening_server
from .test_access import line, write
from .uploading import MIB, UPLOAD, chunk, delete, files, metadata, reason_of, upload, whole
from .waiting import wait_until

CONTENT = bytes(range(256)) * 10_000  # three chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
STORED = [f"{SHA256}.json", f"{SHA256}.slide"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def settings(config: ServerConfig, folder: Path) -> ServerConfig:
    return config.model_copy(update={"uploads": folder, "upload_idle_s": 5.0})


@pytest.fixture
def address(settings: ServerConfig) -> Iterator[str]:
    with listening(settings) as address:
        yield address


def test_a_slide_is_stored_whole(address: str, folder: Path) -> None:
    answer = upload(address, whole(CONTENT))
    assert not isinstance(answer, tuple)
    assert answer.slide_id == SHA256
    left_s = answer.expire_time.seconds - time.time()
    assert 86_000 < left_s < 86_401
    assert files(folder) == STORED
    slide = folder / f"{SHA256}.slide"
    assert slide.read_bytes() == CONTENT
    modes = [path.stat().st_mode & 0o777 for path in (slide, slide.with_suffix(".json"), folder)]
    assert modes == [0o600, 0o600, 0o700]


def test_what_is_there_is_not_sent_again(address: str, folder: Path) -> None:
    upload(address, whole(CONTENT))
    before = (folder / f"{SHA256}.slide").stat()
    asked = threading.Event()

    def only_metadata() -> Iterator[bytes]:
        yield metadata(CONTENT, filename="other name.svs")
        asked.wait(10)

    answer = upload(address, only_metadata(), timeout=5)
    asked.set()
    assert not isinstance(answer, tuple) and answer.slide_id == SHA256
    assert (folder / f"{SHA256}.slide").stat().st_ino == before.st_ino
    assert "other name" in (folder / f"{SHA256}.json").read_text()


def test_two_at_once_are_one(address: str, folder: Path) -> None:
    halfway = threading.Barrier(2)

    def meeting() -> Iterator[bytes]:
        first, second, *rest = whole(CONTENT)
        yield from (first, second)
        halfway.wait(10)
        yield from rest

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: upload(address, meeting()), range(2)))
    assert [answer.slide_id for answer in answers] == [SHA256] * 2  # type: ignore[union-attr]
    wait_until(lambda: files(folder) == STORED)


INVALID = ("INVALID_ARGUMENT", "FIELD_INVALID")
TAKEN = {"max_upload_bytes": 3 * MIB, "uploads_total_bytes": 4 * MIB}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], INVALID),
        ([b""], INVALID),
        ([b"\xff\xff\xff"], INVALID),
        ([chunk(CONTENT[:MIB])], INVALID),
        ([metadata(CONTENT, filename="")], INVALID),
        ([metadata(CONTENT, filename="x" * 256)], INVALID),
        ([metadata(CONTENT, filename="../a.svs")], INVALID),
        ([metadata(CONTENT, filename="..")], INVALID),
        ([metadata(CONTENT, filename="/etc/passwd")], INVALID),
        ([metadata(CONTENT, filename="C:\\a.svs")], INVALID),
        ([metadata(CONTENT, filename="a\0.svs")], INVALID),
        ([metadata(CONTENT, filename="a\n.svs")], INVALID),
        ([metadata(CONTENT, size_bytes=0)], INVALID),
        ([metadata(CONTENT, size_bytes=-1)], INVALID),
        ([metadata(CONTENT, sha256="")], INVALID),
        ([metadata(CONTENT, sha256="../" + SHA256[3:])], INVALID),
        ([metadata(CONTENT), metadata(CONTENT)], INVALID),
        ([metadata(CONTENT), chunk(b"")], INVALID),
        ([metadata(CONTENT), b"\xff\xff\xff"], INVALID),
        ([metadata(CONTENT), chunk(CONTENT[: MIB + 1])], INVALID),
        (
            [metadata(CONTENT), chunk(CONTENT[: 2 * MIB])],
            ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"),
        ),
        ([*whole(CONTENT), chunk(b"x")], INVALID),
        (list(whole(CONTENT))[:-1], ("DATA_LOSS", "UPLOAD_INCOMPLETE")),
        ([metadata(CONTENT)], ("DATA_LOSS", "UPLOAD_INCOMPLETE")),
        (
            [metadata(b"y" * 9), chunk(b"x" * 9)],
            ("FAILED_PRECONDITION", "SLIDE_HASH_MISMATCH"),
        ),
        ([metadata(CONTENT, size_bytes=3 * MIB + 1)], ("FAILED_PRECONDITION", "SLIDE_TOO_LARGE")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else str(len(value)),
)
def test_a_wrong_upload_is_refused_and_leaves_nothing(
    taking_little: tuple[str, Path], messages: list[bytes], expected: tuple[str, str]
) -> None:
    address, folder = taking_little
    assert upload(address, messages) == expected
    wait_until(lambda: files(folder) == [])


@pytest.fixture(scope="module")
def taking_little(
    config: ServerConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("little") / "uploads"
    with listening(config.model_copy(update={"uploads": folder, **TAKEN})) as address:
        yield address, folder


def test_the_total_counts_what_is_there_and_on_its_way(
    settings: ServerConfig, folder: Path
) -> None:
    full = ("RESOURCE_EXHAUSTED", "UPLOADS_FULL")
    other = bytes(2 * MIB)
    with listening(settings.model_copy(update=TAKEN)) as address:
        with arriving(address):
            wait_until(lambda: len(files(folder)) == 1)
            assert upload(address, whole(other)) == full
        wait_until(lambda: files(folder) == [])
        assert not isinstance(upload(address, whole(CONTENT)), tuple)
        assert upload(address, whole(other)) == full
        assert not isinstance(delete(address, SHA256), tuple)
        assert not isinstance(upload(address, whole(other)), tuple)


class arriving:  # noqa: N801 - used as a function
    """An upload that is half done while the block runs, and then cancelled."""

    def __init__(self, address: str) -> None:
        self._hold = threading.Event()
        self._channel = grpc.insecure_channel(address)
        self.call = self._channel.stream_unary(UPLOAD).future(self._half(), timeout=20)

    def _half(self) -> Iterator[bytes]:
        yield from list(whole(CONTENT))[:2]
        self._hold.wait(10)

    def __enter__(self) -> Any:
        return self

    def hang_up(self) -> None:
        """As a client that vanishes: its connection breaks."""
        self._channel.close()

    def __exit__(self, *_: object) -> None:
        self.call.cancel()
        self._hold.set()
        self._channel.close()


@pytest.mark.parametrize("how", ["cancel", "vanish"])
def test_whoever_hangs_up_leaves_nothing(address: str, folder: Path, how: str) -> None:
    with arriving(address) as begun:
        wait_until(lambda: len(files(folder)) == 1)
        assert files(folder)[0].endswith(".part")
        begun.call.cancel() if how == "cancel" else begun.hang_up()
        wait_until(lambda: files(folder) == [])
    assert not isinstance(upload(address, whole(CONTENT)), tuple)


def test_a_silent_client_is_let_go(settings: ServerConfig, folder: Path) -> None:
    with (
        listening(settings.model_copy(update={"upload_idle_s": 0.2})) as address,
        arriving(address) as begun,
    ):
        problem = begun.call.exception(timeout=10)
        assert problem.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason_of(problem) == "DEADLINE_EXCEEDED" and "silent for 0.2 s" in problem.details()
        wait_until(lambda: files(folder) == [])


def test_a_server_that_stops_says_so(settings: ServerConfig, folder: Path) -> None:
    with listening_server(settings) as server:
        begun = arriving(f"127.0.0.1:{server.port}")
        wait_until(lambda: len(files(folder)) == 1)
    with begun:
        assert reason_of(begun.call.exception(timeout=10)) == "SERVER_DRAINING"
    assert files(folder) == [] and not (folder / ".lock").exists()


def test_an_upload_that_moves_may_finish_while_the_server_drains(
    settings: ServerConfig, folder: Path
) -> None:
    async def scenario() -> None:
        server = Server(settings)
        await server.start()
        uploads, go_on = server._services.uploads, asyncio.Event()

        async def slowly() -> Any:
            yield b"half "
            await go_on.wait()
            yield b"a slide"

        moving = asyncio.create_task(
            uploads.receive(announced(b"half a slide"), slowly(), "clinic")
        )
        while not uploads.arriving:
            await asyncio.sleep(0.01)
        assert uploads.arriving_bytes == len(b"half a slide")
        stopping = asyncio.create_task(server.stop(grace_s=20.0))
        while not uploads.draining:
            await asyncio.sleep(0.01)
        with pytest.raises(ServerDraining):
            await uploads.receive(announced(b"another"), given(b"another"), "clinic")
        go_on.set()
        assert (await moving).slide_id == announced(b"half a slide").sha256
        await stopping
        assert uploads.stored == (1, len(b"half a slide"))

    asyncio.run(scenario())


@pytest.mark.parametrize("where", ["write", "fsync", "record"])
def test_a_full_disk(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if where == "record":
            patched.setattr("cmamil_sdk.files.Path.write_bytes", full)
        else:
            patched.setattr(folder_module.os, where, full)
        assert upload(address, whole(CONTENT)) == ("RESOURCE_EXHAUSTED", "UPLOADS_FULL")
        wait_until(lambda: files(folder) == [])
    assert not isinstance(upload(address, whole(CONTENT)), tuple)


def test_another_trouble_with_the_disk_tells_no_path(
    address: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    monkeypatch.setattr(folder_module.os, "write", broken)
    assert upload(address, whole(CONTENT)) == ("INTERNAL", "UNEXPECTED_ERROR")


def test_a_server_without_a_folder_says_how_to_turn_it_on(
    config: ServerConfig, tmp_path: Path
) -> None:
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"pixels")
    refused = pytest.raises(UploadsDisabled, match="start it with `uploads`")
    with listening(config) as address, Client(address) as client:
        with refused:
            client.upload_slide(slide)
        with refused:
            client.delete_slide(SHA256)


def test_owners(settings: ServerConfig, folder: Path, tmp_path: Path) -> None:
    """Each deletes for itself; the slide goes with its last owner, or by an administrator's word."""
    lines = [line(name, "predict", name) for name in ("anna", "ben")]
    lines.append(line("root", "predict,admin", "root"))
    tokens = write(tmp_path / "tokens.txt", "".join(lines))
    absent = ("NOT_FOUND", "SLIDE_NOT_FOUND")
    with listening(settings.model_copy(update={"tokens": tokens})) as address:
        upload(address, whole(CONTENT, filename="anna's.svs"), token="anna")
        assert delete(address, SHA256, token="ben") == absent
        # Only who sends all of the bytes becomes an owner: the hash alone is not enough.
        assert upload(address, [metadata(CONTENT)], token="ben") == (
            "DATA_LOSS",
            "UPLOAD_INCOMPLETE",
        )
        assert delete(address, SHA256, token="ben") == absent
        upload(address, whole(CONTENT, filename="ben's.svs"), token="ben")
        assert not isinstance(delete(address, SHA256, token="anna"), tuple)
        assert files(folder) == STORED
        assert delete(address, SHA256, token="anna") == absent
        assert not isinstance(delete(address, SHA256, token="root"), tuple)
        assert files(folder) == [] and delete(address, SHA256, token="ben") == absent


@pytest.mark.parametrize("slide_id", ["", "x", SHA256.upper(), "../" + SHA256[3:], SHA256 + "\n"])
def test_what_is_no_id(address: str, slide_id: str) -> None:
    assert delete(address, slide_id) == INVALID


def test_leftovers_of_a_killed_server_are_swept(settings: ServerConfig, folder: Path) -> None:
    with listening(settings) as address:
        upload(address, whole(CONTENT))
    names = ["0" * 32 + ".part", "1" * 64 + ".slide", "2" * 64 + ".json", f".{'3' * 64}.json.7.tmp"]
    for name in names:
        (folder / name).write_text("left behind")
    record = UploadRecord(size_bytes=9, uploaded_s=time.time(), labels={"": "cut.svs"})
    (folder / f"{'4' * 64}.json").write_text(record.model_dump_json())
    (folder / f"{'4' * 64}.slide").write_text("cut")
    (folder / "notes.txt").write_text("another's")
    with listening(settings) as address:
        assert files(folder) == sorted([*STORED, "notes.txt"])
        assert not isinstance(delete(address, SHA256), tuple)


def test_a_folder_that_cannot_be_used(
    settings: ServerConfig, folder: Path, slides_root: Path
) -> None:
    folder.write_text("a file")
    with pytest.raises(ConfigInvalid, match="cannot be used"), listening(settings):
        pass
    folder.unlink()
    with listening(settings), pytest.raises(ConfigInvalid, match="in use by"), listening(settings):
        pass
    for place in (slides_root, slides_root / "folder"):
        with pytest.raises(ConfigInvalid, match="lies beneath the slides root"):
            ServerConfig.parse(settings.model_dump() | {"uploads": place})


def run(settings: ServerConfig, scenario: Any) -> None:
    async def inside() -> None:
        uploads = Uploads(settings)
        await uploads.open()
        try:
            await scenario(uploads)
        finally:
            await uploads.close()

    asyncio.run(inside())


async def given(content: bytes) -> Any:
    yield content


def announced(content: bytes, name: str = "case-17.svs") -> Upload:
    return Upload(name, len(content), hashlib.sha256(content).hexdigest())


ME = Caller("me", frozenset({"predict"}))


def test_a_slide_expires_when_it_is_not_in_use(settings: ServerConfig, folder: Path) -> None:
    async def scenario(uploads: Uploads) -> None:
        slide_id = (await uploads.receive(announced(b"pixels"), given(b"pixels"), "me")).slide_id
        async with uploads.using(slide_id, "me") as ref:
            await asyncio.sleep(0.3)
            assert ref.path.read_bytes() == b"pixels" and ref.shown == ref.name == "case-17.svs"
            async with uploads.using(slide_id, "another") as theirs:
                assert theirs.shown == f"upload-{slide_id[:12]}"
        async with asyncio.timeout(5):
            while files(folder):
                await asyncio.sleep(0.02)
        with pytest.raises(SlideNotFound):
            async with uploads.using(slide_id, "me"):
                pass

    run(settings.model_copy(update={"upload_expiry_s": 0.1}), scenario)


def test_a_slide_in_use_outlives_its_deletion(settings: ServerConfig, folder: Path) -> None:
    async def scenario(uploads: Uploads) -> None:
        upload = announced(b"pixels")
        await uploads.receive(upload, given(b"pixels"), "me")
        async with uploads.using(upload.sha256, "me") as ref:
            await uploads.delete(upload.sha256, ME)
            with pytest.raises(SlideNotFound):
                await uploads.delete(upload.sha256, ME)
            with pytest.raises(SlideNotFound):
                async with uploads.using(upload.sha256, "me"):
                    pass
            assert ref.path.read_bytes() == b"pixels"
            inode = ref.path.stat().st_ino
            # Uploaded again meanwhile, the very file that is being read stays.
            await uploads.receive(upload, given(b"pixels"), "me")
            assert ref.path.stat().st_ino == inode
            await uploads.delete(upload.sha256, ME)
        async with asyncio.timeout(5):
            while files(folder):
                await asyncio.sleep(0.02)

    run(settings, scenario)


def test_uploads_that_begin_at_once_share_the_room(settings: ServerConfig, folder: Path) -> None:
    first, second = b"a" * 600, b"b" * 600

    async def scenario(uploads: Uploads) -> None:
        found = await asyncio.gather(
            uploads.receive(announced(first), given(first), "me"),
            uploads.receive(announced(second), given(second), "me"),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in found) == ["Receipt", "UploadsFull"]
        assert len(files(folder)) == 2  # of the one that had room

    run(settings.model_copy(update={"uploads_total_bytes": 1000}), scenario)


def test_uploads_outlive_their_server(settings: ServerConfig, folder: Path) -> None:
    async def send(uploads: Uploads) -> None:
        await uploads.receive(announced(b"pixels"), given(b"pixels"), "me")

    async def use(uploads: Uploads) -> None:
        async with uploads.using(announced(b"pixels").sha256, "me") as ref:
            assert ref.name == "case-17.svs"

    run(settings, send)
    run(settings, use)


def test_both_clients_upload(address: str, folder: Path, tmp_path: Path) -> None:
    slide = tmp_path / "case-17.svs"
    slide.write_bytes(CONTENT)
    events: list[ProgressEvent] = []
    with Client(address) as client:
        found = client.upload_slide(slide, on_progress=events.append)
        assert found.uri == f"upload:{SHA256}"
        assert [event.done for event in events] == [MIB, 2 * MIB, len(CONTENT)]
        client.delete_slide(found.slide_id)
        with pytest.raises(SlideNotFound):
            client.delete_slide(found.uri)
        with pytest.raises(SlideNotFound):
            client.upload_slide(tmp_path / "absent.svs")

    async def ask() -> None:
        async with AsyncClient(address) as asking:
            assert (await asking.upload_slide(slide)).slide_id == SHA256
            await asking.delete_slide(SHA256)

    asyncio.run(ask())
    assert files(folder) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    slide = tmp_path / "locked.svs"
    slide.write_bytes(b"pixels")
    slide.chmod(0)
    with Client() as client, pytest.raises(SlideUnreadable):
        client.upload_slide(slide)


def test_no_file_name_is_logged(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        upload(address, whole(CONTENT, filename="Doe, Jane.svs"))
        delete(address, SHA256)
        wait_until(lambda: "SlideService/DeleteSlide" in caplog.text)
    assert "Jane" not in caplog.text
