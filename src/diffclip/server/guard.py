"""Who may ask the server, and what a browser may do with its answers.

A page of any other site that a user has open can send requests to 127.0.0.1. It is kept out four times: by the name in
Host (DNS rebinding), by Origin and Sec-Fetch-Site, by kinds of content that need another site's permission, and by
headers that keep answers from being read, framed or run elsewhere. On an address that others reach, a token is asked.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "diffclip"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POSTED = ("application/json", "application/octet-stream")
"""Kinds of content that no form of another site can send."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


class Guard:
    """In front of the application.

    hosts: names that may stand in Host, without port; with any_address every numeric address too, which no name can
    be rebound to. token: what is asked of every request, or None.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], any_address: bool, token: str | None) -> None:
        self._app, self._hosts, self._any_address, self._token = app, set(hosts), any_address, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return _no("this server is not called by that name; --allow-host NAME lets it be")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        # https of the same name is a proxy before this server.
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return _no("pages of other sites may not ask")
        opened_by_hand = (
            scope["path"] == "/"
            and scope["method"] == "GET"
            and (headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document")
        )
        if site not in ("none", "same-origin") and not opened_by_hand:
            return _no("pages of other sites may not ask")
        if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0] not in POSTED:
            return PlainTextResponse("send application/json or application/octet-stream", 415)
        return self._token_refusal(scope, headers) if self._token is not None else None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address

    def _token_refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._fits(given):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict", path="/")
            return answer
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._fits(cookie.value if cookie else "") or self._fits(bearer):
            return None
        return PlainTextResponse("open the address that `diffclip serve` printed: it has the token", 401)

    def _fits(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode(), self._token.encode())


def _no(why: str) -> ASGIApp:
    return PlainTextResponse(why, 403)
