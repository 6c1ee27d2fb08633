import asyncio

import httpcore2
import pytest

from pixelrec_jax.ingest import addresses
from pixelrec_jax.ingest.addresses import RefusedError


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "8.8.8.8", "168.63.129.17", "223.255.255.254", "2606:4700::6810:85e5"],
)
def test_hosts_of_the_internet_are_public(address):
    assert addresses.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",  # shared, behind a provider's NAT
        "127.0.0.1",
        "127.8.8.8",
        "169.254.169.254",  # metadata of cloud machines
        "172.16.0.1",
        "192.168.1.1",
        "192.0.0.9",  # protocols of the IETF
        "192.0.0.192",
        "192.0.2.1",  # documentation
        "192.31.196.1",  # AS112
        "192.88.99.1",  # relays of 6to4
        "168.63.129.16",  # Azure's own host
        "100.100.100.200",  # metadata of Alibaba's machines
        "198.18.0.1",  # benchmarks
        "224.0.0.251",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible
        "::ffff:8.8.8.8",  # mapped, even of a public address
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",  # NAT64
        "2002:7f00:1::",  # 6to4
        "2001:0:53aa:64c:0:fbff:80ff:fffe",  # Teredo
        "2001:db8::1",
        "2001:20::1",  # ORCHID
        "3fff::1",  # documentation
        "3fff:fff::1",
        "2620:4f:8000::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_all_other_addresses_are_not(address):
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (" https://images.example/a b.jpg?x=1#y ", "images.example"),
        ("http://IMAGES.example:8080/a.jpg", "images.example"),
        ("https://bücher.example/", "xn--bcher-kva.example"),
        ("http://93.184.216.34/a.jpg", "93.184.216.34"),
        ("http://[2606:4700::1]/a.jpg", "2606:4700::1"),
    ],
)
def test_urls_of_pictures_pass(text, host):
    assert addresses.check_url(text).raw_host.decode() == host


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an http or https URL"),
        ("i1.jpg", "not an http or https URL"),
        ("//images.example/a.jpg", "not an http or https URL"),
        ("http:///a.jpg", "not an http or https URL"),
        ("file:///etc/passwd", "not an http or https URL"),
        ("ftp://images.example/a.jpg", "not an http or https URL"),
        ("gopher://images.example/", "not an http or https URL"),
        ("javascript:alert(1)", "not an http or https URL"),
        ("http://images.example:99999/", "port 99999"),
        ("http://[::1/a.jpg", "not a URL"),
        ("http://a\x00b/", "not a URL"),
        ("http://user:secret@images.example/", "user name"),
        ("http://images.example@127.0.0.1/", "user name"),
        ("http://images.example:25/", "port 25"),
        ("http://images.example:6379/", "port 6379"),
        ("http://2130706433/", "unusual spelling"),
        ("http://0x7f000001/", "unusual spelling"),
        ("http://0177.0.0.1/", "not a URL"),
        ("http://127.1/", "unusual spelling"),
        ("http://127.0.0.1./", "unusual spelling"),
    ],
)
def test_other_urls_are_refused(text, reason):
    with pytest.raises(RefusedError, match=reason):
        addresses.check_url(text)


def test_ones_own_hosts_may_have_any_port():
    assert addresses.check_url("http://localhost:6379/", allowed=["localhost"]).port == 6379


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch):
    connected, lookups = [], []

    async def connect(self, host, *rest):
        connected.append(host)
        raise httpcore2.ConnectError("nobody there")

    async def resolver(host, port):
        lookups.append(host)
        return ["93.184.216.34", "2606:4700::1"]

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", connect)
    network = addresses.PublicNetwork(resolver=resolver)
    with pytest.raises(httpcore2.ConnectError, match="nobody there"):
        asyncio.run(network.connect_tcp("images.example", 80))
    assert connected == ["93.184.216.34", "2606:4700::1"]
    assert lookups == ["images.example"]


def test_one_private_address_of_a_name_refuses_it(monkeypatch):
    async def resolver(host, port):
        return ["93.184.216.34", "10.0.0.1"]

    async def connect(*_):
        pytest.fail("connected")

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", connect)
    network = addresses.PublicNetwork(allowed=["other.example"], resolver=resolver)
    with pytest.raises(RefusedError, match=r"images.example \(10.0.0.1\)"):
        asyncio.run(network.connect_tcp("images.example", 80))


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1"])
def test_the_systems_resolver_leads_nowhere_private(host):
    with pytest.raises(RefusedError, match="not on the public internet"):
        asyncio.run(addresses.PublicNetwork().connect_tcp(host, 80))


def test_a_name_that_is_none_is_refused():
    with pytest.raises(RefusedError, match="not a host name"):
        asyncio.run(addresses.resolve("a" * 70 + ".example", 80))
