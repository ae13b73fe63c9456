"""Refuse requests that do not come from the page itself, and tell browsers to load nothing from elsewhere.

The server listens on loopback only. What other sites can still make a browser send there is refused by the Host header
(a name that was pointed at 127.0.0.1: DNS rebinding), and by Sec-Fetch-Site and Origin (a page of another site).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost", "::1")  # at any port, which may be that of an SSH tunnel
OWN = ("same-origin", "none")  # values of Sec-Fetch-Site: the page itself, or an address that a person has typed
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class OwnPageOnly:
    """ASGI middleware: answers requests that `refusal` refuses with 403 or 405, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # the page has no websockets, and nothing is to be done at start and end
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        refused = refusal(scope["method"], headers)
        if refused is None:
            await self.app(scope, receive, send_with_headers)
            return
        code, why = refused
        await PlainTextResponse(f"{why}\n", status_code=code)(scope, receive, send_with_headers)


def refusal(method: str, headers: list[tuple[str, str]]) -> tuple[int, str] | None:
    """Return the status and the reason with which a request is refused; None if it is answered.

    `headers` are pairs of a name in lower case and a value.
    """
    if method not in ("GET", "HEAD"):
        return 405, "only GET and HEAD are answered: nothing can be changed here"
    hosts = [value for name, value in headers if name == "host"]
    if len(hosts) != 1 or _host_of(f"http://{hosts[0]}") not in HOSTS:
        return 403, "the Host header is not that of this machine: open the address that dsctl has shown"
    for name, value in headers:
        if name == "sec-fetch-site" and value not in OWN:
            return 403, "the request comes from another site: type the address in, or copy it"
        if name == "origin" and value != f"http://{hosts[0]}":
            return 403, "the request comes from a page of another origin"
    return None


def _host_of(address: str) -> str | None:
    """Return the host in `address`, which has nothing else but a port; None for anything else."""
    try:
        parts = urlsplit(address)
        plain = parts.path == parts.query == parts.fragment == "" and parts.username is None and parts.port != 0
        return parts.hostname if plain else None
    except ValueError:  # no number as a port, or brackets without an address
        return None
