"""A Session and the scenes that are asked for, from a command's options and the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from geosam_stac.cli import console
from geosam_stac.cli.inputs import Inputs, Work, gather, scenes
from geosam_stac.cli.options import InForce

if TYPE_CHECKING:
    from geosam_stac.session import Session


@contextlib.contextmanager
def opened(
    inputs: Inputs, in_force: InForce, *, device: str | None = None
) -> Iterator[tuple[Session, Iterator[Work]]]:
    """Open a Session, with progress drawn on the terminal; and the scenes, lazily.

    `device` is used instead of the one that was asked for, by a machine that does not encode.
    """
    # Here, not above: these bring torch and GDAL, and take seconds.
    from geosam_stac.encoders.checkpoints import default_cache_dir, hugging_face_token
    from geosam_stac.retry import Retries, RetryPolicy
    from geosam_stac.session import Session
    from geosam_stac.sources import as_geojson

    config = in_force.config
    if config.geometry is not None:
        config = config.replace({"geometry": as_geojson(config.geometry)})
    profile = inputs.profile()
    hosts = inputs.hosts(profile, allow_private=config.allow_private_hosts)
    with console.ProgressSink() as sink:
        retries = Retries(RetryPolicy.of(config), sink=sink)
        found = gather(inputs, config, environ=os.environ, sink=sink, retries=retries, hosts=hosts)
        works = scenes(found, config.groupby)
        with Session(
            config if device is None else config.replace({"device": device}),
            cache_dir=default_cache_dir(os.environ),
            sink=sink,
            token=hugging_face_token(os.environ),
            profile=profile,
            access=inputs.access(profile, os.environ),
            hosts=hosts,
            encodes=device is None,
        ) as session:
            session.config_sources = in_force.sources
            session.inputs = inputs.as_dict()
            yield session, works
