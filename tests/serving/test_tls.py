"""TLS and mutual TLS: who trusts whom, and what each side is told when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.client import Client
from cmamil_sdk.credentials import is_loopback
from cmamil_sdk.errors import CertificateRefused, ConfigInvalid, FieldInvalid, ServerUnreachable
from cmamil_sdk.serving.config import ServerConfig

from .certificates import Pair, issue
from .listening import listening


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Pair:
    return issue(folder, "authority", authority=True)


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Pair:
    """An authority that nobody trusts."""
    return issue(folder, "stranger", authority=True)


def serving(config: ServerConfig, pair: Pair, **more: Any) -> ServerConfig:
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    return ServerConfig.parse(config.model_dump() | files | more)


@pytest.fixture(scope="module")
def address(config: ServerConfig, folder: Path, authority: Pair) -> Iterator[str]:
    with listening(serving(config, issue(folder, "server", authority))) as address:
        yield address


@pytest.fixture(scope="module")
def mutual(config: ServerConfig, folder: Path, authority: Pair) -> Iterator[str]:
    """A server that wants a certificate of its clients."""
    pair = issue(folder, "mutual", authority)
    with listening(serving(config, pair, tls_client_ca=authority.certificate)) as address:
        yield address


def test_a_server_with_a_certificate_of_the_authority(address: str, authority: Pair) -> None:
    with Client(address, ca=authority.certificate) as client:
        assert client.health() == "NOT_SERVING"
        assert client.server_info().version


def test_an_authority_that_did_not_sign(address: str, stranger: Pair) -> None:
    refused = pytest.raises(CertificateRefused, match="unable to get local issuer certificate")
    with Client(address, ca=stranger.certificate) as client, refused:
        client.health()
    with Client(address, tls=True) as client, refused:
        client.server_info()


@pytest.mark.parametrize(
    ("name", "details", "said"),
    [
        ("expired", {"days": (-9, -1)}, "certificate has expired"),
        ("early", {"days": (1, 9)}, "not yet valid"),
        ("elsewhere", {"host": "10.1.2.3"}, "is for another host"),
        ("own", {"by": None}, "self signed certificate"),
    ],
)
def test_a_server_that_is_not_to_be_trusted(
    config: ServerConfig,
    folder: Path,
    authority: Pair,
    name: str,
    details: dict[str, Any],
    said: str,
) -> None:
    pair = issue(folder, name, **({"by": authority} | details))
    with (
        listening(serving(config, pair)) as address,
        Client(address, ca=authority.certificate) as client,
        pytest.raises(CertificateRefused, match=said),
    ):
        client.server_info()


def test_one_side_without_tls_is_told_so(
    address: str, config: ServerConfig, authority: Pair
) -> None:
    with Client(address) as client, pytest.raises(ServerUnreachable, match="may want TLS"):
        client.health()
    with (
        listening(config) as plain,
        Client(plain, ca=authority.certificate) as client,
        pytest.raises(ServerUnreachable, match="does not speak TLS"),
    ):
        client.health()


def test_mutual_tls_lets_in_whom_the_authority_signed(
    mutual: str, folder: Path, authority: Pair, stranger: Pair
) -> None:
    def ask(**files: Path) -> str:
        with Client(mutual, ca=authority.certificate, **files) as client:
            return client.health()

    pair = issue(folder, "client", authority)
    assert ask(certificate=pair.certificate, key=pair.key) == "NOT_SERVING"
    expired = issue(folder, "expired-client", authority, days=(-9, -1))
    foreign = issue(folder, "foreign-client", stranger)
    for refused in (expired, foreign):
        with pytest.raises(CertificateRefused, match="another than the one it got"):
            ask(certificate=refused.certificate, key=refused.key)
    with pytest.raises(CertificateRefused, match="may want a client's certificate"):
        ask()


def test_files_that_are_no_certificates(
    config: ServerConfig, folder: Path, authority: Pair, stranger: Pair, tmp_path: Path
) -> None:
    pair = issue(folder, "pair", authority)
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    junk.chmod(0o600)
    wrong = [
        (pair.certificate, stranger.key, None, "no certificate with its key"),
        (junk, pair.key, None, "no certificate with its key"),
        (pair.certificate, junk, None, "no certificate with its key"),
        (tmp_path / "absent.crt", pair.key, None, "cannot be read"),
        (pair.certificate, tmp_path / "absent.key", None, "cannot be read"),
        (pair.certificate, pair.key, junk, "holds no certificate of an authority"),
    ]
    for certificate, key, ca, said in wrong:
        settings = serving(config, pair, tls_certificate=certificate, tls_key=key, tls_client_ca=ca)
        with pytest.raises(ConfigInvalid, match=said), listening(settings):
            pass
        with pytest.raises(FieldInvalid, match=said):
            Client(certificate=certificate, key=key, ca=ca)


def test_a_key_that_others_may_read(config: ServerConfig, folder: Path, authority: Pair) -> None:
    pair = issue(folder, "open", authority)
    pair.key.chmod(0o644)
    with pytest.raises(ConfigInvalid, match="chmod 640"), listening(serving(config, pair)):
        pass
    pair.key.chmod(0o640)
    with listening(serving(config, pair)) as address:
        assert address


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host": "0.0.0.0"}, "whoever reaches 0.0.0.0 may predict"),
        ({"host": "::"}, "whoever reaches :: may predict"),
        ({"host": "127.0.0.1.example.org"}, "whoever reaches"),
        ({"host": "0.0.0.0", "insecure": True, "tokens": "tokens.txt"}, "in the clear"),
        ({"tls_certificate": "a.crt"}, "go together"),
        ({"tls_key": "a.key"}, "go together"),
        ({"tls_client_ca": "a.crt"}, "needs TLS"),
    ],
    ids=str,
)
def test_settings_that_would_open_too_much(
    config: ServerConfig, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        ServerConfig.parse(config.model_dump() | change)


def test_what_is_allowed_beyond_this_machine(
    config: ServerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    pair = {"tls_certificate": "a.crt", "tls_key": "a.key", "tokens": "tokens.txt"}
    ServerConfig.parse(config.model_dump() | {"host": "0.0.0.0"} | pair)
    settings = ServerConfig.parse(config.model_dump() | {"host": "0.0.0.0", "insecure": True})
    with listening(settings) as address, Client(address) as client:
        assert client.health() == "NOT_SERVING"
    assert "open to the network, without TLS" in caplog.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("127.0.0.1.example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
