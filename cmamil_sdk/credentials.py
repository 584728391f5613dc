"""Keys, certificates and tokens on disk, and whether they may travel in the clear."""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from pathlib import Path

from cmamil_sdk.errors import CmamilError

_OTHERS = stat.S_IWGRP | stat.S_IRWXO


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host`` stays on this machine: localhost, 127.0.0.0/8, ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def read_secret(path: Path, *, error: type[CmamilError]) -> bytes:
    """A file that only its owner may change, and that others may not read.

    Its owner must be this process's user or root. Raises ``error`` otherwise, and where it cannot be
    read; the message never holds what is in the file.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as problem:
        raise _unreadable(path, problem, error) from problem
    if status.st_uid not in (0, os.geteuid()):
        raise error(f"{path} belongs to another user; make it your own, or root's.")
    if status.st_mode & _OTHERS:
        raise error(
            f"{path} may be read by others, or changed by its group (mode "
            f"{stat.S_IMODE(status.st_mode):o}); type `chmod 640 {path}`."
        )
    return data


def read_key_pair(certificate: Path, key: Path, *, error: type[CmamilError]) -> tuple[bytes, bytes]:
    """PEM of a key and of its certificate chain, in this order, as gRPC takes them.

    Raises ``error`` where a file cannot be read, is no PEM, or the two do not belong together.
    """
    key_pem = read_secret(key, error=error)
    certificate_pem = _read(certificate, error)
    try:
        # The password keeps OpenSSL from asking for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as problem:
        raise error(
            f"{certificate} and {key} are no certificate with its key ({_said(problem)}); give PEM "
            "files that belong together, the key without a password."
        ) from problem
    return key_pem, certificate_pem


def read_authorities(path: Path, *, error: type[CmamilError]) -> bytes:
    """PEM of the certificates of authorities; ``error`` where it cannot be read or has none."""
    data = _read(path, error)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as problem:
        raise error(
            f"{path} holds no certificate of an authority ({_said(problem)}); give a PEM file."
        ) from problem
    return data


def _read(path: Path, error: type[CmamilError]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise _unreadable(path, problem, error) from problem


def _unreadable(path: Path, problem: OSError, error: type[CmamilError]) -> CmamilError:
    return error(f"{path} cannot be read ({problem.strerror}); check its name and permissions.")


def _said(problem: Exception) -> str:
    return (isinstance(problem, ssl.SSLError) and problem.reason) or "it is no PEM"


__all__ = ["is_loopback", "read_authorities", "read_key_pair", "read_secret"]
