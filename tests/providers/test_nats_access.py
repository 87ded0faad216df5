"""NATS: who may connect, and how: user and password, token, NKey, credentials, TLS with certificates on both sides."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey

from sqla_events.errors import ConfigError, ProviderUnavailable
from sqla_events.provider import Failure
from sqla_events.providers.nats import connection
from sqla_events.testing.transport import consuming, eventually, hold
from tests.providers.nats_support import batch, ids, messages, opened, provider, stored_ids
from tests.servers import nats as nats_servers
from tests.servers.nats import NatsServer


@contextmanager
def configured(configuration: str, local_servers: bool) -> Iterator[NatsServer]:
    """A server with this in its file."""
    server = NatsServer(nats_servers.local_binary() if local_servers else None, configuration=configuration)
    server.start()
    try:
        yield server
    finally:
        server.remove()


async def works(url: str, **settings: Any) -> None:
    """Publishing and looking."""
    async with opened(url, **settings) as one:
        sent = messages(3)
        await one.publish(batch(sent))
        assert (await stored_ids(one))[-3:] == ids(sent)


async def refused(url: str, reason: str, **settings: Any) -> None:
    one = provider(url, **settings)
    with pytest.raises(ProviderUnavailable, match=reason) as error:
        await one.open()
    assert "hunter" not in str(error.value)
    await one.close()


async def test_user_and_password(local_servers: bool) -> None:
    """As settings, or in the URL."""
    with configured('authorization { user: "app", password: "hunter2" }', local_servers) as server:
        await works(server.url, user="app", password="hunter2")
        await works(server.url.replace("//", "//app:hunter2@"))
        await refused(server.url, "(?i)authorization", user="app", password="hunter3")
        await refused(server.url, "(?i)authorization")


async def test_a_token(local_servers: bool) -> None:
    with configured('authorization { token: "hunter2" }', local_servers) as server:
        await works(server.url, token="hunter2")
        await refused(server.url, "(?i)authorization", token="hunter3")


# Keys ---------------------------------------------------------------------------------------------------------------

PREFIX = {"operator": 14 << 3, "account": 0, "user": 20 << 3, "seed": 18 << 3}
"""First bytes of encoded keys, which make them begin with O, A, U and S."""


class Key:
    """An Ed25519 key as NATS writes it."""

    def __init__(self, kind: str) -> None:
        self._signing = SigningKey.generate()
        public = bytes([PREFIX[kind]]) + bytes(self._signing.verify_key)
        first, second = PREFIX["seed"] | PREFIX[kind] >> 5, (PREFIX[kind] & 31) << 3
        self.public = _text(public)
        self.seed = _text(bytes([first, second]) + bytes(self._signing))

    def sign(self, kind: str, subject: str, **claims: Any) -> str:
        """A JWT about somebody."""
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {"jti": "x", "iat": 1700000000, "iss": self.public, "name": kind, "sub": subject, "nats": {"type": kind, "version": 2, **claims}}
        text = f"{_url(json.dumps(head).encode())}.{_url(json.dumps(body).encode())}"
        return f"{text}.{_url(self._signing.sign(text.encode()).signature)}"


def _text(raw: bytes) -> str:
    import binascii

    checksum = binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(raw + checksum).decode().rstrip("=")


def _url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


async def test_an_nkey(tmp_path: Path, local_servers: bool) -> None:
    """Its seed is in a file."""
    key, other = Key("user"), Key("user")
    assert nkeys.from_seed(bytearray(key.seed.encode())).public_key.decode() == key.public
    (tmp_path / "seed").write_text(key.seed)
    (tmp_path / "other").write_text(other.seed)
    with configured(f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}", local_servers) as server:
        await works(server.url, nkey_seed=str(tmp_path / "seed"))
        await refused(server.url, "(?i)authorization", nkey_seed=str(tmp_path / "other"))


async def test_credentials(tmp_path: Path, local_servers: bool) -> None:
    """A JWT and its key, in the file that nsc makes."""
    operator, system, account, user = Key("operator"), Key("account"), Key("account"), Key("user")
    free = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    limits = {**free, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    about_account = operator.sign("account", account.public, limits=limits)
    about_user = account.sign("user", user.public, subs=-1, data=-1, payload=-1)
    file = tmp_path / "app.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{about_user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    configuration = f"""
        operator: {operator.sign("operator", operator.public)}
        resolver: MEMORY
        system_account: {system.public}
        resolver_preload: {{
            {account.public}: {about_account}
            {system.public}: {operator.sign("account", system.public, limits=free)}
        }}
    """
    with configured(configuration, local_servers) as server:
        await works(server.url, credentials=str(file))
        await refused(server.url, "(?i)authorization")


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("credentials", "nkey_seed"):
        with pytest.raises(ConfigError, match=f"nats.{name} is"):
            await provider("nats://127.0.0.1:1", **{name: str(tmp_path / "nothing")}).open()


async def test_a_server_that_is_not_there_is_told_by_the_error_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has no logging set up would see it twice, with Python's last resort."""
    await refused("nats://127.0.0.1:1", "NATS does not answer: ConnectionRefusedError")
    assert [record.message for record in caplog.records if record.name == "sqla_events"] == []


# TLS ----------------------------------------------------------------------------------------------------------------


class Authority:
    """Issues certificates for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        self.file = str(folder / "ca.pem")
        ca = x509.BasicConstraints(ca=True, path_length=0)
        identity = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        signs = x509.KeyUsage(*(name in ("sign", "crl") for name in ("d", "c", "k", "da", "ka", "sign", "crl", "e", "de")))
        builder = self._builder(self._name, self._key).add_extension(ca, True).add_extension(identity, False).add_extension(signs, True)
        Path(self.file).write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=1))

    def issue(self, name: str) -> tuple[str, str]:
        """Paths of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = builder.add_extension(address, False).add_extension(issuer, False).sign(self._key, hashes.SHA256())
        paths = (self._folder / f"{name}.pem", self._folder / f"{name}.key")
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return str(paths[0]), str(paths[1])


async def test_tls(tmp_path: Path, local_servers: bool) -> None:
    """The server's certificate is checked, and ours where it asks for one."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    own, own_key = authority.issue("client")
    tls = f'cert_file: "{certificate}", key_file: "{key}", timeout: 10'
    with configured(f"tls {{ {tls} }}", local_servers) as server:
        url = server.url.replace("nats://", "tls://")
        await works(url, tls_ca=authority.file)
        await works(server.url, tls_ca=authority.file)
        await refused(url, "(?i)certificate")
    with configured(f'tls {{ {tls}, ca_file: "{authority.file}", verify: true }}', local_servers) as server:
        await works(server.url, tls_ca=authority.file, tls_certificate=own, tls_key=own_key)
        await refused(server.url, "NATS does not answer", tls_ca=authority.file)


async def test_rights_that_are_enough(local_servers: bool) -> None:
    """Those that docs/nats.md names: publish, consume, bury and redrive."""
    publish = '["events.>", "$JS.API.>", "$JS.ACK.>", "$KV.SQLA_EVENTS.>", "SQLA_EVENTS_DEAD.>"]'
    users = f'{{ user: "app", password: "x", permissions: {{ publish: {publish}, subscribe: ["_INBOX.>"] }} }}'
    with configured(f"authorization {{ users: [ {users} ] }}", local_servers) as server:
        async with opened(server, user="app", password="x") as one, consuming(one, hold) as stream:
            await one.publish(batch(messages(1)))
            (delivery,) = await stream.take(1)
            delivery.retry(Failure("s", "no", "", 1), 1)
            delivery.bury(Failure("s", "no", "", 2))
            delivery.ack()

            async def buried() -> bool:
                return len(await one.dead_letters.list()) == 1

            await eventually(buried)
            assert await one.dead_letters.redrive() == 1
            await stream.take(2)


async def test_rights_that_are_missing_are_told(local_servers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may not use the API of JetStream."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)
    users = '{ user: "app", password: "x", permissions: { publish: ["events.>"], subscribe: ["_INBOX.>"] } }'
    with configured(f"authorization {{ users: [ {users} ] }}", local_servers) as server:
        await refused(server.url, "(?i)no answer at .*permissions violation", user="app", password="x")
