"""A feature Item as a member of a catalog: its Collection, its links, where its files lie.

The Item that `encode` wrote is never changed: a member is a copy of its document, with hrefs that
hold everywhere, a Collection, and a `canonical` link to the Item. Pure: opens nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from geosam_stac import hrefs
from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.layout import sanitize

Document = dict[str, Any]

CATALOG = "catalog.json"
INDEX_FILE = "items.parquet"
INDEX = "index"
COLLECTIONS = "collections"
MODELS = "models"
RESERVED = frozenset({INDEX, COLLECTIONS, MODELS})
"""Folders of the catalog's own: every other folder of the root is a scene's."""

MODELS_COLLECTION = "geosam-models"
UNKNOWN_SOURCE = "other"
GEOJSON = "application/geo+json"
JSON = "application/json"

# Links that say where a document is: a member has its own.
_PLACE = frozenset({"self", "canonical", "collection", "parent", "root", "item", "items"})


def is_feature_item(document: Any) -> bool:
    """Whether a document is an Item that `encode` wrote."""
    properties = document.get("properties") if isinstance(document, dict) else None
    return (
        isinstance(properties, dict)
        and document.get("type") == "Feature"
        and isinstance(document.get("id"), str)
        and isinstance(properties.get("mlm:name"), str)
        and isinstance(properties.get("geosam:config_hash"), str)
    )


def is_upstream(document: Document) -> bool:
    """Whether its features come from the published weights: then `encode` links to them."""
    links = document.get("links") or []
    return any(link.get("rel") == "derived_from" and "mlm:name" in link for link in links)


def model_id(document: Document) -> str:
    """Name of the model's own Item: weights that are not the published ones have one each."""
    properties = document["properties"]
    name = sanitize(str(properties["mlm:name"]))
    if is_upstream(document):
        return name
    kind = "untrained" if properties.get("geosam:weights") == "untrained" else "own"
    return f"{name}-{kind}-{str(properties.get('geosam:weights_sha256', ''))[:8]}"


def collection_id(document: Document) -> str:
    """Name of the Collection of a model and its source collections."""
    sources = document["properties"].get("geosam:source_collections") or [UNKNOWN_SOURCE]
    return sanitize(f"{model_id(document)}-{'-'.join(sorted(map(str, sources)))}")


def key_name(item_id: str) -> str:
    """A file's name for an id; ids that come to the same safe name stay apart."""
    name = sanitize(item_id)
    if name == item_id:
        return name
    digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[:119]}-{digest}"


def index_key(item_id: str) -> str:
    """The one-row table of a member."""
    return f"{INDEX}/{key_name(item_id)}.parquet"


def member_key(collection: str, item_id: str) -> str:
    """The member's document."""
    return f"{COLLECTIONS}/{collection}/{key_name(item_id)}.json"


def collection_key(collection: str) -> str:
    """A Collection's document; `models` has its own folder."""
    folder = MODELS if collection == MODELS_COLLECTION else f"{COLLECTIONS}/{collection}"
    return f"{folder}/collection.json"


def model_key(model: str) -> str:
    """The document of a model's Item."""
    return f"{MODELS}/{model}.json"


class Places(Protocol):
    """Where the documents of a catalog lie: absolute hrefs."""

    @property
    def root(self) -> str:
        """The catalog itself."""

    def collection(self, collection: str) -> str:
        """A Collection."""

    def item(self, collection: str, item_id: str) -> str:
        """A member of a Collection."""

    def model(self, model: str) -> str:
        """A model's Item."""


@dataclass(frozen=True, kw_only=True)
class StaticPlaces:
    """A static catalog in `folder`: an absolute path or URL without a trailing slash."""

    folder: str

    @property
    def root(self) -> str:
        """The catalog's document."""
        return f"{self.folder}/{CATALOG}"

    def collection(self, collection: str) -> str:
        """The Collection's document."""
        return f"{self.folder}/{collection_key(collection)}"

    def item(self, collection: str, item_id: str) -> str:
        """The member's document."""
        return f"{self.folder}/{member_key(collection, item_id)}"

    def model(self, model: str) -> str:
        """The document of a model's Item."""
        return f"{self.folder}/{model_key(model)}"


@dataclass(frozen=True, kw_only=True)
class ApiPlaces:
    """A STAC API: the URL of its landing page, without a trailing slash."""

    root: str

    def collection(self, collection: str) -> str:
        """The Collection's endpoint."""
        return f"{self.root}/collections/{quote(collection, safe='')}"

    def item(self, collection: str, item_id: str) -> str:
        """The Item's endpoint."""
        return f"{self.collection(collection)}/items/{quote(item_id, safe='')}"

    def model(self, model: str) -> str:
        """The endpoint of a model's Item."""
        return self.item(MODELS_COLLECTION, model)


def member(document: Document, *, href: str, places: Places) -> Document:
    """The document of a feature Item as a member of a catalog.

    Parameters
    ----------
    document
        The Item as it was written, or a member of any catalog; left as it is.
    href
        Where the Item lies: an absolute path or URL.
    places
        Of the catalog.

    Returns
    -------
    dict
        With absolute hrefs; `in_place` makes them relative for the file.

    Raises
    ------
    DataError
        This is no Item that `encode` wrote.
    GeosamStacError
        It holds a signature.
    """
    if not is_feature_item(document):
        raise DataError(
            "not an Item of SAM features",
            item=document.get("id") if isinstance(document, dict) else None,
            href=hrefs.unsigned(href),
            expected="an Item that `geosam-stac encode` wrote",
        )
    result = absolute(document, href)
    collection = collection_id(document)
    home = places.collection(collection)
    model = places.model(model_id(document))
    former = link(result, "emb:model")
    kept = [
        one
        for one in result.get("links") or []
        if one.get("rel") not in _PLACE
        and not (one.get("rel") in ("derived_from", "emb:model") and one.get("href") == former)
    ]
    result["collection"] = collection
    result["links"] = [
        {"rel": "self", "href": places.item(collection, document["id"]), "type": GEOJSON},
        {"rel": "canonical", "href": hrefs.unsigned(href), "type": GEOJSON},
        {"rel": "root", "href": places.root, "type": JSON},
        {"rel": "parent", "href": home, "type": JSON},
        {"rel": "collection", "href": home, "type": JSON},
        *kept,
        {"rel": "emb:model", "href": model, "type": GEOJSON},
        {"rel": "derived_from", "href": model, "type": GEOJSON},
    ]
    secret = hrefs.find_secret(json.dumps(result))
    if secret is not None:
        raise GeosamStacError(
            f"refusing to publish an Item that holds a signature or key ({secret})",
            item=document["id"],
            href=hrefs.unsigned(href),
        )
    return result


def absolute(document: Document, base: str) -> Document:
    """A copy whose links and assets have absolute hrefs; `base`: where the document lies."""
    return with_hrefs(document, lambda href: hrefs.absolute(href, base))


def with_hrefs(document: Document, change: Callable[[str], str]) -> Document:
    """A copy with the hrefs of all links and assets changed."""
    result = copy.deepcopy(document)
    for part in _parts(result):
        part["href"] = change(str(part["href"]))
    return result


def in_place(document: Document, *, root: str, key: str) -> Document:
    """A copy for the file of `key`: hrefs below `root` are relative to it, but for `self`.

    So a catalog that was copied elsewhere, or is served by another name, still leads to its own
    files.
    """
    result = copy.deepcopy(document)
    folder = posixpath.dirname(key)
    for part in _parts(result):
        href = str(part["href"])
        if part.get("rel") != "self" and href.startswith(f"{root}/"):
            inside = posixpath.relpath(href.removeprefix(f"{root}/"), folder or ".")
            part["href"] = inside if inside.startswith(".") else f"./{inside}"
    return result


def _parts(document: Document) -> Sequence[Document]:
    """Everything of a document that has an href."""
    parts = [*(document.get("links") or []), *(document.get("assets") or {}).values()]
    return [part for part in parts if isinstance(part.get("href"), str)]


def link(document: Document, rel: str) -> str | None:
    """Href of the first link of a kind."""
    for one in document.get("links") or []:
        if one.get("rel") == rel:
            return str(one["href"])
    return None


def canonical(document: Document) -> str:
    """Where the Item itself lies; its self link, or its id, where nothing says so."""
    return link(document, "canonical") or link(document, "self") or str(document["id"])


def order(document: Document) -> tuple[str, str]:
    """The order in files: by Collection and id."""
    return str(document.get("collection")), str(document["id"])


def to_bytes(document: Document) -> bytes:
    """Stable, indented UTF-8 JSON."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
