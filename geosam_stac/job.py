"""What is to be done for one scene, and under which names; what is there of it already."""

from __future__ import annotations

from dataclasses import dataclass

import pystac

from geosam_stac.checksums import verify_sources
from geosam_stac.commit import read_commit
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import UsageError
from geosam_stac.events import Notice
from geosam_stac.features import FORMATS
from geosam_stac.layout import Layout, item_id, layer_name
from geosam_stac.planning import chip_grid
from geosam_stac.session import Session
from geosam_stac.types import ChipGrid, Scene
from geosam_stac.versioned import VersionedStore


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scene with its config in force, chip grid, output and keys."""

    session: Session
    scene: Scene
    config: EncodeConfig
    grid: ChipGrid
    store: VersionedStore
    layout: Layout
    digest: str

    @classmethod
    def of(cls, session: Session, scene: Scene, config: EncodeConfig) -> Job:
        """Resolve presets and names; fetches the weights, whose sha256 is part of them.

        Raises
        ------
        UsageError
            There is no output, or the plan has too many chips.
        GeosamStacError
            The weights cannot be had.
        """
        if scene.items:
            config = session.in_force(scene.items[0], config)
        if config.out is None:
            raise UsageError("--out is missing", hint="Give a folder, or an s3:// or gs:// URL")
        grid = chip_grid(scene, config, session.entry)
        for notice in scene.notices:
            session.sink(Notice(message=notice))
        digest = config.digest(
            model=session.entry.name,
            weights_sha256=session.weights.sha256 or session.encoder.spec.weights_sha256,
            precision=session.precision,
            chip_px=grid.chip_px,
            stride_px=grid.stride_px,
        )
        layout = Layout(
            item_id=item_id(scene.id, session.entry.name, digest),
            layer=layer_name(scene.id),
            suffix=FORMATS[config.format].suffix,
        )
        return cls(
            session=session,
            scene=scene,
            config=config,
            grid=grid,
            store=VersionedStore(config.out, retries=session.retries),
            layout=layout,
            digest=digest,
        )

    def commit(self) -> pystac.Item | None:
        """The Item, where the scene is finished; raises as `read_commit`."""
        return read_commit(self.store, self.layout, self.scene)

    def prepare(self) -> None:
        """Look at what would fail in the end: the output, and the sources if that is asked."""
        self.store.check_writable()
        if self.config.verify_source:
            verify_sources(self.scene, access=self.session.access, sink=self.session.sink)
