"""What was encoded, used: opened, pulled to a folder, prompted (DESIGN section 2, `store`).

`opened` has an Item's chips and `pull` a local copy; `prompting`, `follow` and `segmentation` go
from a prompt to a polygon. Reads no raster. Imports torch.
"""

from geosam_stac.store.chip import StoredChip
from geosam_stac.store.opened import FeatureItem, open_item

__all__ = ["FeatureItem", "StoredChip", "open_item"]
