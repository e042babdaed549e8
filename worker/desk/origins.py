"""Where requests may come from: the origins of the desk's pages, and the proxies of reviewers.

Requests for other hosts and from other pages are refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origins:
    """`pages` are the origins as a browser sends them, `hosts` the values of the header Host."""

    pages: frozenset[str]
    hosts: frozenset[str]

    @classmethod
    def of(cls, urls: Iterable[str]) -> "Origins":
        """Return the origins of `urls`. Browsers leave a default port out, and proxies may not."""
        pages: set[str] = set()
        hosts: set[str] = set()
        for url in urls:
            parts = urlsplit(url)
            name = bracketed(parts.hostname or "")
            default = DEFAULT_PORTS[parts.scheme]
            port = parts.port or default
            host = name if port == default else f"{name}:{port}"
            pages.add(f"{parts.scheme}://{host}")
            hosts |= {host, f"{name}:{port}"}
        return cls(frozenset(pages), frozenset(hosts))


@dataclass(frozen=True)
class Proxies:
    """The addresses and networks of the proxies that name reviewers."""

    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Proxies":
        """Return the proxies at the addresses and networks in `texts`. Raises ValueError."""
        return cls(tuple(ip_network(text) for text in texts))

    def __contains__(self, address: str | None) -> bool:
        if not address:
            return False
        sender = ip_address(address)
        return any(sender in network for network in self.networks)


def bracketed(host: str) -> str:
    """Return a host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
