"""The web server: who may ask it, and what it answers.

Everything is below the token, which is in the address: /TOKEN/. Whoever knows it may do with the machines what their
owner may, and nobody else gets anything. A page of another site that the owner's browser shows does not know it; should
it ever learn it, `Origin` gives it away, and a name that it has made point here (DNS rebinding), `Host`.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from emu.cache import Cache
from emu.errors import EmuError
from emu.serve.machines import Machines
from emu.serve.npm import assets
from emu.serve.viewer import LONGEST_MESSAGE, Session

__all__ = ["MOST_VIEWERS", "Site", "listening"]

PAGE = Path(__file__).with_name("page")
INDEX = "index.html"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_VIEWERS = 64
HEARTBEAT_S = 30.0
REFUSED = "The address of this page ends in a token, which `emu serve` has shown when it started.\n"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",       # the address has the token
    "Cache-Control": "no-store",
}


class Site:
    """What is below one token.

    Args:
        machines: that it shows.
        name: by which it may be called beside addresses in digits and "localhost".

    Attributes:
        token: what makes an address one of this site.
        app: for aiohttp.

    Raises:
        EmuError: the page's terminal cannot be had.
    """

    def __init__(self, machines: Machines, name: str) -> None:
        self.token = secrets.token_urlsafe(16)
        self._machines = machines
        self._name = name.lower()
        self._viewers = 0
        self._files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in TYPES}
        self._files |= {name: data for name, data in assets(Cache()).items() if Path(name).suffix in TYPES}
        self.app = web.Application(middlewares=[self._check()])
        self.app.router.add_get("/{token}/socket", self._socket)
        self.app.router.add_get("/{token}/{file}", self._file)
        self.app.router.add_get("/{token}/", self._file)

    # -- who asks --------------------------------------------------------------------------------------------------

    def _check(self) -> Middleware:
        """Refuses whoever may not."""

        @web.middleware
        async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not self._may(request):
                return web.Response(status=403, text=REFUSED, headers=HEADERS)
            return await handler(request)

        return checked

    def _may(self, request: web.Request) -> bool:
        """Whether it knows the token, calls us by a name of ours, and is of no other site's page."""
        token = request.path.split("/")[1].encode()
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        return (
            hmac.compare_digest(token, self.token.encode())
            and self._is_ours(host)
            and (origin is None or origin.lower() == f"http://{host}".lower())
        )

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header has one of our names."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
            if name in ("localhost", self._name):
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    # -- what is answered ------------------------------------------------------------------------------------------

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("file", INDEX)
        if name not in self._files:
            return web.Response(status=404, text="There is no such file.\n", headers=HEADERS)
        kind = TYPES[Path(name).suffix]
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8", headers=HEADERS)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        """A page's connection to a machine."""
        if "Origin" not in request.headers:             # every browser says
            return web.Response(status=403, text=REFUSED, headers=HEADERS)
        number = request.query.get("machine", "1")
        hosted = self._machines.hosted.get(int(number)) if number.isdecimal() and len(number) < 9 else None
        if hosted is None or self._viewers >= MOST_VIEWERS:
            return web.Response(status=404, text="There is no such machine, or no room.\n", headers=HEADERS)
        connection = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=LONGEST_MESSAGE, compress=False)
        await connection.prepare(request)
        self._viewers += 1
        try:
            await Session(self._machines, hosted, connection).serve()
        finally:
            self._viewers -= 1
        return connection


def listening(place: str) -> socket.socket:
    """A socket that listens at HOST:PORT, or PORT of this machine's own address; [HOST]:PORT for IPv6.

    Raises:
        EmuError: it is no such place, or in use.
    """
    host, colon, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16) or (colon and place.startswith(":")):
        raise EmuError(f"{place} is no place to listen at; write 8086, or 127.0.0.1:8086")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise EmuError(f"cannot listen at {place}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        sock.close()
        raise EmuError(f"cannot listen at {place}: {error.strerror}") from None
    return sock
