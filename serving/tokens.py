"""Bearer tokens: a file of hashes, with the name and the roles of each."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cmamil_sdk.credentials import read_secret
from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.wording import counted

LOG = logging.getLogger(__name__)

Role = Literal["predict", "admin", "metrics"]
ROLES: tuple[Role, ...] = get_args(Role)

_LOOK_EVERY_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Caller:
    """Who calls, by the name in the token file, and what they may do."""

    name: str
    roles: frozenset[str]


_NOBODY = Caller("", frozenset())
CALLER: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)
"""Who makes the call that is being answered; without a call nobody, who has no role."""


class TokenFile:
    """Who a token belongs to.

    A line is ``NAME ROLE[,ROLE] SHA256``, the last the token's sha256 in hexadecimal; ``#`` begins a
    comment. A changed file counts within a second. While it is wrong or gone, the last good one does.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigInvalid: it cannot be read, others may read or change it, or a line is wrong.
        """
        self._path = path
        self._seen = self._mark()
        self._looked_s = time.monotonic()
        self._callers = _parse(path)

    def caller(self, token: str) -> Caller | None:
        """The owner of ``token``; None if nobody is."""
        self._look_again()
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for known, caller in self._callers:  # to the end, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _look_again(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        mark = self._mark()
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self._callers = _parse(self._path)
        except ConfigInvalid as problem:
            LOG.error("the tokens stay as they were: %s", problem)
        else:
            LOG.info("read %s anew", counted(len(self._callers), "token"))

    def _mark(self) -> tuple[int, ...] | None:
        """What changes when the file does; None while there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode


def _parse(path: Path) -> tuple[tuple[str, Caller], ...]:
    """Pairs of a token's sha256 and its owner."""
    try:
        text = read_secret(path, error=ConfigInvalid).decode("ascii")
    except UnicodeDecodeError as problem:
        raise ConfigInvalid(
            f"{path} is no token file: it is not plain ASCII; mend it."
        ) from problem
    found: dict[str, Caller] = {}
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        digest, caller = _entry(words, where)
        if digest in found or caller.name in names:
            raise ConfigInvalid(
                f"{where}: this name or token is there already; remove one of them."
            )
        found[digest] = caller
        names.add(caller.name)
    if not found:
        raise ConfigInvalid(f"{path} holds no token, so nobody could call; add a line.")
    return tuple(found.items())


def _entry(words: list[str], where: str) -> tuple[str, Caller]:
    """One line; messages repeat no word of it that could be a token by mistake."""
    if len(words) != 3 or not _SHA256.fullmatch(words[2]):
        raise ConfigInvalid(
            f"{where}: not NAME ROLE[,ROLE] SHA256 (64 hexadecimal digits, lower case); mend the line."
        )
    name, roles = words[0], words[1].split(",")
    if not _NAME.fullmatch(name):
        raise ConfigInvalid(
            f"{where}: the name must be up to 64 letters, digits, '.', '_' and '-'; mend the line."
        )
    if not set(roles) <= set(ROLES):
        raise ConfigInvalid(f"{where}: roles are {', '.join(ROLES)}; mend the line.")
    return words[2], Caller(name, frozenset(roles))


__all__ = ["CALLER", "ROLES", "Caller", "Role", "TokenFile"]
