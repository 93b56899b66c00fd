"""Where scenes come from: STAC Items, their bands, their headers, the grid that is asked for.

Reads no pixels. Must not import cube, storage, encoders or anything above.
"""

from geosam_stac.sources.bands import list_bands, select_bands
from geosam_stac.sources.geometry import as_geojson
from geosam_stac.sources.items import parse_item, read_item
from geosam_stac.sources.scene import open_scene

__all__ = ["as_geojson", "list_bands", "open_scene", "parse_item", "read_item", "select_bands"]
