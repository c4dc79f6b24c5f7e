"""A file behind an https address a stranger gave, without showing them our own network.

The name is looked up once. All its answers must be public, and the connection goes to one of them:
a second look-up, which could answer otherwise, never happens. Proxies of the environment are not
asked, for they would look the name up themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from ...types import InputError

PORT = 443
MAX_REDIRECTS = 3
MAX_URL = 2048  # characters
BLOCK = 65_536  # bytes
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses as an IPv6-only network sees them
REDIRECTS = {301, 302, 303, 307, 308}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def fetch(url: str, *, max_bytes: int, seconds: float) -> bytes:
    """The body behind ``url``, read by a thread that may wait for ``seconds`` in all.

    Raises:
        InputError: no https address, one that leads to no public host, a failure, or too large.
    """
    deadline = time.monotonic() + seconds
    for _ in range(1 + MAX_REDIRECTS):
        parts = split(url)
        address = public_address(parts.hostname or "")
        try:
            found = _get(parts, address, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            late = time.monotonic() >= deadline
            why = f"took longer than {seconds:.0f} s" if late else "cannot be read"
            raise InputError(f"The address {_shown(url)} {why}.") from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise InputError(f"The address {_shown(url)} leads on more than {MAX_REDIRECTS} times.")


def split(url: str) -> SplitResult:
    """The parts of an https address.

    Raises:
        InputError: it is none, or names a user or another port.
    """
    bad = len(url) > MAX_URL or any(char <= " " or char == "\x7f" for char in url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        bad, parts, port = True, urlsplit(""), None
    userinfo = "@" in parts.netloc
    if bad or parts.scheme != "https" or not parts.hostname or userinfo or port not in (None, PORT):
        raise InputError(
            f"The address {_shown(url)} cannot be used: it must be https://HOST/PATH, without a "
            "user and without a port."
        )
    return parts


def public_address(host: str) -> str:
    """One address of ``host``, all of whose addresses are public.

    Raises:
        InputError: unknown or not public: which of the two is not told, as that would show the
            names of a private network.
    """
    try:
        found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a UnicodeError for labels that no name can have
        found = []
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise InputError(f"The host {host[:80]!r} is unknown, or not on the public internet.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether anybody on the internet can reach it, the IPv4 address hidden in it included."""
    try:
        found: Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    inner = _embedded(found) if isinstance(found, ipaddress.IPv6Address) else None
    if inner is not None:
        return is_public(str(inner))
    return found.is_global and not (found.is_multicast or found.is_reserved)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.teredo is not None:
        return ipaddress.IPv4Address(0)  # relays decide where it goes: never public
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


class _Pinned(http.client.HTTPSConnection):
    """Speaks to ``address``, whatever ``host`` means by now; the certificate must be the host's."""

    def __init__(self, host: str, address: str, timeout: float):
        self._context_used = context()
        super().__init__(host, PORT, timeout=timeout, context=self._context_used)
        self._address = address

    def connect(self) -> None:
        """Up to the handshake, which the caller does against the clock."""
        plain = socket.create_connection((self._address, PORT), self.timeout)
        try:
            self.sock = self._context_used.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False
            )
        except BaseException:
            plain.close()
            raise


def context() -> ssl.SSLContext:
    """What certificates are checked against."""
    return ssl.create_default_context()


def _get(parts: SplitResult, address: str, max_bytes: int, deadline: float) -> bytes | str:
    """The body, or where it has gone."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection = _Pinned(parts.hostname or "", address, left)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.connect()
        with _cut_off(connection.sock, deadline - time.monotonic()):
            connection.sock.do_handshake()
            # No compression: what is counted is what arrives.
            connection.request("GET", path, headers={"Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status in REDIRECTS:
                return response.headers.get("Location", "")
            if response.status != 200:
                raise InputError(
                    f"The host {parts.hostname!r} answered {response.status} for the audio."
                )
            return _read(response, max_bytes)
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    data = bytearray()
    while block := response.read(BLOCK):
        data += block
        if len(data) > max_bytes:
            raise InputError(
                f"The audio behind the address is larger than {max_bytes} bytes, which is the most."
            )
    if response.length:
        raise OSError("the connection ended before the body did")
    return bytes(data)


@contextmanager
def _cut_off(sock: socket.socket, seconds: float):
    """Ends the connection after ``seconds``, however slowly a server keeps sending."""
    cut = threading.Event()

    def end() -> None:
        cut.set()
        with suppress(OSError):  # it ended by itself
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the TLS layer's own would not be safe

    timer = threading.Timer(max(seconds, 0.0), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if cut.is_set():
        raise TimeoutError


def _shown(url: str) -> str:
    """What an error may repeat of it: no query, where tokens are."""
    return repr(url.split("?", 1)[0][:80])
