"""HTTP that connects to no address that was not found in order, by no redirect.

The name is looked up once, the addresses are looked at, and one of them is connected to: a name
server that answers otherwise a moment later changes nothing. The certificate, and the name that is
asked for in TLS, stay those of the URL's host.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from geosam_stac.sources.hosts import Hosts


class PinnedAdapter(HTTPAdapter):
    """Asks `hosts` before each request. Through a proxy, which connects by itself, of its form."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As requests does; with connections of ours."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._hosts)

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """Check, then send.

        Raises
        ------
        DataError
            `hosts` does not let it.
        TemporaryError
            The host's name has no address now.
        """
        self._hosts.check_form(request.url or "")
        return super().send(request, stream, *args, **kwargs)


def _pools(hosts: Hosts) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, hosts.addresses(self.host), super()._new_conn)

    class Tls(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, hosts.addresses(self.host), super()._new_conn)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


def _connected(
    connection: HTTPConnection, addresses: Sequence[str] | None, connect: Any
) -> socket.socket:
    """A socket to the first of the addresses that answers; None: to whatever the name is."""
    if addresses is None:
        made: socket.socket = connect()
        return made
    name = connection._dns_host
    for place, address in enumerate(addresses):
        # What urllib3 connects to; what it asks for in TLS is taken later, of the name again.
        connection._dns_host = address
        try:
            made = connect()
        except (NewConnectionError, ConnectTimeoutError):
            if place == len(addresses) - 1:
                raise
        else:
            return made
        finally:
            connection._dns_host = name
    raise AssertionError("a name has at least one address")
