"""Who may have the page: whoever has the link. All others, other pages above all, are refused."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

__all__ = ["Guard"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TOKEN_HEADER = "X-Taskd-Token"  # noqa: S105
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_HEADERS = {
    # Nothing but this page's own files; and no text becomes markup or script, whoever wrote it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Looks at each request before anything else does."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        """What the link has, for a cookie in its stead."""
        self.pass_once = secrets.token_urlsafe(24)
        """The same, but good once: the command line of a browser can be seen by all."""
        self.action = secrets.token_urlsafe(24)
        """What actions have in a header, which the page is told."""
        self._session = secrets.token_urlsafe(24)

    def cookie(self, request: web.Request) -> str:
        """Its name: cookies of all ports of a host are in one jar."""
        name = request.transport.get_extra_info("sockname") if request.transport else None
        return f"taskd-ui-{name[1] if name else 0}"

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not _HOST.fullmatch(host):
            # Some name that somebody has made to lead here: DNS rebinding.
            raise web.HTTPMisdirectedRequest(text="this is served as 127.0.0.1 and localhost\n")
        if request.method == "GET" and request.path == "/" and "token" in request.query:
            if self._opens(request.query["token"]):
                response = web.Response(status=303, headers={"Location": "/"})
                response.set_cookie(
                    self.cookie(request), self._session, httponly=True, samesite="Strict", path="/"
                )
                return response
            raise web.HTTPForbidden(text=_REFUSED)
        if not _same(request.cookies.get(self.cookie(request), ""), self._session):
            raise web.HTTPForbidden(text=_REFUSED)
        if request.method != "GET":
            self._check_action(request, host)
        return await handler(request)

    async def harden(self, _: web.Request, response: web.StreamResponse) -> None:
        """Give each answer its headers, refusals and streams included."""
        response.headers.update(_HEADERS)

    def _opens(self, given: str) -> bool:
        if _same(given, self.pass_once):
            self.pass_once = secrets.token_urlsafe(24)
            return True
        return _same(given, self.token)

    def _check_action(self, request: web.Request, host: str) -> None:
        if request.headers.get("Origin") != f"http://{host}":
            raise web.HTTPForbidden(text="only this page may do that\n")
        if not _same(request.headers.get(TOKEN_HEADER, ""), self.action):
            raise web.HTTPForbidden(text="without its token this does nothing\n")


_REFUSED = "This page needs the link that taskd ui has printed, with its token.\n"


def _same(given: str, right: str) -> bool:
    return secrets.compare_digest(given.encode(errors="backslashreplace"), right.encode())
