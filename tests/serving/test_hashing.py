"""What a slide is named by when its disk goes away."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.errors import SlideUnreadable
from cmamil_sdk.serving import hashing
from cmamil_sdk.serving.hashing import SlideHasher
from cmamil_sdk.serving.paths import resolve


def test_a_disk_that_fails_is_a_slide_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.svs").write_bytes(b"pixels")
    ref = resolve("a.svs", [tmp_path])
    opened = os.fdopen

    def failing(*arguments: Any, **options: Any) -> Any:
        file = opened(*arguments, **options)

        class Failing:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def read(self, _size: int) -> bytes:
                raise OSError(errno.ESTALE, "Stale file handle")

        return Failing()

    async def scenario() -> None:
        hasher = SlideHasher()
        with monkeypatch.context() as patched:
            patched.setattr(hashing.os, "fdopen", failing)
            with pytest.raises(
                SlideUnreadable, match=r"a\.svs cannot be read \(Stale file handle\)"
            ):
                await hasher.sha256(ref)
        assert len(await hasher.sha256(ref)) == 64
        hasher.close()

    asyncio.run(scenario())
