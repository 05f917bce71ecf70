"""The guard of the page: it lets in those who ask by a name of the page's own, and no other site in their name.

A foreign site can make a visitor's browser send requests to this machine. By *DNS rebinding* the site's own name comes
to mean this machine, and the browser lets the site read the answers; *across sites* it can send forms and files but not
read answers. The requested Host reveals the first, and the Origin that a browser sends reveals the second.
"""

import ipaddress
import socket
import sys
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PORTS = {"http": 80, "https": 443}  # that an address may leave out
MOST_BODY = 21 * 2**20  # bytes of a request: the largest dropped picture and its multipart frame


def name_in(netloc: str) -> str:
    """Return the host of `host:port` or `[address]:port` in lower case; nothing where it is neither."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_of(origin: str, netloc: str) -> bool:
    """Return whether an origin is that of `host:port`, where either may leave the usual port of its scheme out."""
    try:
        asked = urlsplit(origin)
        usual = PORTS.get(asked.scheme)
        here = urlsplit(f"//{netloc}")
        return bool(asked.hostname) and (asked.hostname, asked.port or usual) == (here.hostname, here.port or usual)
    except ValueError:
        return False


def own_names(host: str, names: Iterable[str] = ()) -> set[str]:
    """Return the names of a page that is served at an address: this machine's, and those that its owner gives."""
    machine = socket.gethostname()
    return {each.lower() for each in ("localhost", host, machine, f"{machine}.local", *names)}


def log(error: Exception) -> None:
    """Print a line on stderr for a request that failed; the line may hold text from a stranger."""
    told = "".join(each if each.isprintable() else " " for each in str(error))[:200]
    print(f"a request could not be answered: {type(error).__name__}: {told}", file=sys.stderr)


class Guard:
    """An ASGI application before the page's: it refuses foreign requests, in words, and passes on the others."""

    def __init__(self, app: ASGIApp, names: set[str]):
        """
        Args:
            names: of the page. Every numeric address is accepted too, since no name can be made to mean it.
        """
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.answered(scope, receive, send)
        elif scope["type"] == "http":
            status, told = refusal
            await PlainTextResponse(f"{told}\n", status, {"Connection": "close"})(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})

    async def answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. If that fails, log a line and answer with status 400."""
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            log(error)
            if scope["type"] == "http" and not begun:
                await PlainTextResponse("nothing can be made of this request\n", 400)(scope, receive, send)

    def refusal(self, headers: Headers) -> tuple[int, str] | None:
        """Return the status and the words that refuse a request; None where it may pass."""
        hosts, origin = headers.getlist("host"), headers.get("origin")
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            return 421, "this page is asked for by another name than its own; its owner gives it more with --names"
        if origin is not None and not is_of(origin, hosts[0]):
            return 403, "this page takes nothing from other sites (a proxy before it must pass the Host header on)"
        if "transfer-encoding" in headers:
            return 411, "a request must say how long it is"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY:
            return 413, f"a request has {MOST_BODY} bytes at most"
        return None

    def is_own(self, netloc: str) -> bool:
        """Return whether the page is asked for by a name of its own, or by an address."""
        name = name_in(netloc)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True
