"""Whom a remote Item may send us to: public hosts, and the host that the user typed.

An Item, a page of a search and a redirect are written by strangers, and this machine may reach what
they cannot: its own services, its network, the credentials at 169.254.169.254. Each address that a
name has is looked at before anything is sent there. What stays open is told in SECURITY.md.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from urllib.parse import urlsplit

import pystac
import requests
from requests.utils import select_proxy

from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.hrefs import is_local, remote_fault, unsigned

# A verdict on a name is good for this long: a name server that answers otherwise from one minute
# to the next shall not be asked a thousand times, nor be believed for a whole run.
VERDICT_S = 30.0

_HINT = "If you trust this Item, give --allow-private-hosts"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Hosts:
    """Which hosts a remote Item may name. Safe to use from several threads.

    Parameters
    ----------
    typed
        URLs that the user typed: their hosts, on any port, are trusted wherever they lie.
    allow_private
        Everything is allowed.
    """

    def __init__(self, *typed: str, allow_private: bool = False) -> None:
        self.allow_private = allow_private
        self._lock = threading.Lock()
        self._trusted: set[str] = set()
        self._good: dict[str, float] = {}
        self._followed: set[str] = set()
        self._own: set[tuple[str, str | None]] = set()
        for url in typed:
            self.trust(url)

    def trust(self, url: str) -> None:
        """The user typed this URL (or path): its host is trusted from now on."""
        if host := _host(url):
            with self._lock:
                self._trusted.add(host)

    def trust_host(self, host: str) -> None:
        """As `trust`, of a host that `typed` gave in an earlier run or on another machine."""
        with self._lock:
            self._trusted.add(host)

    def own(self, item: pystac.Item) -> None:
        """The Item lies in a file of the user's, wherever it once came from: it is not checked."""
        with self._lock:
            self._own.add((item.id, item.get_self_href()))

    @property
    def typed(self) -> tuple[str, ...]:
        """The trusted hosts, sorted."""
        with self._lock:
            return tuple(sorted(self._trusted))

    def check_form(self, href: str, *, item: str | None = None) -> None:
        """Refuse, without any look-up, an href that is of this machine whoever is asked.

        Raises DataError.
        """
        if self.allow_private:
            return
        if fault := remote_fault(href):
            raise refused(fault).at(item=item, href=unsigned(href)[:200])
        host = _host(href) or ""
        literal = _address(host)
        if literal is not None and not self._is_trusted(host) and not is_public(literal):
            fault = f"{literal} is not a public address"
            raise refused(fault).at(item=item, href=unsigned(href)[:200])

    def check(self, href: str, *, item: str | None = None) -> None:
        """Refuse an href that leads to this machine or its network; looks its host up.

        Raises
        ------
        DataError
            The href is of another form, or one of its host's addresses is not public.
        TemporaryError
            The host's name has no address now.
        """
        self.check_form(href, item=item)
        host = _host(href)
        if host is None or select_proxy(href, requests.utils.get_environ_proxies(href)):
            return  # the proxy looks the name up, and has rules of its own
        with self._lock:
            if self._good.get(host, 0.0) > time.monotonic():
                return
        try:
            self.addresses(host)
        except (DataError, TemporaryError) as error:
            error.at(item=item, href=unsigned(href)[:200])
            raise
        with self._lock:
            self._good[host] = time.monotonic() + VERDICT_S

    def addresses(self, host: str) -> list[str] | None:
        """The addresses of a host, all in order; None where any may be connected to.

        Raises as `check`.
        """
        host = host.strip("[]").lower().rstrip(".")
        if (self.allow_private or self._is_trusted(host)) and not host.endswith(".localhost"):
            return None
        found = _addresses(host)
        if self.allow_private or self._is_trusted(host):
            return [str(address) for address in found]
        for address in found:
            if not is_public(address):
                raise refused(f"{host} is at {address}, not a public address")
        return [str(address) for address in dict.fromkeys(found)]

    def guards(self, item: pystac.Item) -> bool:
        """Whether the Item is a stranger's."""
        with self._lock:
            known = (item.id, item.get_self_href()) in self._own
        return not known and not self.allow_private and is_remote(item)

    def is_followed(self, href: str) -> bool:
        """Whether the href's redirects have been followed, and found in order."""
        with self._lock:
            return href in self._followed

    def followed(self, href: str) -> None:
        """The href's redirects are in order."""
        with self._lock:
            self._followed.add(href)

    def _is_trusted(self, host: str) -> bool:
        with self._lock:
            return host in self._trusted


def is_remote(item: pystac.Item) -> bool:
    """Whether an Item came over the network: by its self link, which its reader has set."""
    href = item.get_self_href()
    return href is not None and not is_local(href)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is of the public internet; so must be the IPv4 one inside an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified
    )


def _host(url: str) -> str | None:
    """The host of an http(s) URL, lower case; None of anything else."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    return host.rstrip(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if host == "localhost" or host.endswith(".localhost"):
        return [ipaddress.IPv4Address("127.0.0.1")]  # RFC 6761, and curl
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TemporaryError(
            "the host's name has no address",
            got=str(error),
            hint="Try again; check the host name and the network",
        ) from error
    return [ipaddress.ip_address(str(entry[4][0])) for entry in found]


def refused(fault: str) -> DataError:
    """The error of an href that may not be followed, for that reason."""
    return DataError(f"a remote Item may not send us there: {fault}", hint=_HINT)
