"""What several commands of ``cmamil client`` take: the options that name a server and say who asks."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from cmamil_sdk.client import Client

TOKEN_VARIABLE = "CMAMIL_TOKEN"

Uri = Annotated[
    str,
    typer.Argument(
        help="file: URI, absolute path, path relative to the server's roots, or upload:ID."
    ),
]
Mpp = Annotated[float | None, typer.Option(help="Microns per pixel of level 0.")]
Model = Annotated[str | None, typer.Option(help="NAME or NAME/VERSION, where there are several.")]
TopK = Annotated[int, typer.Option(min=0, max=1000, help="How many telling tiles.")]


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What the options say; each field is an option of the same name."""

    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")] = "127.0.0.1:50051"
    tls: Annotated[
        bool, typer.Option("--tls", help="Speak TLS; --ca and --certificate mean so as well.")
    ] = False
    ca: Annotated[
        Path | None, typer.Option(help="PEM of the authority that signed the server's certificate.")
    ] = None
    certificate: Annotated[
        Path | None, typer.Option(help="PEM of your own certificate, where the server wants one.")
    ] = None
    key: Annotated[Path | None, typer.Option(help="PEM of its key.")] = None
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"File that holds your token; without it {TOKEN_VARIABLE} counts."),
    ] = None

    def client(self, *, timeout_s: float = 900.0) -> Client:
        """A client of that server.

        Raises:
            FieldInvalid: as :class:`Client`, or the token's file cannot be used.
        """
        from cmamil_sdk.client import Client

        return Client(
            self.server,
            timeout_s=timeout_s,
            tls=self.tls,
            ca=self.ca,
            certificate=self.certificate,
            key=self.key,
            token=self._token(),
        )

    def _token(self) -> str | None:
        from cmamil_sdk.credentials import read_secret
        from cmamil_sdk.errors import FieldInvalid

        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE) or None
        return read_secret(self.token_file, error=FieldInvalid).decode("utf-8", "replace").strip()


def asks_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options above; its first parameter becomes the :class:`ServerOptions`."""
    fields = dataclasses.fields(ServerOptions)
    hints = get_type_hints(ServerOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=field.default,
        )
        for field in fields
    ]
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        options = ServerOptions(**{field.name: given.pop(field.name) for field in fields})
        command(options, **given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    return run


__all__ = ["TOKEN_VARIABLE", "Model", "Mpp", "ServerOptions", "TopK", "Uri", "asks_server"]
