"""What every request passes before it is looked at: rate, host, token, origin, size of body."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_CLIENTS = 4096
"""Addresses whose rate is remembered; the one longest silent is forgotten first."""
FAILURES_PER_MINUTE = 20.0
LARGEST_BODY = 1 << 16
"""Bytes of a body that is no upload."""
SAFE = ("GET", "HEAD")
OPEN = ("/healthz",)
"""Paths that need no token: they say nothing."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"cache-control", b"no-store"),
)


class Rate:
    """How many requests each client may make a minute; as many may come at once."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Whether this client may; counts where it may."""
        now = time.monotonic()
        left, since = self._left.pop(client, (self.per_minute, now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        allowed = left >= 1
        self._left[client] = left - allowed, now
        while len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return allowed


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    token: str | None
    """None: everybody who can reach a loopback address of this machine."""
    hosts: frozenset[str]
    """Names that requests may give this server where there is no token: without, a page of
    another site whose name leads here could ask in its reader's browser."""
    per_minute: float
    largest_upload: int


class Gate:
    """ASGI middleware in front of everything."""

    def __init__(self, app: App, access: Access) -> None:
        self.app, self.access = app, access
        self._rate, self._failures = Rate(access.per_minute), Rate(FAILURES_PER_MINUTE)
        self._token = hashlib.sha256((access.token or "").encode()).digest()
        self.answers: dict[tuple[str, int], int] = {}
        """How many requests were answered, by method and status."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # no web sockets here
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "other"

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message.get("headers", ())}
                more = [pair for pair in HEADERS if pair[0] not in known]
                message["headers"] = [*message.get("headers", ()), *more]
                key = method, message["status"]
                self.answers[key] = self.answers.get(key, 0) + 1
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            body = _Body(receive, self._largest(scope))
            await self.app(scope, body.receive, answer)
            return
        status, text = refusal
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if status == 401:
            headers.append((b"www-authenticate", b'Basic realm="vqaloop", charset="UTF-8"'))
        if status == 429:
            headers.append((b"retry-after", b"60"))
        await answer({"type": "http.response.start", "status": status, "headers": headers})
        await answer({"type": "http.response.body", "body": b'{"error": "%s"}' % text.encode()})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason where a request is not let through."""
        client = (scope.get("client") or ("",))[0]
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        if not self._rate.allows(client):
            return 429, "too many requests; wait a minute"
        single = (b"host", b"authorization", b"origin", b"content-length", b"content-type")
        if any(len(headers.get(name, ())) > 1 for name in single):
            return 400, "a header is there twice"
        host = headers.get(b"host", [b""])[0].decode("latin-1")
        if self.access.token is None and _name_of(host) not in self.access.hosts:
            return 421, "this server goes by another name; see --allow-host"
        closed = self.access.token is not None and scope["path"] not in OPEN
        if closed and not self._is_ours(headers.get(b"authorization", [b""])[0]):
            if not self._failures.allows(client):
                return 429, "too many wrong tokens; wait a minute"
            return 401, "a token is needed: Authorization: Bearer TOKEN"
        if scope["method"] not in SAFE and not _is_same_site(headers, host):
            return 403, "a page of another site cannot ask for that"
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length[:20]) > self._largest(scope):
            return 413, "the body is too large"
        return None

    def _largest(self, scope: Message) -> int:
        upload = scope["method"] == "PUT" and scope["path"].startswith("/api/v1/uploads/")
        return self.access.largest_upload if upload else LARGEST_BODY

    def _is_ours(self, given: bytes) -> bool:
        """Whether an Authorization header has the token, which takes the same time either way."""
        kind, _, value = given.partition(b" ")
        value = value.strip()
        if kind.lower() == b"basic":
            # what a browser asks its reader for: the name may be any
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(hashlib.sha256(value).digest(), self._token)


_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


class TooLarge(Exception):
    """A body without a length, or with a wrong one, is larger than it may be."""


class _Body:
    """Counts what is received of a body."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left = receive, most

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise TooLarge
        return message


def _name_of(host: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_site(headers: Mapping[bytes, list[bytes]], host: str) -> bool:
    """Whether a request that changes something comes from no page, or from one of ours."""
    site = headers.get(b"sec-fetch-site", [b"none"])[0]
    origin = headers.get(b"origin", [b""])[0].decode("latin-1")
    if site not in (b"none", b"same-origin"):
        return False
    return not origin or _place_of(origin) == host.lower()


def _place_of(origin: str) -> str:
    """Name and port of an Origin header; "" where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
