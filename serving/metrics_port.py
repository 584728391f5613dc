"""The page that Prometheus reads: ``GET /metrics``, on a port of its own, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from prometheus_client.exposition import choose_encoder

from cmamil_sdk.errors import ConfigInvalid

from .config import ServerConfig
from .metrics import Metrics
from .tokens import TokenFile

_HEAD_BYTES = 8192
_PATIENCE_S = 5.0
_END_OF_HEAD = b"\r\n\r\n"
_SCHEME = "bearer "


class MetricsPort:
    """Serves the metrics over HTTP, or HTTPS where the server speaks TLS.

    Where the server knows tokens, a reader needs one with the role ``metrics``.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, tokens: TokenFile | None) -> None:
        self._config, self._metrics, self._tokens = config, metrics, tokens
        self._server: asyncio.Server | None = None
        self.port: int | None = None

    async def open(self) -> None:
        """Listen.

        Raises:
            ConfigInvalid: the address cannot be used.
        """
        host, port = self._config.metrics_host, self._config.metrics_port
        try:
            self._server = await asyncio.start_server(
                self._answer, host, port, limit=_HEAD_BYTES, ssl=_tls(self._config)
            )
        except OSError as problem:
            raise ConfigInvalid(
                f"The metrics cannot be served on {host}:{port} ({problem.strerror}); choose another "
                "metrics_port or metrics_host, or stop what listens there."
            ) from problem
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, TimeoutError)
        with contextlib.suppress(*gone):
            async with asyncio.timeout(_PATIENCE_S):
                writer.write(self._response(await reader.readuntil(_END_OF_HEAD)))
                await writer.drain()
        writer.close()

    def _response(self, request: bytes) -> bytes:
        line, _, rest = request.partition(b"\r\n")
        words = line.split(b" ")
        try:
            headers = http.client.parse_headers(io.BytesIO(rest))
        except http.client.HTTPException:
            return _message(HTTPStatus.BAD_REQUEST)
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _message(HTTPStatus.BAD_REQUEST)
        if words[1].partition(b"?")[0] != b"/metrics":
            return _message(HTTPStatus.NOT_FOUND)
        if words[0] not in (b"GET", b"HEAD"):
            return _message(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})
        return self._page(headers, with_body=words[0] == b"GET")

    def _page(self, headers: http.client.HTTPMessage, *, with_body: bool) -> bytes:
        refusal = self._refusal(headers.get_all("authorization", []))
        if refusal is not None:
            return _message(refusal, {"WWW-Authenticate": "Bearer"})
        encode, kind = choose_encoder(headers.get("accept", ""))
        page = encode(self._metrics.registry)
        message = _message(HTTPStatus.OK, {"Content-Type": kind}, page)
        return message if with_body else message.removesuffix(page)

    def _refusal(self, given: list[str]) -> HTTPStatus | None:
        """Why a reader with these Authorization headers is refused; None if it is not."""
        if self._tokens is None:
            return None
        if len(given) != 1 or not given[0].lower().startswith(_SCHEME):
            return HTTPStatus.UNAUTHORIZED
        caller = self._tokens.caller(given[0][len(_SCHEME) :].strip())
        if caller is None:
            return HTTPStatus.UNAUTHORIZED
        return None if "metrics" in caller.roles else HTTPStatus.FORBIDDEN


def _message(
    status: HTTPStatus, headers: Mapping[str, str] = MappingProxyType({}), body: bytes = b""
) -> bytes:
    sent = {"Content-Length": str(len(body)), "Connection": "close", **headers}
    head = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{k}: {v}" for k, v in sent.items())]
    return "\r\n".join(head).encode("ascii") + _END_OF_HEAD + body


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    """The server's own certificate and authorities; it has checked them when it opened its port."""
    if config.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls_client_ca)
    context.load_cert_chain(config.tls_certificate, config.tls_key)
    if config.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


__all__ = ["MetricsPort"]
