"""Where a feature Item is: by its href, by its folder; and where its tables are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pystac

from geosam_stac import hrefs
from geosam_stac.errors import DataError
from geosam_stac.sources import parse_item, read_item
from geosam_stac.storage import read_text
from geosam_stac.store.objects import ObjectFolder, confined


def open_item(
    source: str | os.PathLike[str] | pystac.Item | Mapping[str, Any],
) -> pystac.Item:
    """The Item of a feature Item's href, of the folder that it lies in, or as it is.

    Raises
    ------
    DataError
        There is none, or it is no STAC Item.
    """
    if isinstance(source, pystac.Item):
        return source
    if isinstance(source, Mapping):
        return parse_item(dict(source), href=None)
    return read_item(item_href(os.fspath(source)), read_text=read_text)


def item_href(source: str) -> str:
    """The href of the Item's JSON where `source` is its folder; any other href as it is.

    Raises DataError where a folder holds no feature Item, or several documents that may be one.
    """
    return _item_in(source) if _is_folder(source) else source


def _is_folder(href: str) -> bool:
    if href.lower().startswith(("http://", "https://")):
        return href.endswith("/")
    if hrefs.is_local(href):
        return hrefs.to_local_path(href).is_dir()
    return href != "-" and not href.endswith(".json")


def _item_in(folder: str) -> str:
    """The Item's JSON in a folder: of the folder's name; in one that was renamed, the only one."""
    objects = ObjectFolder(folder)
    key = f"{objects.url.rpartition('/')[2]}.json"
    if objects.exists(key):
        return objects.href(key)
    others = [] if objects.store is None else [n for n in objects.store.files() if _may_be_item(n)]
    if len(others) != 1:
        raise DataError(
            "there is no feature Item in this folder",
            href=hrefs.unsigned(objects.url),
            expected=f"{key}, as encode writes it",
            got=f"{len(others)} documents that may be one" if others else None,
            hint="Name the Item's JSON file",
        )
    return objects.href(others[0])


def _may_be_item(name: str) -> bool:
    others = ("run.json", "pca.json", "catalog.json", "collection.json")
    return name.endswith(".json") and name not in others


def place_of(asset_href: str, item_href: str, item_id: str) -> tuple[str, str]:
    """Folder and name of an Item's table. Relative hrefs stay in the Item's own folder."""
    try:
        if "://" in asset_href or asset_href.startswith("/"):
            where = asset_href
            if hrefs.is_local(where) and item_href and not hrefs.is_local(item_href):
                raise DataError(
                    "an Item from elsewhere names a file of this machine",
                    href=hrefs.unsigned(item_href),
                    got=asset_href,
                )
        else:
            if not item_href:
                raise DataError(
                    "the Item's own href is not known, and its tables are relative to it",
                    hint="Open it by its href",
                )
            where = hrefs.absolute(confined(asset_href), item_href)
    except DataError as error:
        raise error.at(item=item_id) from None
    folder, _, name = where.partition("?")[0].rpartition("/")
    return folder, name
