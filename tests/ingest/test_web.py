"""When a host is asked again: its own pace, and what Retry-After says."""

import asyncio

import pytest

from pixelrec_jax.ingest import web
from tests.ingest.clock import FakeClock


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("²", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),  # past
        ("Thu, 01 Jan 2099 00:00:00 +99999999999999", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert web._seconds(header) == seconds


def test_every_host_has_its_own_pace():
    clock = FakeClock()
    pace = web.Pace(4.0, web.Clock(clock.now, clock.sleep))
    starts = {"a": [], "b": []}

    async def request(host):
        await pace.turn(host)
        starts[host].append(clock.now())

    async def requests():
        for host in "aaaaabbb":
            await request(host)

    asyncio.run(requests())
    assert starts == {"a": [0, 0.25, 0.5, 0.75, 1.0], "b": [1.0, 1.25, 1.5]}
