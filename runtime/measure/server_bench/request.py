"""Specifies what is measured of a server, and checks it before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from fastblt.runtime.measure.requests import require_at_least

#: Clients that may be asked for: each holds a connection, and descriptors are limited to about a thousand.
MOST_CLIENTS = 512


class ServerBenchError(ValueError):
    """Reports a server that cannot be measured."""


@dataclass(frozen=True)
class ServerBenchRequest:
    """Specifies the measurement of a server.

    Raises:
        ValueError: the URL or the key is malformed, or a number is out of range.
    """

    url: str
    """As clients of OpenAI take it, ``http://127.0.0.1:8000/v1``; without a path, ``/v1`` is added."""
    against: tuple[str, ...] = ()
    """URLs of further servers, measured in turn with this one and in the same way; the key goes to them, too."""
    clients: tuple[int, ...] = (1, 2, 4, 8, 32)
    """Numbers of clients, measured one after the other; a client sends its next request after the last answer."""
    duration: float | None = 10.0
    """Seconds in which requests begin, for each row; those that are open then come to their end."""
    requests: int | None = None
    """Requests of each row, all clients together; instead of a duration."""
    max_new_bytes: int = 128
    """Sent as ``max_tokens``; other servers' tokens are not bytes."""
    methods: tuple[str, ...] = ()
    """Decoding methods to ask for by the extension field ``method``; empty: the field is not sent."""
    model: str | None = None
    """None: the first that the server lists."""
    api_key: str | None = field(default=None, repr=False)
    stream: bool = True
    chat: bool = False
    """Whether prompts are messages to ``chat/completions``, not texts to continue."""
    timeout: float = 120.0
    """Seconds without a byte after which a request counts as failed."""

    def __post_init__(self) -> None:
        """Check everything that can be known without the server."""
        for url in (self.url, *self.against):
            _check_url(url)
        if not self.clients:
            raise ValueError("clients: found none, expected at least one number")
        require_at_least(1, requests=self.requests, max_new_bytes=self.max_new_bytes, clients=min(self.clients))
        if max(self.clients) > MOST_CLIENTS:
            raise ValueError(f"clients: found {max(self.clients)}, expected at most {MOST_CLIENTS}")
        if (self.duration is None) == (self.requests is None):
            raise ValueError("found a duration and a number of requests, or neither; expected one of them")
        for name, seconds in (("duration", self.duration), ("timeout", self.timeout)):
            if seconds is not None and not 0 < seconds < 1e6:
                raise ValueError(f"{name}: found {seconds}, expected seconds greater than 0 and less than a million")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError("API key: found characters that a header cannot have, expected printable ASCII")

    def servers(self) -> list[ServerBenchRequest]:
        """Return the same request to every server, each once."""
        return [replace(self, url=url, against=()) for url in dict.fromkeys((self.url, *self.against))]

    @property
    def base(self) -> str:
        """Return the URL below which the endpoints are, without a slash at its end."""
        url = self.url.rstrip("/")
        return url if urlsplit(url).path else f"{url}/v1"

    @property
    def endpoint(self) -> str:
        """Return the URL that requests go to."""
        return f"{self.base}/{'chat/completions' if self.chat else 'completions'}"

    @property
    def headers(self) -> dict[str, str]:
        """Return what every request carries."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def _check_url(url: str) -> None:
    """Check a URL; what may be a secret in it is not repeated."""
    expected = "expected http://HOST:PORT or https://HOST, with a path where the server has one"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"url: found a malformed address, {expected}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(f"url: found a user name, a query or a fragment, {expected}; keys go to --api-key")
    hidden = not url.isascii() or not url.isprintable() or " " in url
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or hidden:
        raise ValueError(f"url: found {url!r}, {expected}")
