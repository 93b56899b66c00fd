"""GDAL's read errors turned into ours: gone for good, or worth another try. Pure text, no GDAL."""

from __future__ import annotations

from geosam_stac.errors import DataError, GeosamStacError, TemporaryError
from geosam_stac.hrefs import unsigned

FORBIDDEN = ("401", "403", "access denied", "accessdenied")
GONE = ("404", "410", "no such file", "does not exist", "not recognized", "nosuchkey")


def read_error(error: Exception, *, item: str | None, href: str) -> GeosamStacError:
    """Turn an error of GDAL into ours: gone for good (65), or worth another try (75)."""
    text = str(error)
    low = text.lower()
    forbidden = any(word in low for word in FORBIDDEN)
    if forbidden or any(word in low for word in GONE):
        return DataError(
            "the asset may not be read" if forbidden else "the asset is not there or no raster",
            item=item,
            href=href,
            got=unsigned_text(text),
            hint="The store asks for credentials or a signature"
            if forbidden
            else "Check the asset's href in the Item",
        )
    return TemporaryError(
        "the asset could not be read",
        item=item,
        href=href,
        got=unsigned_text(text),
        hint="Try again; if it stays, the file may be damaged",
    )


def unsigned_text(text: str) -> str:
    """A message of GDAL with the query strings of its URLs cut off: they may hold a signature."""
    return " ".join(
        unsigned(word.partition("?")[0]) if "://" in word or "?" in word else word
        for word in text.split()
    )
