"""`encode --publish`: each new Item is published as soon as it is written."""

from __future__ import annotations

from collections.abc import Mapping

from geosam_stac.catalog.publish import kind_of, publish
from geosam_stac.catalog.reading import absolute_href
from geosam_stac.catalog.static import StaticCatalog, root_of
from geosam_stac.events import Sink, ignore
from geosam_stac.retry import Retries


class Publisher:
    """Publishes the Items of a run to one place; `to` None: nowhere, and nothing is done.

    A static catalog is rebuilt once, by `finish`. Raises UsageError when `to` is no place to
    publish to, before anything is encoded.
    """

    def __init__(
        self,
        to: str | None,
        *,
        headers: Mapping[str, str] | None = None,
        sink: Sink = ignore,
        retries: Retries | None = None,
    ) -> None:
        self._to = to
        self._headers = headers
        self._sink = sink
        self._retries = retries
        self._kind = None if to is None else kind_of(to)
        self._count = 0

    def add(self, href: str) -> None:
        """Publish one Item; raises as `publish`."""
        if self._to is not None:
            publish(
                [href],
                self._to,
                headers=self._headers,
                rebuild=False,
                sink=self._sink,
                retries=self._retries,
            )
            self._count += 1

    def finish(self) -> None:
        """Make the static catalog's Collections anew, if something was published to it."""
        if self._to is not None and self._kind == "catalog" and self._count:
            self._count = 0
            root = root_of(absolute_href(self._to))
            StaticCatalog(root, retries=self._retries).rebuild(sink=self._sink)
