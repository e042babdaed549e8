"""Addresses of Redis: that of one server, and that of sentinels, which name the primary."""

import re
import ssl
from typing import Any
from urllib.parse import parse_qsl, urlsplit

SENTINEL_SCHEMES = {"sentinel": "redis", "sentinels": "rediss"}
SENTINEL_PORT = 26379  # the port of a sentinel whose address names none

HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")

Host = tuple[str, int]


def split_sentinels(url: str) -> tuple[str, tuple[Host, ...]]:
    """Return `url` as the address of a server, and the sentinels in it.

    ``sentinels://veil@one,two:26380/0`` becomes ``rediss://veil@one:26379/0`` with two sentinels:
    the user, the database and the options are those of Redis, and the host is that of the first
    sentinel. Celery's form ``sentinel://one;sentinel://two/0`` is accepted too. An address of a
    server is returned unchanged, without sentinels.

    Raises ValueError for sentinels that are no hosts with a valid port.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SENTINEL_SCHEMES:
        return url, ()
    rest = rest.replace(f";{scheme}://", ",")
    end = min((rest.index(mark) for mark in "/?" if mark in rest), default=len(rest))
    user, at, hosts = rest[:end].rpartition("@")
    if "@" in user or "," in user:
        raise ValueError("a user of each sentinel, or a password that is not quoted")
    sentinels = tuple(_host(text) for text in hosts.split(","))
    host, port = sentinels[0]
    location = f"{user}{at}{_bracketed(host)}:{port}"
    return f"{SENTINEL_SCHEMES[scheme]}://{location}{rest[end:]}", sentinels


def join_sentinels(server: str, sentinels: tuple[Host, ...]) -> str:
    """Return the address of `sentinels` as Celery reads it; `server` is that of split_sentinels."""
    parts = urlsplit(server)
    user, at, _ = parts.netloc.rpartition("@")
    addresses = [f"sentinel://{user}{at}{_bracketed(host)}:{port}" for host, port in sentinels]
    return ";".join(f"{address}{parts.path}" for address in addresses)


def tls_options(server: str) -> dict[str, Any]:
    """Return the TLS options of the address `server` for redis-py; none without TLS."""
    parts = urlsplit(server)
    if parts.scheme != "rediss":
        return {}
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    check = options.get("ssl_cert_reqs", "required").upper().removeprefix("CERT_")
    return {**options, "ssl_cert_reqs": getattr(ssl, f"CERT_{check}")}


def host_names(server: str, sentinels: tuple[Host, ...], default_port: int) -> str:
    """Return ``HOST:PORT`` of the server, or of all sentinels, without user and password."""
    if sentinels:
        return ",".join(f"{_bracketed(host)}:{port}" for host, port in sentinels)
    parts = urlsplit(server)
    return f"{_bracketed(parts.hostname or '')}:{parts.port or default_port}"


def _host(text: str) -> Host:
    parts = urlsplit(f"//{text}")
    if not HOST.fullmatch(text) or not parts.hostname or parts.port == 0:
        raise ValueError("no host")
    return parts.hostname, parts.port or SENTINEL_PORT


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
