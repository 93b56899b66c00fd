"""A feature Item's folder given in place of its JSON."""

from __future__ import annotations


def named_item(source: str) -> str:
    """The Item's JSON of a folder of features, local or on a store; any other href as it is.

    Raises DataError where the folder holds none.
    """
    # Most hrefs are none, and `store` imports torch.
    if (
        source == "-"
        or source.endswith(".json")
        or source.lower().startswith(("http://", "https://"))
    ):
        return source
    from geosam_stac.store import item_href

    return item_href(source)
