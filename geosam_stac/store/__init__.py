"""What was encoded, used: opened, pulled to a folder, prompted (DESIGN section 2, `store`).

`opened` has an Item's chips, `pull` a local copy; `prompting`, `decoder`, `follow` and
`segmentation` go from a prompt to a polygon. Reads no raster. Imports torch.
"""

from geosam_stac.store.chip import StoredChip
from geosam_stac.store.locate import item_href, open_item
from geosam_stac.store.opened import FeatureItem
from geosam_stac.store.pull import PullResult, pull_features
from geosam_stac.store.segmentation import Segmentation

__all__ = [
    "FeatureItem",
    "PullResult",
    "Segmentation",
    "StoredChip",
    "item_href",
    "open_item",
    "pull_features",
]
