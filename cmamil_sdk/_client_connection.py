"""The client's connection: its address, TLS, and the token that goes with each call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from cmamil_sdk.credentials import is_loopback, read_authorities, read_key_pair
from cmamil_sdk.errors import FieldInvalid

_MAX_MESSAGE_BYTES = 16 * 2**20
_TOKEN = re.compile(r"[!-~]{1,4096}")


@dataclass(frozen=True)
class Connection:
    """Where a client connects to and as whom; checked when it is made.

    ``ca``, ``certificate`` and ``key`` are paths of PEM files; either means TLS.

    Raises:
        FieldInvalid: no ``HOST:PORT``, a file that cannot be used, a certificate without its key, or
            a token that is malformed or would travel in the clear.
    """

    server: str
    tls: bool = False
    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        host, colon, port = self.server.rpartition(":")
        if not (colon and host and port.isdecimal()):
            raise FieldInvalid(f"{self.server!r} is no server address; write HOST:PORT.")
        if (self.certificate is None) != (self.key is None):
            raise FieldInvalid("A client's certificate and its key go together; give both.")
        if self.token is None:
            return
        if not _TOKEN.fullmatch(self.token):
            raise FieldInvalid("The token is empty, too long, or holds blanks; give it as it is.")
        if not self.secure and not is_loopback(host):
            raise FieldInvalid(
                f"The token would travel to {host} in the clear; connect with TLS, or without token."
            )

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.tls or self.ca is not None or self.certificate is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For TLS, read from the files; None without TLS.

        Raises:
            FieldInvalid: a file cannot be used.
        """
        if not self.secure:
            return None
        authorities: bytes | None = None
        pair: tuple[bytes | None, bytes | None] = (None, None)
        if self.ca is not None:
            authorities = read_authorities(Path(self.ca), error=FieldInvalid)
        if self.certificate is not None and self.key is not None:
            certificate, key = Path(self.certificate), Path(self.key)
            pair = read_key_pair(certificate, key, error=FieldInvalid)
        return grpc.ssl_channel_credentials(authorities, *pair)

    def channel(self, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        """A channel, which connects at the first call."""
        if credentials is None:
            return grpc.insecure_channel(self.server, options=self._options())
        return grpc.secure_channel(self.server, credentials, options=self._options())

    def aio_channel(self, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        """The same for the event loop that runs."""
        if credentials is None:
            return grpc.aio.insecure_channel(self.server, options=self._options())
        return grpc.aio.secure_channel(self.server, credentials, options=self._options())

    def _options(self) -> list[tuple[str, int]]:
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.enable_retries", 0),
        ]
        if is_loopback(self.server.rpartition(":")[0]):
            options.append(("grpc.enable_http_proxy", 0))
        return options


__all__ = ["Connection"]
