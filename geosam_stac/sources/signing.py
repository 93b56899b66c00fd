"""How assets are opened: signatures just in time, headers and GDAL options for their own hosts.

Items stay unsigned in memory; a signature exists only between this module and GDAL. Nothing here
is logged, and no secret stands in a repr. Reads no environment: credentials are handed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from urllib.parse import quote, urlsplit

import requests

from geosam_stac.errors import ConfigurationError, DataError, TemporaryError
from geosam_stac.sources.items import http_session

PC_TOKEN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
PC_HOST = ".blob.core.windows.net"
# Planetary Computer signatures live 45 minutes; one with less than this left is renewed, so that
# a read which starts now ends before it expires.
RENEW_BEFORE_S = 300.0


class Access(Protocol):
    """How an asset's href is opened. Safe to use from several threads."""

    def sign(self, href: str) -> str:
        """The href to open now; it may hold a secret and must not be kept."""

    def options(self, href: str) -> Mapping[str, str]:
        """GDAL configuration options for this href alone; they may hold secrets."""

    def renew(self, href: str) -> bool:
        """After a 403: forget this href's signature; True if another one can be had."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """No signatures: GDAL options only, as for requester pays or anonymous reads."""

    gdal: Mapping[str, str] = field(default_factory=dict)

    def sign(self, href: str) -> str:
        """As it is."""
        return href

    def options(self, href: str) -> Mapping[str, str]:
        """The options given, for every href."""
        return self.gdal

    def renew(self, href: str) -> bool:
        """Nothing to renew."""
        return False


@dataclass(frozen=True, kw_only=True)
class Headers:
    """Static HTTP headers, sent to the named hosts (and their subdomains) and to no other.

    An Item comes from strangers: a token must not follow whatever href stands in it.
    """

    headers: Mapping[str, str] = field(repr=False)
    hosts: tuple[str, ...]
    gdal: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any("\n" in text or "\r" in text for pair in self.headers.items() for text in pair):
            raise ConfigurationError("a header holds a line break")

    def sign(self, href: str) -> str:
        """As it is."""
        return href

    def options(self, href: str) -> Mapping[str, str]:
        """The options given, and the headers where the host is one of ours."""
        if not of_host(href, self.hosts):
            return self.gdal
        # GDAL 3.6 and newer take several headers, a line each.
        lines = "\r\n".join(f"{name}: {value}" for name, value in self.headers.items())
        return {**self.gdal, "GDAL_HTTP_HEADERS": lines}

    def renew(self, href: str) -> bool:
        """A static header does not change."""
        return False


@dataclass(frozen=True, kw_only=True)
class QueryToken:
    """A static token as a query parameter, added for the named hosts and for no other."""

    parameter: str
    token: str = field(repr=False)
    hosts: tuple[str, ...]
    gdal: Mapping[str, str] = field(default_factory=dict)

    def sign(self, href: str) -> str:
        """The href with the token behind it."""
        if not of_host(href, self.hosts):
            return href
        joint = "&" if urlsplit(href).query else "?"
        return f"{href}{joint}{quote(self.parameter)}={quote(self.token, safe='')}"

    def options(self, href: str) -> Mapping[str, str]:
        """The options given, for every href."""
        return self.gdal

    def renew(self, href: str) -> bool:
        """A static token does not change."""
        return False


class PlanetaryComputer:
    """Shared access signatures of Microsoft's Planetary Computer, one a container.

    Signed just before each read, and again when less than `RENEW_BEFORE_S` is left or the store
    says 403: a scene may wait in a queue for an hour.

    Parameters
    ----------
    token_url
        Address of the token service.
    subscription_key
        Raises the service's rate limit; may be None.
    clock
        Seconds since the epoch.

    Notes
    -----
    The service: https://planetarycomputer.microsoft.com/docs/concepts/sas/
    """

    def __init__(
        self,
        *,
        token_url: str = PC_TOKEN_URL,
        subscription_key: str | None = None,
        blob_host: str = PC_HOST,
        gdal: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._token_url = token_url.rstrip("/")
        self._key = subscription_key
        self._host = blob_host
        self._gdal = dict(gdal or {})
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}

    def sign(self, href: str) -> str:
        """The href with a signature that is good for at least `RENEW_BEFORE_S`.

        Raises DataError when the service refuses, TemporaryError when it does not answer.
        """
        place = self._place(href)
        if place is None:
            return href
        with self._lock:
            token, expires_s = self._tokens.get(place, ("", 0.0))
            if expires_s - self._clock() < RENEW_BEFORE_S:
                token, expires_s = self._fetch(*place)
                self._tokens[place] = (token, expires_s)
        return f"{href.partition('?')[0]}?{token}"

    def options(self, href: str) -> Mapping[str, str]:
        """The options given, for every href."""
        return self._gdal

    def renew(self, href: str) -> bool:
        """Forget the container's token."""
        place = self._place(href)
        with self._lock:
            return place is not None and self._tokens.pop(place, None) is not None

    def _place(self, href: str) -> tuple[str, str] | None:
        """Storage account and container of a blob's URL; None for what is none."""
        parts = urlsplit(href)
        host = parts.netloc.lower()
        container = parts.path.strip("/").partition("/")[0]
        if parts.scheme not in ("https", "http") or not container:
            return None
        if not host.endswith(self._host):
            return None
        return host.removesuffix(self._host), container

    def _fetch(self, account: str, container: str) -> tuple[str, float]:
        url = f"{self._token_url}/{quote(account)}/{quote(container)}"
        headers = {"Ocp-Apim-Subscription-Key": self._key} if self._key else {}
        try:
            with http_session() as session:
                response = session.get(url, headers=headers, timeout=(10, 30))
        except requests.RequestException as error:
            raise TemporaryError(
                f"the signing service did not answer ({type(error).__name__})", href=url
            ) from None
        if response.status_code == 429 or response.status_code >= 500:
            raise TemporaryError(
                "the signing service cannot answer now",
                href=url,
                got=f"HTTP {response.status_code}",
            )
        try:
            document = response.json()
            expires = datetime.fromisoformat(document["msft:expiry"].replace("Z", "+00:00"))
            return str(document["token"]), expires.timestamp()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                "the signing service gives no signature for this container",
                href=url,
                got=f"HTTP {response.status_code}",
                hint="Check that the asset belongs to the Planetary Computer",
            ) from None


def of_host(href: str, hosts: tuple[str, ...]) -> bool:
    """Whether an href's host is one of these or below one: `a.example.org` of `example.org`."""
    host = (urlsplit(href).hostname or "").lower()
    return any(host == known.lower() or host.endswith("." + known.lower()) for known in hosts)
