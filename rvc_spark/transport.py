"""One HTTP GET at a time: redirects, address rules, stalls, cancelling.

Every byte arrives through `_WatchedStream`, which looks up four times a second: so a cancelled download ends at once
and a server that drips counts as stalled. Knows nothing of files, ranges or hashes, and reads no environment: a proxy
is given, not found.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urldefrag, urljoin, urlsplit

import httpcore

from rvc_spark.catalogue import check_url
from rvc_spark.errors import AssetError, DownloadError

POLL_SECONDS = 0.25  # how long a read may keep a cancelled download waiting
HUB_HOSTS = frozenset({"huggingface.co", "hf.co"})
USER_AGENT = "rvc-spark (+https://pypi.org/project/rvc-spark)"
_REDIRECTS = {301, 302, 303, 307, 308}
_TROUBLE = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Cancelled(DownloadError):
    """The caller wanted the download to end; what has arrived is kept."""


class ConnectionTrouble(DownloadError):
    """Broken, stalled or busy: worth another attempt, after `wait` seconds if the server named a time."""

    wait: float | None = None
    unreachable = False  # no connection came about at all


@dataclass(frozen=True)
class NetworkOptions:
    """How patient a download is, and whom it talks to."""

    connect_seconds: float = 15.0
    stall_seconds: float = 30.0  # waiting this long for `stall_bytes` is a stall
    stall_bytes: int = 4096
    attempts: int = 5  # in a row without progress, for each source
    backoff_seconds: float = 1.0  # doubled from attempt to attempt, at most 30 s
    retry_after_cap: float = 60.0  # a server may ask for patience, but not for a day
    redirects: int = 8
    proxy: str | None = None
    ca_file: Path | None = None  # certificates to trust besides the usual ones, as company networks need
    token: str | None = field(default=None, repr=False)
    token_hosts: frozenset[str] = HUB_HOSTS  # who may see the token, and whose digests are believed
    allow_private: bool = True  # addresses of this machine and its network; False for addresses strangers give


@dataclass(frozen=True)
class Response:
    """The final answer of a chain of redirects. `hub` are the headers of the first one, if the hub itself gave it."""

    status: int
    headers: Mapping[str, str]
    hub: Mapping[str, str]
    _stream: Iterable[bytes]

    def blocks(self) -> Iterator[bytes]:
        """The body as it arrives. Raises ConnectionTrouble when it breaks off or stalls."""
        with _named_trouble():
            yield from self._stream


class Transport:
    """Connections that share options and one cancel switch; use it as a context, and from several threads at will."""

    def __init__(self, options: NetworkOptions, cancel: threading.Event) -> None:
        self.options, self.cancel = options, cancel
        if options.token is not None and not (options.token.isascii() and options.token.isprintable()):
            raise AssetError("the Hugging Face token has characters a token cannot have", "Set HF_TOKEN anew.")
        anywhere = options.allow_private or options.proxy is not None  # a proxy is itself private, as a rule
        backend = _WatchedBackend(options, cancel, allow_private=anywhere)
        limits: dict[str, Any] = {"max_connections": 32, "max_keepalive_connections": 4, "network_backend": backend}
        if options.ca_file is not None:  # reading all certificates takes a while, so the pool does it when it must
            limits["ssl_context"] = _trust(options.ca_file)
        if options.proxy is None:
            self._pool: httpcore.ConnectionPool = httpcore.ConnectionPool(**limits)
        else:
            self._pool = httpcore.HTTPProxy(proxy_url=options.proxy, **limits)

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.close()

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Response]:
        """Follow `url` to its end.

        Raises DownloadError when a redirect leads round in a circle or to an address that is not allowed, and
        ConnectionTrouble when no answer comes.
        """
        chain, token, hub = [url], self.options.token, {}
        while True:
            request = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **(headers or {})}
            believed = urlsplit(chain[-1]).hostname in self.options.token_hosts
            token = token if believed else None  # once gone it stays gone, wherever the chain leads
            if token is not None:
                request["Authorization"] = f"Bearer {token}"
            with self._open(chain[-1], request) as (status, received, stream):
                if len(chain) == 1 and believed:
                    hub = received
                if status not in _REDIRECTS:
                    yield Response(status, received, hub, stream)
                    return
            chain.append(self._next(chain, received.get("location")))

    @contextmanager
    def _open(self, url: str, headers: dict[str, str]) -> Iterator[tuple[int, dict[str, str], Iterable[bytes]]]:
        if not self.options.allow_private and self.options.proxy is not None:
            resolve(urlsplit(url).hostname or "", 443, allow_private=False)
        options = self.options
        timeouts = {"connect": options.connect_seconds, "read": options.stall_seconds, "write": options.stall_seconds}
        with _named_trouble():
            response = self._pool.handle_request(
                httpcore.Request(
                    "GET", urldefrag(url).url, headers={**headers, "Host": urlsplit(url).netloc},
                    extensions={"timeout": {**timeouts, "pool": options.connect_seconds}},
                )
            )  # fmt: skip
        try:
            received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            yield response.status, received, response.iter_stream()
        finally:
            response.close()

    def _next(self, chain: list[str], location: str | None) -> str:
        here = chain[-1]
        if not location:
            raise DownloadError(f"{_short(here)} redirects to nowhere", "Try another source.")
        there = urldefrag(urljoin(here, quote(location, safe="%/:=&?~#+!$,;'@()*[]"))).url
        try:
            check_url(there, f"the redirect from {_short(here)} to")
        except AssetError as refused:
            raise DownloadError(refused.problem, "Do not use this source.") from refused
        if urlsplit(here).scheme == "https" and urlsplit(there).scheme != "https":
            raise DownloadError(f"{_short(here)} redirects from https to plain http", "Do not use this source.")
        if there in chain or len(chain) > self.options.redirects:
            raise DownloadError(f"{_short(chain[0])} redirects in a circle ({len(chain)} times)", "Try another source.")
        return there


class _WatchedBackend(httpcore.NetworkBackend):
    """Connects only to addresses that were looked at, so that a name cannot change its mind in between."""

    def __init__(self, options: NetworkOptions, cancel: threading.Event, *, allow_private: bool) -> None:
        self._inner = httpcore.SyncBackend()
        self.options, self.cancel, self.allow_private = options, cancel, allow_private

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        last: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in resolve(host, port, allow_private=self.allow_private):
            if self.cancel.is_set():
                raise _cancelled()
            try:
                stream = self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                last = failed
                continue
            return _WatchedStream(stream, self.options, self.cancel)
        raise last

    def sleep(self, seconds: float) -> None:
        self.cancel.wait(seconds)


class _WatchedStream(httpcore.NetworkStream):
    """Reads in short waits. Only time spent waiting counts towards a stall, not time the caller takes to write."""

    def __init__(self, inner: httpcore.NetworkStream, options: NetworkOptions, cancel: threading.Event) -> None:
        self._inner, self.options, self.cancel = inner, options, cancel
        self._waited, self._arrived = 0.0, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            if self.cancel.is_set():
                raise _cancelled()
            started = time.monotonic()
            try:
                data: bytes | None = self._inner.read(max_bytes, min(POLL_SECONDS, self.options.stall_seconds))
            except httpcore.ReadTimeout:
                data = None
            self._waited += time.monotonic() - started
            self._arrived += len(data or b"")
            if self._arrived >= self.options.stall_bytes:
                self._waited, self._arrived = 0.0, 0
            elif self._waited > self.options.stall_seconds:
                raise httpcore.ReadTimeout(f"{self._arrived} bytes in {self._waited:.1f} s")
            if data is not None:
                return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _WatchedStream(self._inner.start_tls(ssl_context, server_hostname, timeout), self.options, self.cancel)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """The IP addresses of a host.

    Raises DownloadError if any is not public and that is not allowed (all are asked, since a name may have a public
    and a private one), ConnectionTrouble if the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as failed:
        trouble = ConnectionTrouble(f"the name {host!r:.120} cannot be looked up: {failed}", "Check the network.")
        trouble.unreachable = True
        raise trouble from failed
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private:
        for address in addresses:
            if not is_public(address):
                raise DownloadError(
                    f"{host!r:.120} is at {address}, which belongs to this machine or its network",
                    "Give a public address, or allow private ones if you mean it.",
                )
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet; addresses that carry an IPv4 one inside are judged by it."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _trust(ca_file: Path) -> ssl.SSLContext:
    context = httpcore.default_ssl_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as failed:  # ssl's own errors are OSErrors
        raise AssetError(f"{ca_file} holds no certificates: {failed}", "Give a PEM file.") from failed
    return context


@contextmanager
def _named_trouble() -> Iterator[None]:
    try:
        yield
    except _TROUBLE as failed:
        if isinstance(failed.args[0] if failed.args else None, ssl.SSLCertVerificationError):
            problem = f"the server is not who it says it is: {failed}"
            raise DownloadError(problem, "Check this machine's clock and network; do not go on.") from failed
        kind = "stalled" if isinstance(failed, httpcore.TimeoutException) else "broke"
        text = f"the connection {kind}: {str(failed) or type(failed).__name__}"
        trouble = ConnectionTrouble(text, "Try again; what has arrived is kept.")
        trouble.unreachable = isinstance(failed, httpcore.ConnectError | httpcore.ConnectTimeout)
        raise trouble from failed


def _cancelled() -> Cancelled:
    return Cancelled("the download was cancelled", "Start it again to go on where it stopped.")


def _short(url: str) -> str:
    """A URL fit for a message: without its query, which may hold a signature."""
    return ascii(url.split("?")[0][:160]).strip("'")
