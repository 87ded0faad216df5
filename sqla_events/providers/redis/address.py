"""From settings to a client: one server, Sentinel, or a cluster; over TCP, TLS or a unix socket.

    redis://user:password@host:6379/0                       rediss:// for TLS, unix:///path for a socket
    redis+sentinel://host:26379,host2:26379/service/0       the primary that the sentinels name, also after a fail-over
    redis+cluster://host:7000,host2:7001                    any nodes of the cluster

``rediss+sentinel`` and ``rediss+cluster`` are the same over TLS. What redis-py understands in the query of a URL
(``ssl_ca_certs``, ``ssl_cert_reqs``, ``socket_timeout`` …) works with all of them; ``sentinel_username`` and
``sentinel_password`` are for the sentinels themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from hiredis import pack_command as pack
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ...config import RedisSettings
from ...errors import ConfigError

OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "socket_connect_timeout": 5.0,
    "socket_timeout": 15.0,
    "socket_keepalive": True,
}
"""Seconds, unless a URL says otherwise. The last is longer than anything that we let the server wait for."""
PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}


def client(settings: RedisSettings) -> Any:
    """A client that connects when it is used.

    :raises ConfigError: for a URL that cannot be understood; its password is not repeated.
    """
    credentials = {
        name: value for name in ("username", "password") if (value := getattr(settings, name)) is not None
    }
    if settings.url is None:
        return _single(OPTIONS | credentials | {"host": settings.host, "port": settings.port, "db": settings.db})
    try:
        return _of_url(urlsplit(settings.url), credentials)
    except ValueError as error:
        raise ConfigError(f"redis.url cannot be used: {error}") from None


def clients(client: Any) -> list[Any]:
    """What has to be closed: the client, and those that ask the sentinels for it."""
    pool = getattr(client, "connection_pool", None)
    return [client, *getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())]


def shown(settings: RedisSettings) -> str:
    """Where it connects to, without passwords."""
    if settings.url is None:
        return f"{settings.host}:{settings.port}"
    parts = urlsplit(settings.url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def _of_url(parts: SplitResult, credentials: dict[str, Any]) -> Any:
    scheme, _, kind = parts.scheme.partition("+")
    if scheme == "unix" and not kind:
        return _single(OPTIONS | credentials | _options(parts.geturl()))
    if scheme not in ("redis", "rediss") or kind not in PORTS:
        raise ValueError(f"its scheme is {parts.scheme!r}; it must be redis, rediss, unix, or with +sentinel or +cluster")
    query = dict(parse_qsl(parts.query))
    sentinel = {name[9:]: query.pop(name) for name in ("sentinel_username", "sentinel_password") if name in query}
    path, service = parts.path, ""
    if kind == "sentinel":
        service, _, path = parts.path.strip("/").partition("/")
    user, at, addresses = parts.netloc.rpartition("@")
    hosts = [_host(address, PORTS[kind]) for address in addresses.split(",")]
    plain = f"{scheme}://{user}{at}{addresses.split(',')[0]}/{path.strip('/')}?{urlencode(query)}"
    options = OPTIONS | credentials | _options(plain)
    if kind == "sentinel":
        return _sentinel(hosts, service, sentinel, options)
    return _cluster(hosts, options) if kind == "cluster" else _single(options)


def _options(url: str) -> dict[str, Any]:
    options = dict(parse_url(url))
    kind = options.pop("connection_class", None)
    if kind is SSLConnection:
        options["ssl"] = True
    if kind is UnixDomainSocketConnection:
        options["unix_socket_path"] = options.pop("path", "")
    return options


def _host(address: str, port: int) -> tuple[str, int]:
    host = urlsplit(f"//{address}")
    if not host.hostname:
        raise ValueError(f"it names no host in {address!r}")
    return host.hostname, host.port or port


def _single(options: dict[str, Any]) -> Any:
    client = Redis(**options, retry=Retry(NoBackoff(), 0))  # whoever calls knows whether to try again
    pool: Any = client.connection_pool
    pool.connection_class = packed_by_hiredis(pool.connection_class)
    return client


@cache
def packed_by_hiredis(kind: Any) -> Any:
    """That class of connections, but hiredis writes their commands, as it does for redis-py's own blocking ones.

    A relay's batch is one command of thousands of arguments, of which redis-py's asyncio connections write each in
    Python: that was a third of a relay's time.
    """

    def pack_command(connection: Any, *arguments: Any) -> list[bytes]:
        name, *rest = arguments
        if not {str, bytes, int}.issuperset(map(type, rest)):
            return kind.pack_command(connection, *arguments)  # type: ignore[no-any-return]
        return [pack((*name.split(), *rest))]

    return type(kind.__name__, (kind,), {"pack_command": pack_command})


def _sentinel(hosts: list[tuple[str, int]], service: str, own: dict[str, Any], options: dict[str, Any]) -> Any:
    if not service:
        raise ValueError("it names no service: redis+sentinel://host:26379/service")
    taken = {name: value for name, value in options.items() if name not in ("host", "port")}
    about = {name: value for name, value in taken.items() if name.startswith(("ssl", "socket", "protocol"))}
    make: Any = Sentinel
    return make(hosts, sentinel_kwargs=about | own, **taken, retry=Retry(NoBackoff(), 0)).master_for(service)


def _cluster(hosts: list[tuple[str, int]], options: dict[str, Any]) -> Any:
    if options.pop("db", 0):
        raise ValueError("a cluster has database 0 alone")
    taken = {name: value for name, value in options.items() if name not in ("host", "port")}
    return RedisCluster(startup_nodes=[ClusterNode(*host) for host in hosts], **taken)
