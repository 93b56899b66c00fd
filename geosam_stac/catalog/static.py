"""The static catalog: what a worker adds, and the rebuild that makes the rest of it.

Many workers that change one JSON file lose each other's links, so a worker writes files of its own
alone: `index/<item>.parquet`, one row, which makes the Item a member, then the member's copy with
its links, and the model's Item where there is none. `rebuild` makes catalog.json, the Collections
and items.parquet of the rows that are there, each replaced only at the version it was at before
the rows were listed. So an older list of rows never replaces a newer one, whoever else is writing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from geosam_stac import hrefs
from geosam_stac.catalog.collections import catalog, feature_collection
from geosam_stac.catalog.index import index_facts, read_index, write_index
from geosam_stac.catalog.members import (
    CATALOG,
    COLLECTIONS,
    INDEX,
    INDEX_FILE,
    MODELS,
    RESERVED,
    Document,
    StaticPlaces,
    canonical,
    collection_key,
    in_place,
    index_key,
    is_feature_item,
    member,
    member_key,
    model_id,
    model_key,
    order,
    to_bytes,
)
from geosam_stac.catalog.models import model_item, models_collection
from geosam_stac.catalog.parallel import in_parallel
from geosam_stac.catalog.reading import read_document
from geosam_stac.errors import DataError, ForbiddenError
from geosam_stac.events import Notice, Sink, ignore
from geosam_stac.retry import Retries
from geosam_stac.versioned import VersionedStore, settle

TRIES = 50
# How often a rebuild takes in rows that came while it wrote; after that they wait for the next.
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What a catalog holds now: its href, Items, Collections of features, and what was dropped."""

    href: str
    items: int
    collections: int
    dropped: int


class StaticCatalog:
    """A static catalog in a folder: `root` is the folder's path or URL.

    `retries`: how operations on it are tried again.
    """

    def __init__(self, root: str, *, retries: Retries | None = None) -> None:
        self._retries = retries
        self.store = VersionedStore(root, retries=retries)
        self.places = StaticPlaces(folder=self.store.url)

    def add(self, document: Document, href: str) -> Document:
        """Make an Item a member; safe while others do, and to repeat. Returns the member.

        `href`: where the Item lies. Collections and items.parquet wait for `rebuild`; a search
        finds the Item at once.
        """
        added = member(document, href=href, places=self.places)
        # The row first: a copy without a row is what a rebuild clears away.
        self._put_new(index_key(added["id"]), write_index([added]))
        self._put_member(added)
        model = model_item(added, self.places)
        key = model_key(model["id"])
        if not self.store.exists(key):
            self.store.put(key, self._bytes(model, key))
        return added

    def rows(self) -> dict[str, str]:
        """Key -> version of the members' rows."""
        return self.store.versions(INDEX)

    def members(
        self, rows: Mapping[str, str], read: dict[str, tuple[str, Document]] | None = None
    ) -> list[Document]:
        """The members of rows, in order; those of rows that have gone since are left out.

        items.parquet answers for the rows that it was made of. `read`, by key with the version,
        keeps what was read for the next call.
        """
        read = {} if read is None else read
        if not read:
            self._read_index(rows, read)
        new = [key for key, version in rows.items() if read.get(key, ("",))[0] != version]
        for key, found in zip(new, in_parallel(self._read_row, new), strict=True):
            if found is not None:
                read[key] = (rows[key], found)
            else:
                read.pop(key, None)
        return sorted((read[key][1] for key in rows if key in read), key=order)

    def _read_index(self, rows: Mapping[str, str], read: dict[str, tuple[str, Document]]) -> None:
        data = self.store.read(INDEX_FILE)
        if data is None or not rows:
            return
        name = self.store.href(INDEX_FILE)
        held = index_facts(data, name).get("rows", {})
        for one in read_index(data, name):
            key = index_key(one["id"])
            if key in rows and rows[key] == held.get(key):
                read[key] = (rows[key], one)

    def _read_row(self, key: str) -> Document | None:
        """The member of a row; None when the row has gone since."""
        data = self.store.read(key)
        if data is None:
            return None
        found = read_index(data, self.store.href(key))
        return found[0] if found else None

    def rebuild(self, *, sink: Sink = ignore) -> Rebuilt:
        """Make catalog.json, the Collections and items.parquet of what is there.

        Items in folders of the root become members; members whose Item is gone are dropped.

        Raises
        ------
        DataError
            There is neither an Item nor a catalog.
        TemporaryError, StorageError
            The store cannot be read or written.
        GeosamStacError
            Others change the catalog without end.
        """
        read: dict[str, tuple[str, Document]] = {}
        dropped = self._refresh(read, sink)
        rounds = 0
        for _ in settle(TRIES, self.places.root):
            before = self._outputs()  # before the rows: see the module's docstring
            rows = self.rows()
            members = self.members(rows, read)
            if not members and not dropped and CATALOG not in before:
                raise DataError(
                    "there are no feature Items here",
                    href=self.store.url,
                    expected="the --out of `geosam-stac encode`, or a catalog published to",
                )
            outputs = self._made_of(members, rows)
            if len(members) != len(rows) or not self._write(outputs, before):
                continue
            rounds += 1
            there = list(self._outputs())
            if self.rows() == rows:
                self._sweep(there, outputs, members)
            elif rounds < ROUNDS:
                continue
            else:
                text = "Items are published all the while: rebuild again when the workers are done"
                sink(Notice(message=text, level="warning"))
            return Rebuilt(
                href=self.places.root,
                items=len(members),
                collections=len({one["collection"] for one in members}),
                dropped=dropped,
            )
        raise AssertionError("settle ends with an error")

    # What is there

    def _refresh(self, read: dict[str, tuple[str, Document]], sink: Sink) -> int:
        """Bring the rows up to date with the Items; returns how many members were dropped."""
        self.members(self.rows(), read)
        held = {key: document for key, (_, document) in read.items()}
        there = {*self._outputs()}

        def keep(document: Document, href: str) -> str:
            made = member(document, href=href, places=self.places)
            key = index_key(made["id"])
            if held.get(key) != made or not there.issuperset(_files(made)):
                self.add(document, href)
            return key

        def adopt(folder: str) -> str | None:
            """Make the Item of a scene's folder a member; its row's key."""
            key = f"{folder}/{folder}.json"
            document = _parsed(self.store.read(key))
            return None if document is None else keep(document, self.store.href(key))

        def check(key: str) -> int:
            """Look after the Item of a row that lies elsewhere: 1 when it is gone, so dropped."""
            href = canonical(held[key])
            document, reason = _read(href, self._retries)
            if document is None:
                self.store.delete(key)
                # Written again since? Then its worker's row may be the one that was deleted.
                document, reason = _read(href, self._retries)
            if document is None:
                text = f"{held[key]['id']} is dropped from the catalog: {reason}"
                sink(Notice(message=text, level="warning"))
                return 1
            keep(document, href)
            return 0

        folders = [name for name in self.store.folders() if name not in RESERVED]
        found = set(in_parallel(adopt, folders))
        return sum(in_parallel(check, [key for key in held if key not in found]))

    def _outputs(self) -> dict[str, str]:
        """Key -> version of all that a rebuild writes."""
        found = self.store.versions(COLLECTIONS) | self.store.versions(MODELS)
        for key in (CATALOG, INDEX_FILE):
            if (version := self.store.version(key)) is not None:
                found[key] = version
        return found

    # What is made of it

    def _made_of(self, members: list[Document], rows: Mapping[str, str]) -> dict[str, bytes]:
        """Key -> content of the catalog, its Collections, its models and items.parquet."""
        groups: dict[str, list[Document]] = {}
        models: dict[str, Document] = {}
        for one in members:
            groups.setdefault(one["collection"], []).append(one)
            models.setdefault(model_id(one), model_item(one, self.places))
        index_href = self.store.href(INDEX_FILE)
        found = [
            feature_collection(group, self.places, index_href=index_href)
            for group in groups.values()
        ]
        outputs: dict[str, Document] = {}
        if models:
            listed = [models[name] for name in sorted(models)]
            found.append(models_collection(listed, self.places))
            outputs |= {model_key(one["id"]): one for one in listed}
        outputs |= {collection_key(one["id"]): one for one in found}
        outputs[CATALOG] = catalog(found, self.places)
        made = {key: self._bytes(one, key) for key, one in outputs.items()}
        if members:
            made[INDEX_FILE] = write_index(members, facts={"rows": dict(rows)})
        return made

    def _bytes(self, document: Document, key: str) -> bytes:
        return to_bytes(in_place(document, root=self.store.url, key=key))

    def _write(self, outputs: Mapping[str, bytes], before: Mapping[str, str]) -> bool:
        """Replace what has changed; False when another rebuild was quicker."""
        for key, data in outputs.items():
            if key in before and self.store.read(key) == data:
                continue
            if not self.store.put_if(key, data, before.get(key)):
                return False
        return True

    def _sweep(
        self, there: list[str], outputs: Mapping[str, bytes], members: list[Document]
    ) -> None:
        """Delete Collections without members, models without features, members without a row.

        `there` was listed before the rows, and a worker writes its row first: what no row speaks
        for is of no worker that is still at it.
        """
        kept = {*outputs, *(member_key(one["collection"], one["id"]) for one in members)}
        for key in there:
            if key not in kept:
                self.store.delete(key)

    # Files of one Item

    def _put_member(self, document: Document) -> None:
        key = member_key(document["collection"], document["id"])
        self._put_new(key, self._bytes(document, key))

    def _put_new(self, key: str, data: bytes) -> None:
        """Write what is not there so already: an unchanged file keeps its version."""
        if self.store.read(key) != data:
            self.store.put(key, data)


def root_of(target: str) -> str:
    """The folder of a catalog, named by it or by its catalog.json."""
    base, slash, name = target.rstrip("/").rpartition("/")
    if name != CATALOG:
        return target
    return base if slash else "."


def _files(document: Document) -> set[str]:
    """Keys of what a worker writes beside the row."""
    return {member_key(document["collection"], document["id"]), model_key(model_id(document))}


def _parsed(data: bytes | None) -> Document | None:
    """The feature Item of a file; None when it is none."""
    try:
        document = None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if is_feature_item(document) else None


def _read(href: str, retries: Retries | None) -> tuple[Document | None, str]:
    """The feature Item at an href, or None and why there is none."""
    try:
        document = read_document(href, retries=retries)
    except ForbiddenError:
        raise
    except DataError as error:
        return None, f"{hrefs.unsigned(href)}: {error.message}"
    if not is_feature_item(document):
        return None, f"{hrefs.unsigned(href)} is no Item of features any more"
    return document, ""
