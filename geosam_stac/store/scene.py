"""What prompting needs of a scene's features: a `FeatureItem` has it. Types only.

So `opened` imports the modules that prompt, and they do not import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pystac
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

    from geosam_stac.encoders.registry import ModelEntry
    from geosam_stac.errors import UsageError
    from geosam_stac.store.chip import StoredChip
    from geosam_stac.store.index import ChipIndex


class Scene(Protocol):
    """An encoded scene: its Item, where its chips lie, and how to get one."""

    item: pystac.Item

    @property
    def model(self) -> ModelEntry:
        """The model that encoded it."""

    @property
    def feature_names(self) -> list[str]:
        """The tensors that each chip has, as the Item says; empty where it does not say."""

    @property
    def index(self) -> ChipIndex:
        """Where the chips lie."""

    @property
    def crs(self) -> CRS:
        """The scene's CRS."""

    @property
    def geobox(self) -> GeoBox:
        """The scene's pixel grid."""

    def chip_of_row(self, row: int) -> StoredChip:
        """The chip in a row of the manifest."""

    def read_key(self, key: str) -> bytes:
        """An object beside the manifest."""

    def not_covered(self, geometry: Any, said: str) -> UsageError:
        """The error of a prompt that no chip covers."""
