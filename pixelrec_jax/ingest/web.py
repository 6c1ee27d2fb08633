"""Fetches files from the public internet over HTTP, with a limited rate for each host."""

import asyncio
import dataclasses
import datetime
import email.utils
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

import httpcore2
import httpx2

from pixelrec_jax import __version__
from pixelrec_jax.ingest import addresses
from pixelrec_jax.ingest.addresses import RefusedError
from pixelrec_jax.system import errors

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # the next try may succeed
_LONGEST_WAIT = 120.0  # seconds; a longer Retry-After of a server is refused
_HEADERS = (
    (b"User-Agent", f"pixelrec_jax/{__version__}".encode()),
    (b"Accept", b"image/jpeg, image/png, image/webp"),
    (b"Accept-Encoding", b"identity"),  # a compressed body could exceed any limit
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of fetching."""

    concurrency: int = 16  # requests at once
    rate: float = 10.0  # requests a second to each host
    retries: int = 3  # further tries after a failure that may pass
    timeout: float = 60.0  # seconds of a request, from the lookup of its host to the last byte
    max_bytes: int = 20 * 2**20  # size of an image file
    allow_hosts: frozenset[str] = frozenset()  # your own servers: any address and port


@dataclasses.dataclass(frozen=True)
class Clock:
    """A clock: the time in seconds, and sleeping."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Pace:
    """Spreads requests evenly, at most `rate` a second to each host."""

    def __init__(self, rate: float, clock: Clock):
        self._interval = 1 / rate
        self._clock = clock
        self._next: dict[str, float] = {}

    async def turn(self, host: str) -> None:
        """Waits until the next request to `host` may start."""
        now = self._clock.now()
        start = max(now, self._next.get(host, now))
        self._next[host] = start + self._interval
        await self._clock.sleep(start - now)

    def pause(self, host: str, seconds: float) -> None:
        """Delays all further requests to `host` by so many seconds."""
        until = self._clock.now() + seconds
        self._next[host] = max(until, self._next.get(host, until))


class _PassingError(Exception):
    """A failure that may pass: the next try may succeed."""


class Fetcher:
    """Fetches files from the public internet over HTTP, within limits."""

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Clock | None = None,
        resolver: addresses.Resolver = addresses.resolve,
    ):
        self.limits = limits
        self._clock = clock or Clock()
        self._pace = Pace(limits.rate, self._clock)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpcore2.default_ssl_context(),
            max_connections=limits.concurrency,
            keepalive_expiry=30,
            network_backend=addresses.PublicNetwork(allowed=limits.allow_hosts, resolver=resolver),
        )

    async def __aenter__(self) -> "Fetcher":
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def get(self, url: str) -> bytes:
        """Returns the file at a URL; raises `RefusedError` with the reason."""
        for attempt in range(self.limits.retries + 1):
            if attempt:
                await self._clock.sleep(min(30.0, 2.0 ** (attempt - 1)))
            try:
                return await self._follow(url)
            except TimeoutError:
                reason = f"no complete answer in {self.limits.timeout:g} s"
            except _PassingError as error:
                reason = str(error)
            except (
                httpcore2.NetworkError,
                httpcore2.TimeoutException,
                httpcore2.ProtocolError,
            ) as error:
                reason = errors.reason(error)
        tries = self.limits.retries + 1
        raise RefusedError(f"{reason} (tried {tries} times)" if tries > 1 else reason)

    async def _follow(self, url: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            checked = addresses.check_url(url, allowed=self.limits.allow_hosts)
            await self._pace.turn(checked.raw_host.decode("ascii"))
            # For the whole answer: a slow server could keep every single read within its limit.
            async with asyncio.timeout(self.limits.timeout):
                answer = await self._request(checked)
            if isinstance(answer, bytes):
                return answer
            url = str(answer)
        raise RefusedError(f"more than {_MAX_REDIRECTS} redirects")

    async def _request(self, url: httpx2.URL) -> bytes | httpx2.URL:
        """Returns the body, or the URL of a redirect."""
        target = httpcore2.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        headers = [(b"Host", url.netloc), *_HEADERS]
        async with self._pool.stream("GET", target, headers=headers) as response:
            fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in fields:
                try:
                    return url.join(fields[b"location"])
                except (httpx2.InvalidURL, ValueError) as error:
                    raise RefusedError(f"redirect to an invalid URL: {error}") from None
            if response.status in _PASSING:
                self._obey(url.raw_host.decode("ascii"), response.status, fields)
                raise _PassingError(f"HTTP {response.status}")
            if response.status != 200:
                raise RefusedError(f"HTTP {response.status}")
            if (encoding := fields.get(b"content-encoding", "identity")) != "identity":
                raise RefusedError(f"sent as {encoding[:40]!r}, which was not asked for")
            return await self._read(response, fields.get(b"content-length", ""))

    def _obey(self, host: str, status: int, fields: dict[bytes, str]) -> None:
        seconds = _seconds(fields.get(b"retry-after", ""))
        if seconds > _LONGEST_WAIT:
            raise RefusedError(f"HTTP {status}, asks to come back in {seconds:.0f} s")
        self._pace.pause(host, seconds)

    async def _read(self, response: httpcore2.Response, length: str) -> bytes:
        limit = self.limits.max_bytes
        if length.isdecimal() and int(length) > limit:
            raise RefusedError(f"larger than {limit:,} bytes ({int(length):,})")
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > limit:
                raise RefusedError(f"larger than {limit:,} bytes")
        return bytes(body)


def _seconds(retry_after: str) -> float:
    """Returns the seconds of a Retry-After header, which has seconds or a date; 0 for others."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
