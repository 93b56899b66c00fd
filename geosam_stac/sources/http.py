"""HTTP for documents: Items, files of Items, searches, signatures. Tried again as `retry` says.

Imports no raster library; assets are GDAL's.
"""

from __future__ import annotations

from typing import Any

import requests

from geosam_stac.errors import GeosamStacError, TemporaryError, WrongContentError
from geosam_stac.hrefs import unsigned
from geosam_stac.retry import Retries, RetryPolicy, retry_after_s
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.pinned import PinnedAdapter

TIMEOUT_S = RetryPolicy().http_timeout_s  # connect, between two bytes
RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class RetryAdapter(PinnedAdapter):
    """Sends a request again that broke off, was not answered, or was answered with "not now".

    When no more tries are left, the last answer is returned or the last exception raised, as
    `requests` does without tries.

    Parameters
    ----------
    hosts
        Which hosts a request, or a redirect, may go to.
    retries, kind
        How it is tried again, and what it counts as.
    is_document
        Every good answer is JSON: HTML in its place is an error page, and asked for again.
    """

    def __init__(
        self, hosts: Hosts, retries: Retries, kind: str, *, is_document: bool = False
    ) -> None:
        self._retries = retries
        self._kind = kind
        self._is_document = is_document
        super().__init__(hosts)

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """Send a request until it is answered."""
        href = unsigned(request.url or "")
        last: list[requests.Response | requests.RequestException] = []

        def once(tries: int) -> None:
            last.clear()
            try:
                response = self.send_once(request, stream, *args, **kwargs)
                if not stream:
                    _ = response.content  # read here, or a cut-off body would break off outside
            except _BROKEN as error:
                last.append(error)
                if not _may_pass(error):
                    raise _Final from error
                raise TemporaryError(
                    f"the server did not answer ({type(error).__name__})", href=href
                ) from error
            last.append(response)
            if response.status_code in RETRY_STATUS:
                raise not_now(response, href)
            if self._is_document and not stream and _is_html(response):
                raise WrongContentError(
                    "the server answered with a page of HTML", href=href, expected="JSON"
                )

        try:
            self._retries.run(self._kind, once)
        except (_Final, TemporaryError, WrongContentError) as error:
            if not last:  # raised by what `send_once` became
                raise
            if isinstance(last[0], requests.RequestException):
                raise last[0] from error.__cause__
        assert isinstance(last[0], requests.Response)
        return last[0]

    def send_once(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """Send a request; what a child of this class adds to each try stands here."""
        return super().send(request, *args, **kwargs)


class _Final(GeosamStacError):
    """No other try helps. Never leaves this module."""

    def __init__(self) -> None:
        super().__init__("final")


def http_session(
    hosts: Hosts,
    retries: Retries | None = None,
    kind: str = "request",
    *,
    is_document: bool = False,
) -> requests.Session:
    """A session that tries again what may pass: throttling, a server's own failure, no answer.

    It goes nowhere, by no redirect, where `hosts` does not let it.
    """
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(
            scheme, RetryAdapter(hosts, retries or Retries(), kind, is_document=is_document)
        )
    return session


def not_now(response: requests.Response, href: str) -> TemporaryError:
    """The error of a status that may pass, with the server's Retry-After."""
    error = TemporaryError(
        "the server cannot answer now", href=href, got=f"HTTP {response.status_code}"
    )
    error.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
    return error


def _may_pass(error: requests.RequestException) -> bool:
    # A certificate stays what it is.
    return not isinstance(error, requests.exceptions.SSLError)


def _is_html(response: requests.Response) -> bool:
    return response.ok and response.content.lstrip()[:1] == b"<"
