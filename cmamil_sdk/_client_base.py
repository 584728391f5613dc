"""What both clients are: an address, a time limit, and who asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmamil_sdk._client_connection import Connection
from cmamil_sdk._client_errors import Refusal, refusal_of


class BaseClient:
    """Where a client connects to and as whom."""

    def __init__(
        self,
        server: str = "127.0.0.1:50051",
        *,
        timeout_s: float = 900.0,
        tls: bool = False,
        ca: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        token: str | None = None,
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            server: ``HOST:PORT``.
            timeout_s: how long a prediction or an inspection may take in all.
            tls: speak TLS; ``ca`` or ``certificate`` mean so as well.
            ca: PEM of the authority that signed the server's certificate; without it those that
                gRPC brings along.
            certificate: PEM of this client's own certificate, for servers that want one.
            key: PEM of its key.
            token: sent with each call; never in the clear to another machine.

        Raises:
            FieldInvalid: ``server`` is not ``HOST:PORT``, a file cannot be used, or the token would
                travel in the clear.
        """
        self._connection = Connection(server, tls, ca, certificate, key, token)
        self._credentials = self._connection.credentials()
        self.server = server
        self.timeout_s = timeout_s
        self._open()

    def _open(self) -> None:
        """Make what the calls need; nothing connects yet."""

    def _refusal(self, problem: Any) -> Refusal:
        """The typed error of a failed call."""
        return refusal_of(problem, self.server, secure=self._connection.secure)


__all__ = ["BaseClient"]
