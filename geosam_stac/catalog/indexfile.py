"""One stac-geoparquet file that is published into: read, merged, and replaced at its version."""

from __future__ import annotations

from collections.abc import Sequence

from geosam_stac.catalog.index import index_facts, read_index, write_index
from geosam_stac.catalog.members import Document, StaticPlaces, member, order
from geosam_stac.errors import DataError
from geosam_stac.retry import Retries
from geosam_stac.versioned import VersionedStore, settle

TRIES = 200


def add_to_index(
    target: str, items: Sequence[tuple[Document, str]], *, retries: Retries | None = None
) -> int:
    """Put feature Items into a stac-geoparquet file; those of the same ids are replaced.

    Parameters
    ----------
    target
        The file: a path or URL; made when it is not there.
    items
        Documents, and the hrefs where they lie.
    retries
        How reading and writing the file are tried again.

    Returns
    -------
    int
        How many Items the file holds now.

    Raises
    ------
    DataError
        The file is no stac-geoparquet, or belongs to a catalog that is rebuilt as a whole.
    """
    folder, _, name = target.rpartition("/")
    store = VersionedStore(folder or ".", retries=retries)
    places = StaticPlaces(folder=store.url)
    new = {document["id"]: _listed(document, href, places) for document, href in items}
    for _ in settle(TRIES, target):
        version = store.version(name)
        data = None if version is None else store.read(name)
        held: list[Document] = []
        if data is not None:
            if "rows" in index_facts(data, target):
                raise DataError(
                    "this index belongs to a static catalog",
                    href=target,
                    hint="Publish to the catalog.json beside it",
                )
            held = read_index(data, target)
        merged = {one["id"]: one for one in held} | new
        content = write_index(sorted(merged.values(), key=order))
        if content == data or store.put_if(name, content, version):
            return len(merged)
    raise AssertionError("settle ends with an error")


def _listed(document: Document, href: str, places: StaticPlaces) -> Document:
    """The Item as a row: no Collection to link to, so its own place stays its self link."""
    result = member(document, href=href, places=places)
    # STAC allows the field only beside the link.
    del result["collection"]
    model = next(one["href"] for one in result["links"] if one["rel"] == "emb:model")
    result["links"] = [
        one | {"href": href} if one["rel"] == "self" else one
        for one in result["links"]
        if one["rel"] not in ("root", "parent", "collection", "emb:model")
        and not (one["rel"] == "derived_from" and one["href"] == model)
    ]
    return result
