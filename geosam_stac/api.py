"""The Python API's functions: what a notebook or a script calls. An edge, like the CLI.

Here and in the CLI alone the environment is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pystac

from geosam_stac import session
from geosam_stac.config import EncodeConfig
from geosam_stac.encoders.checkpoints import default_cache_dir, hugging_face_token
from geosam_stac.events import Sink, ignore
from geosam_stac.pipeline import encode_scene
from geosam_stac.planning import Plan
from geosam_stac.sources import as_geojson
from geosam_stac.store import FeatureItem, PullResult, open_item, pull_features
from geosam_stac.types import EncodeResult


class Session(session.Session):
    """One model, many scenes: loads it once, and encodes scene after scene.

    Parameters
    ----------
    config
        An EncodeConfig, or None for the defaults.
    sink
        Called with every `geosam_stac.events.Event`, from several threads.
    options
        Fields of EncodeConfig by name, as `model="sam2.1-hiera-tiny"`; they win over `config`.

    Raises
    ------
    UsageError
        An unknown option (names the nearest one), or one out of range.
    ConfigurationError
        Unknown model, a device that is not there.
    """

    def __init__(
        self, config: EncodeConfig | None = None, *, sink: Sink = ignore, **options: Any
    ) -> None:
        if options.get("geometry") is not None:
            options["geometry"] = as_geojson(options["geometry"])
        asked = (config or EncodeConfig()).replace(options)
        if asked.geometry is not None:
            asked = asked.replace({"geometry": as_geojson(asked.geometry)})
        super().__init__(
            asked,
            cache_dir=default_cache_dir(os.environ),
            sink=sink,
            token=hugging_face_token(os.environ),
        )
        self.config_sources = dict.fromkeys(options, "Python")

    def encode(
        self, source: session.Source, *, out: str | os.PathLike[str] | None = None
    ) -> EncodeResult:
        """Encode one scene into `out` (default: the config's); see `pipeline.encode_scene`."""
        config = self.config if out is None else self.config.replace({"out": out})
        return encode_scene(self, self.scene(source), config)


def encode(
    source: session.Source,
    config: EncodeConfig | None = None,
    *,
    sink: Sink = ignore,
    **options: Any,
) -> EncodeResult:
    """Encode one STAC Item: features, manifest and a new Item in `out`.

    Parameters
    ----------
    source
        The Item's URL or path, its JSON document, a `pystac.Item`, or a Scene.
    config, options
        As for `Session`; `out` must be among them.
    sink
        Called with every `geosam_stac.events.Event`, from several threads.

    Returns
    -------
    EncodeResult
        The new Item, its href, counts of chips, bytes, seconds by stage.

    Raises
    ------
    GeosamStacError
        One of its children; `exit_code` and `retryable` tell them apart.
    """
    with Session(config, sink=sink, **options) as opened:
        return opened.encode(source)


def plan(source: session.Source, config: EncodeConfig | None = None, **options: Any) -> Plan:
    """What `encode` would take: chips, grid, bytes, objects. Reads no pixels.

    `estimated_seconds` is None here: it needs a measurement of the device (the CLI makes one).
    """
    with Session(config, **options) as opened:
        return opened.plan(source)


def open_features(
    source: str | os.PathLike[str] | pystac.Item | Mapping[str, Any],
) -> FeatureItem:
    """Open what was encoded: a scene's manifest and its chips' features.

    Reads the Item alone; the manifest and each chip's file are read when they are asked for, and
    checked against their sha256.

    Parameters
    ----------
    source
        Href of a feature Item, or of the folder that it lies in: a local path, s3://, gs://,
        http(s):// or any URL that fsspec has a driver for. Or the Item itself, as a search gives
        it.

    Raises
    ------
    DataError
        There is no such Item, or it describes no features.
    TemporaryError
        The store does not answer.
    """
    return FeatureItem(open_item(source))


def pull(
    source: str | os.PathLike[str] | pystac.Item | Mapping[str, Any] | FeatureItem,
    dest: str | os.PathLike[str],
    *,
    format: str = "pt",
    bbox: tuple[float, float, float, float] | None = None,
    crs: str | None = None,
    sink: Sink = ignore,
) -> PullResult:
    """Copy features into `dest/<item id>`, a folder that Geo-SAM opens as it is.

    Parameters
    ----------
    source
        As for `open_features`, or what that gave.
    dest, format, bbox, crs, sink
        See `store.pull.pull_features`.

    Returns
    -------
    PullResult
        The local folder and Item, counts of chips and bytes.
    """
    scene = source if isinstance(source, FeatureItem) else open_features(source)
    return pull_features(scene, dest, format=format, bbox=bbox, crs=crs, sink=sink)
