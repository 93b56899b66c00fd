"""Signers: signatures just in time, headers and tokens for their own hosts and for no other.

Items stay unsigned in memory; a signature exists only between this module and GDAL. Nothing here
is logged, and no secret stands in a repr or an error. Reads no environment: credentials are handed
in. Which signer an Item gets is `access`'s business.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import requests

from geosam_stac.errors import ConfigurationError, DataError, ForbiddenError, TemporaryError
from geosam_stac.raster_errors import unsigned_text
from geosam_stac.retry import ONCE, Retries
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.http import http_session, not_now

PC_TOKEN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
PC_HOST = ".blob.core.windows.net"
# Planetary Computer signatures live 45 minutes; one with less than this left is renewed, so that
# a read which starts now ends before it expires.
RENEW_BEFORE_S = 300.0
# How long a signature is used whose expiry is in the past already: this machine's clock is wrong.
SKEWED_S = 60.0
TIMEOUT_S = (10, 30)  # connect, read

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token of RFC 9110
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Whoever logs the hrefs that are opened: rasterio and urllib3 at DEBUG, odc-loader when a read
# fails.
_TALKERS = ("rasterio", "odc.loader", "urllib3")


@dataclass(frozen=True, kw_only=True)
class Headers:
    """Static HTTP headers, sent to the named hosts (and their subdomains) and to no other.

    An Item comes from strangers: a token must not follow whatever href stands in it. For the same
    reason it goes over https alone, but for this machine itself.

    Raises
    ------
    ConfigurationError
        A header that is none, such as one with a line break.
    """

    headers: Mapping[str, str] = field(repr=False)
    hosts: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ConfigurationError("a header's name is none", expected="Name: value")
            if not value.isprintable():
                raise ConfigurationError(f"the header {name} holds a line break or the like")

    def sign(self, href: str) -> str:
        """As it is."""
        return href

    def options(self, href: str) -> Mapping[str, str]:
        """The headers, where the host is one of ours."""
        if not is_of_hosts(href, self.hosts):
            return {}
        # GDAL 3.6 and newer take several headers, a line each.
        lines = "\r\n".join(f"{name}: {value}" for name, value in self.headers.items())
        return {"GDAL_HTTP_HEADERS": lines}

    def renew(self, href: str) -> bool:
        """A static header does not change."""
        return False


@dataclass(frozen=True, kw_only=True)
class QueryToken:
    """A static token as a query parameter, added for the named hosts and for no other."""

    parameter: str
    token: str = field(repr=False)
    hosts: tuple[str, ...]

    def sign(self, href: str) -> str:
        """The href with the token behind it, where the host is one of ours."""
        if not is_of_hosts(href, self.hosts):
            return href
        guard_logs()
        base, mark, fragment = href.partition("#")
        joint = "&" if urlsplit(base).query else "?"
        token = f"{quote(self.parameter, safe='')}={quote(self.token, safe='')}"
        return f"{base.rstrip('?')}{joint}{token}{mark}{fragment}"

    def options(self, href: str) -> Mapping[str, str]:
        """None needed."""
        return {}

    def renew(self, href: str) -> bool:
        """A static token does not change."""
        return False


class _Container:
    """One container's token. Its lock is held during the request, and nobody else's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token = ""
        self.good_until_s = 0.0


class PlanetaryComputer:
    """Shared access signatures of Microsoft's Planetary Computer, one a container.

    Signed just before each read, and again when less than `RENEW_BEFORE_S` is left or the store
    says 403: a scene may wait in a queue for an hour. Threads that want the same container wait for
    one request; other containers go on meanwhile.

    Parameters
    ----------
    token_url
        Address of the token service.
    subscription_key
        Raises the service's rate limit; may be None.
    blob_host
        What the hosts of the storage accounts end in; hrefs elsewhere stay unsigned.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._token_url = token_url.rstrip("/")
        self._key = subscription_key
        self._host = blob_host.lower()
        self._clock = clock
        self._lock = threading.Lock()  # of the dictionary alone
        self._containers: dict[tuple[str, str], _Container] = {}

    def sign(self, href: str) -> str:
        """The href with a signature that is good for a while.

        Raises
        ------
        ForbiddenError, DataError
            The service gives no signature for this container.
        TemporaryError
            The service does not answer.
        """
        place = self._place(href)
        if place is None:
            return href
        guard_logs()
        container = self._container(place)
        with container.lock:
            if not container.token or self._clock() >= container.good_until_s:
                token, expires_s = self._fetch(*place)
                now_s = self._clock()
                life_s = expires_s - now_s
                # A service may give short ones: half of such a life is used, not none of it.
                reserve_s = min(RENEW_BEFORE_S, life_s / 2)
                container.good_until_s = expires_s - reserve_s if life_s > 0 else now_s + SKEWED_S
                container.token = token
            return f"{href.partition('#')[0].partition('?')[0]}?{container.token}"

    def options(self, href: str) -> Mapping[str, str]:
        """None needed."""
        return {}

    def renew(self, href: str) -> bool:
        """Forget the container's token; True for every href that this service signs."""
        place = self._place(href)
        if place is None:
            return False
        container = self._container(place)
        with container.lock:
            container.token = ""
        return True

    def _container(self, place: tuple[str, str]) -> _Container:
        with self._lock:
            return self._containers.setdefault(place, _Container())

    def _place(self, href: str) -> tuple[str, str] | None:
        """Storage account and container of a blob's URL; None for what is none."""
        if not _is_private(href):
            return None
        parts = urlsplit(href)
        host = parts.netloc.rpartition("@")[2].lower()
        container = parts.path.strip("/").partition("/")[0]
        account = host.removesuffix(self._host)
        if not host.endswith(self._host) or not account.isalnum() or not container:
            return None
        return account, container

    def _fetch(self, account: str, container: str) -> tuple[str, float]:
        url = f"{self._token_url}/{quote(account)}/{quote(container, safe='$%')}"
        headers = {"Ocp-Apim-Subscription-Key": self._key} if self._key else {}
        try:
            # The read that wants the signature is tried again as a whole.
            with http_session(Hosts(self._token_url), Retries(ONCE), "signature") as session:
                response = session.get(url, headers=headers, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise TemporaryError(
                f"the signing service did not answer ({type(error).__name__})",
                href=url,
                hint="Try again; check the network",
            ) from None
        status = response.status_code
        if status == 429 or status >= 500:
            later = not_now(response, url)
            later.message = "the signing service cannot answer now"
            later.hint = "Try again; PC_SDK_SUBSCRIPTION_KEY raises the limits"
            raise later
        token, expires_s = _token(response)
        if token is None:
            kind = ForbiddenError if status in (401, 403) else DataError
            raise kind(
                "the signing service gives no signature for this container",
                href=url,
                got=f"HTTP {status}",
                hint="Check that the asset belongs to the Planetary Computer",
            )
        return token, expires_s


def _token(response: requests.Response) -> tuple[str | None, float]:
    """Token and expiry of an answer; None for an answer without. Its text goes no further."""
    if not response.ok:
        return None, 0.0
    try:
        document = response.json()
        expires = datetime.fromisoformat(document["msft:expiry"])
        token = document["token"]
    except (ValueError, KeyError, TypeError):
        return None, 0.0
    if not isinstance(token, str) or not token:
        return None, 0.0
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return token.lstrip("?"), expires.timestamp()


def guard_logs() -> None:
    """From now on the raster libraries log hrefs without their query strings.

    Called before a signed href is handed out. The filters stay: to take them away again would race
    with the reads of other threads.
    """
    # A filter works on its own logger alone, so each child needs it; they come with the modules.
    for name in tuple(logging.root.manager.loggerDict):
        if name.startswith(_TALKERS):
            logging.getLogger(name).addFilter(_unsigned_record)  # no more than once


def _unsigned_record(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if "?" in text:
        record.msg, record.args = unsigned_text(text), ()
    if record.exc_info and "?" in str(record.exc_info[1]):
        record.exc_info = record.exc_text = None
    return True


def is_of_hosts(href: str, hosts: tuple[str, ...]) -> bool:
    """Whether a credential for `hosts` may go to this href.

    Its host is one of these or below one (`a.example.org` of `example.org`), with the same port
    where one is named (`localhost:8080`), and the way there is https or stays on this machine.
    """
    if not _is_private(href):
        return False
    parts = urlsplit(href)
    host, place = (parts.hostname or "").lower(), parts.netloc.rpartition("@")[2].lower()
    for known in hosts:
        name = known.strip().lower()
        if name and any(text == name or text.endswith("." + name) for text in (host, place)):
            return True
    return False


def _is_private(href: str) -> bool:
    """An https URL, or an http one of this machine, that all parsers read alike."""
    # A backslash or a blank may make curl see another host than urlsplit does.
    if "\\" in href or not href.isprintable() or " " in href:
        return False
    try:
        parts = urlsplit(href)
        host = (parts.hostname or "").lower()
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    return parts.scheme == "http" and (host in _LOOPBACK or host.endswith(".localhost"))
