"""Feature Items in catalogs: published, searched, kept in order.

Not to be taken for `geosam_stac.catalogs`, the profiles of the catalogs that imagery comes from.
"""

from geosam_stac.catalog.members import canonical
from geosam_stac.catalog.publish import publish
from geosam_stac.catalog.publisher import Publisher
from geosam_stac.catalog.query import FeatureQuery
from geosam_stac.catalog.search import search_features
from geosam_stac.catalog.static import Rebuilt, StaticCatalog, root_of

__all__ = [
    "FeatureQuery",
    "Publisher",
    "Rebuilt",
    "StaticCatalog",
    "canonical",
    "publish",
    "root_of",
    "search_features",
]
