"""Which bundle an administrator means: one beneath the bundle roots, or it is refused.

As of slides, nothing outside a root is reached or learned about, and no link beneath one is followed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmamil_sdk.bundle.manifest import MANIFEST, Manifest
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.errors import BundleNotFound, BundlePathForbidden, CmamilError

from .paths import beneath_roots

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class FoundBundle:
    """A bundle beneath a root, its manifest, and the sha256 of that; ``shown`` is what messages say."""

    path: Path
    shown: str
    manifest: Manifest
    sha256: str

    def public(self, message: str) -> str:
        """``message`` without the path of the root."""
        return message.replace(str(self.path), self.shown)


def find_bundle(text: str, roots: Sequence[Path]) -> FoundBundle:
    """Find the bundle that ``text`` names: an absolute path, or one beneath a root.

    A relative path is looked up beneath each root in turn.

    Raises:
        BundlePathForbidden: there are no roots, or it is outside, or has ``..``, NUL or a link in it.
        BundleNotFound: beneath a root, but there is no such directory.
        BundleCorrupt, BundleUnsupported: its manifest cannot be read.
    """
    if not roots:
        raise BundlePathForbidden(
            "This server loads no further bundles; start it with bundle_roots to allow that."
        )
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    candidates = beneath_roots(text.startswith("/"), parts, roots)
    if "\0" in text or ".." in parts or not candidates:
        raise _forbidden(text)
    for root, beneath in candidates:
        if _is_there(root, beneath, text):
            return _read(root.joinpath(*beneath), "/".join(beneath))
    raise BundleNotFound(f"There is no bundle {_short(text)} beneath the roots; check the path.")


def _read(path: Path, shown: str) -> FoundBundle:
    _refuse_links(path, [MANIFEST], shown)
    try:
        manifest, sha256 = read_manifest(path)
    except CmamilError as problem:
        raise type(problem)(str(problem).replace(str(path), shown)) from problem
    _refuse_links(path, manifest.files, shown)
    return FoundBundle(path, shown, manifest, sha256)


def _is_there(root: Path, parts: Sequence[str], text: str) -> bool:
    """Whether there is such a directory, walked to component by component."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            deeper = os.open(part, _DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = deeper
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return False
        raise _forbidden(text) from problem
    finally:
        os.close(folder)
    return True


def _refuse_links(path: Path, names: Iterable[str], shown: str) -> None:
    whole = path.resolve()
    for name in names:
        if (path / name).resolve() != whole / name:
            raise _forbidden(shown)


def _forbidden(text: str) -> BundlePathForbidden:
    return BundlePathForbidden(
        f"The bundle path {_short(text)} is not allowed; name a directory beneath one of the server's "
        "bundle roots, without '..' and symbolic links, in it too."
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")


__all__ = ["FoundBundle", "find_bundle"]
