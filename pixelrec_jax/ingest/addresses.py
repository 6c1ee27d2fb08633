"""Protection against URLs of strangers: connections go only to addresses on the public internet."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable

import httpcore2
import httpx2

# On other ports there are services that are not web servers, such as mail.
PORTS = (80, 443, 8080, 8443)
_UNICAST = ipaddress.ip_network("2000::/3")
# Python's own table differs by version. These are the ranges of the IANA's registries of special
# addresses, and 168.63.129.16, which serves every machine of Azure.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("168.63.129.16/32", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24"),
        *("192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
)
# Resolvers read "0x7f.1", "2130706433" and "0177.0.0.1" as IPv4 addresses.
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")

Resolver = Callable[[str, int], Awaitable[list[str]]]


class RefusedError(Exception):
    """A file is not fetched, and another try would not help; the message says why."""


def is_public(address: str) -> bool:
    """Returns whether an IP address belongs to a host on the public internet.

    Private, shared, loopback, link-local, multicast and reserved addresses do not. In IPv6 only
    global unicast is public, except 6to4 and Teredo, which contain an IPv4 address. IPv4 addresses
    that are mapped or translated to IPv6 (NAT64) are not global unicast.
    """
    ip = ipaddress.ip_address(address)
    if not ip.is_global or any(ip in network for network in _SPECIAL):
        return False
    return ip.version == 4 or ip in _UNICAST


def check_url(text: str, *, allowed: Collection[str] = ()) -> httpx2.URL:
    """Returns a URL after a check of its text; its address is checked when it is connected.

    Hosts in `allowed` may have any port. Raises `RefusedError` for schemes other than http and
    https, credentials, unusual ports, and addresses in unusual spelling.
    """
    try:
        url = httpx2.URL(text.strip())
    except (httpx2.InvalidURL, ValueError) as error:
        raise RefusedError(f"not a URL: {error}") from None
    host = url.raw_host.decode("ascii")
    if url.scheme not in ("http", "https") or not host:
        raise RefusedError("not an http or https URL")
    if url.userinfo:
        raise RefusedError("URL with a user name")
    if host in allowed:
        return url
    if url.port is not None and url.port not in PORTS:
        raise RefusedError(f"port {url.port} (may be {', '.join(map(str, PORTS))})")
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2].lower()) and not _is_literal(host):
        raise RefusedError(f"{host} is an IP address in unusual spelling")
    return url


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def resolve(host: str, port: int) -> list[str]:
    """Returns the addresses of a name; raises `RefusedError` if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise httpcore2.ConnectError(f"{host} cannot be resolved at present") from None
        raise RefusedError(f"{host} does not resolve") from None
    except UnicodeError:
        raise RefusedError(f"{host} is not a host name") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PublicNetwork(httpcore2.AsyncNetworkBackend):
    """Opens connections only to public addresses and to the hosts in `allowed`.

    It resolves a name, checks all its addresses and connects to one of them by number, so that no
    second lookup can lead elsewhere (DNS rebinding). Every socket is opened here. So redirects,
    literal addresses and reused connections are checked as well.
    """

    def __init__(self, *, allowed: Collection[str] = (), resolver: Resolver = resolve):
        self._allowed = frozenset(allowed)
        self._resolver = resolver
        network = httpcore2.AnyIOBackend()
        assert isinstance(network, httpcore2.AsyncNetworkBackend), "httpx2 installs anyio"
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connects to the first address that answers; `RefusedError` if any is not public."""
        found = await self._resolver(host, port)
        for address in found:
            if host not in self._allowed and not is_public(address):
                at = host if host == address else f"{host} ({address})"
                raise RefusedError(f"{at} is not on the public internet")
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in found:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Waits, before a connection is tried again."""
        await self._network.sleep(seconds)
