"""A remote Item's access: GDAL gets an href only once whoever it leads to may be asked.

GDAL follows redirects by itself and cannot be told not to. So they are followed here first, once an
href, by connections that are `pinned`. What stays open is told in SECURITY.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import pystac
import requests

from geosam_stac.errors import TemporaryError
from geosam_stac.hrefs import unsigned
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.pinned import PinnedAdapter
from geosam_stac.types import Access

# As curl follows at most for GDAL.
MAX_REDIRECTS = 10
TIMEOUT_S = (10, 30)  # connect, read


def guard(hosts: Hosts, item: pystac.Item, access: Access) -> Access:
    """The Item's access; for a remote Item, one that checks each href before it is opened."""
    if not hosts.guards(item) or isinstance(access, Guarded):
        return access
    return Guarded(hosts=hosts, item=item.id, inner=access)


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """Signs an href only when its host, and those that it redirects to, may be asked."""

    hosts: Hosts
    item: str
    inner: Access

    def sign(self, href: str) -> str:
        """As the signer does.

        Raises
        ------
        DataError
            The href may not be followed.
        TemporaryError
            Its host, or one that it redirects to, does not answer.
        """
        self.hosts.check(href, item=self.item)
        if endpoint := self._options(href).get("AWS_S3_ENDPOINT"):
            # The Item's own `storage:` fields name it.
            self.hosts.check(f"https://{endpoint}/", item=self.item)
        signed = self.inner.sign(href)
        if urlsplit(href).scheme in ("http", "https") and not self.hosts.is_followed(href):
            self._follow(signed)
            self.hosts.followed(href)
        return signed

    def options(self, href: str) -> Mapping[str, str]:
        """As the signer says."""
        return self.inner.options(href)

    def renew(self, href: str) -> bool:
        """As the signer says."""
        return self.inner.renew(href)

    def _options(self, href: str) -> Mapping[str, str]:
        return self.inner.options(href) if href.startswith("s3://") else {}

    def _follow(self, url: str) -> None:
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, PinnedAdapter(self.hosts))
            for _ in range(MAX_REDIRECTS):
                target = self._location(session, url)
                if not target:
                    return
                url = urljoin(url, target)
                self.hosts.check(url, item=self.item)

    def _location(self, session: requests.Session, url: str) -> str | None:
        """Where the URL redirects to."""
        headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        try:
            with session.get(
                url,
                headers=headers | _headers(self.inner.options(url)),
                timeout=TIMEOUT_S,
                allow_redirects=False,
                stream=True,
            ) as response:
                return response.headers.get("Location") if response.is_redirect else None
        except requests.exceptions.SSLError:
            return None  # a certificate that GDAL will not believe either, and tells more of
        except requests.RequestException as error:
            raise TemporaryError(
                f"the asset could not be read ({type(error).__name__})",
                item=self.item,
                href=unsigned(url),
                hint="Try again; check the host name and the network",
            ) from error


def _headers(options: Mapping[str, str]) -> dict[str, str]:
    lines = options.get("GDAL_HTTP_HEADERS", "").split("\r\n")
    pairs = [line.partition(": ") for line in lines if line]
    return {name: value for name, _, value in pairs}
