"""Where the objects of a feature Item lie, and how they are read: nothing outside their folder.

Local folders and object stores go through `storage`, http(s) through `sources`' session.
"""

from __future__ import annotations

import hashlib
import threading
from urllib.parse import quote

import requests

from geosam_stac import hrefs
from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.http import TIMEOUT_S, http_session
from geosam_stac.versioned import VersionedStore


class ObjectFolder:
    """The objects below one folder, by relative POSIX keys; for reading, from several threads.

    `url` is the folder: an absolute local path or a URL, without a trailing slash. `store` reads
    and writes there; None over http(s).
    """

    def __init__(self, url: str) -> None:
        self.is_http = url.lower().startswith(("http://", "https://"))
        self.store = None if self.is_http else VersionedStore(url)
        self.url = url.rstrip("/") if self.store is None else self.store.url
        self.is_local = self.store is not None and self.store.is_local
        self._sessions = threading.local()

    def href(self, key: str) -> str:
        """Absolute local path or URL of a key."""
        return f"{self.url}/{quote(key)}" if self.store is None else self.store.href(key)

    def get(self, key: str) -> bytes:
        """Read an object.

        Raises
        ------
        DataError
            There is none, or the server refuses.
        TemporaryError
            The store does not answer, or cannot now.
        """
        return self._http(self.href(key)) if self.store is None else self.store.get(key)

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key; of http folders, by reading it."""
        if self.store is not None:
            return self.store.exists(key)
        try:
            self._http(self.href(key))
        except DataError:
            return False
        return True

    def _http(self, url: str) -> bytes:
        if not hasattr(self._sessions, "session"):  # requests promises no safety across threads
            self._sessions.session = http_session(Hosts(self.url))
        href = hrefs.unsigned(url)
        try:
            response = self._sessions.session.get(url, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise TemporaryError(
                f"the server did not answer ({type(error).__name__})",
                href=href,
                hint="Try again; check the host name and the network",
            ) from error
        if response.status_code == 429 or response.status_code >= 500:
            status = f"HTTP {response.status_code}"
            raise TemporaryError("the server cannot answer now", href=href, got=status)
        if not response.ok:
            raise DataError(
                "an object of the Item cannot be had", href=href, got=f"HTTP {response.status_code}"
            )
        return bytes(response.content)


def confined(href: object, *, chip: str | None = None) -> str:
    """A relative href as a key below the folder that it is relative to.

    Raises
    ------
    DataError
        It is absolute, or leads out of the folder.
    """
    text = href.removeprefix("./") if isinstance(href, str) else ""
    parts = text.split("/")
    if "\\" in text or "\0" in text or ":" in parts[0] or any(p in ("", ".", "..") for p in parts):
        raise DataError(
            "the href of an object leads out of the Item's folder",
            chip=chip,
            expected="a path relative to the manifest, below it",
            got=repr(href)[:200],
            hint="Nothing is read from there; use the Item that geosam-stac wrote",
        )
    return text


def check_sha256(data: bytes, expected: str, *, href: str, chip: str | None = None) -> None:
    """DataError where the sha256 (hex) of an object is not the expected one."""
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise DataError(
            "an object is not the one that was written",
            href=href,
            chip=chip,
            expected=f"sha256 {expected}",
            got=f"{got} ({len(data):,} bytes)",
            hint="It is damaged, or was replaced: encode the scene again",
        )
