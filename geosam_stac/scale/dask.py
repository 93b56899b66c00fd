"""Scenes and parts of scenes as tasks of a Dask cluster. The scheduler does the rest.

A task runs where a GPU is free (workers that are started with `--resources GPU=1`), the model is
loaded once a worker process, a lost worker's tasks go to others. `distributed` is an extra.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pystac

from geosam_stac import events
from geosam_stac.config import EncodeConfig
from geosam_stac.encoders.checkpoints import default_cache_dir, hugging_face_token
from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    GeosamStacError,
    Interrupted,
    StorageError,
    TemporaryError,
)
from geosam_stac.events import ChipDone, Notice, SceneFinished, SceneStarted, Sink
from geosam_stac.scale.finalize import finalize_scene
from geosam_stac.scale.shards import Unit, split
from geosam_stac.scale.work import Source, UnitResult, encode_unit, estimated_chips
from geosam_stac.session import Session
from geosam_stac.sources import parse_item
from geosam_stac.sources.access import accesses
from geosam_stac.sources.groups import Group
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.profiles import load_profile
from geosam_stac.types import EncodeResult

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

TOPIC = "geosam-stac"
RESOURCE = "GPU"
# A task that failed for the time being, or whose worker was lost, is done again so many times.
RETRIES = 3
# Dask's default is 0: one lost packet between scheduler and worker would end a run of hours.
COMM_RETRIES = {
    "distributed.comm.retry.count": 5,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
}
# Parts a worker, so that the last ones to end do not wait long for each other; and their least
# size: blocks at the seams of parts are read twice.
PARTS_A_WORKER = 4
LEAST_PART_CHIPS = 64
# What would fail every task alike.
FATAL = (StorageError, ConfigurationError, Interrupted)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a worker opens its Session with. Holds no secret: those are in its own environment.

    `catalog`, `signer` and `anonymous` as the options of that name; `sources` says where each
    option in the config came from; `hosts` are those that the user typed; `inputs` what the scenes
    were asked for by.
    """

    config: EncodeConfig
    catalog: str | None = None
    signer: str | None = None
    anonymous: bool = False
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def connect(address: str, *, timeout_s: float = 20.0) -> Client:
    """A client of the scheduler at `address` (`tcp://host:8786`).

    Raises
    ------
    ConfigurationError
        `distributed` is not installed, or the address is none.
    TemporaryError
        The scheduler does not answer.
    """
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise ConfigurationError(
            "Dask's scheduler needs a package that is not installed",
            expected="distributed",
            hint="pip install 'geosam-stac[dask]'",
        ) from error
    dask.config.set(COMM_RETRIES)
    try:
        return Client(address, timeout=f"{timeout_s:g}s", set_as_default=False)
    except ValueError as error:
        raise ConfigurationError(
            "--dask is no address of a scheduler", expected="tcp://HOST:PORT", got=address
        ) from error
    except OSError as error:
        raise TemporaryError(
            "Dask's scheduler does not answer", href=address, got=str(error).partition("\n")[0]
        ) from error


def encode_all(
    client: Client, session: Session, sources: Sequence[Source], recipe: Recipe
) -> Iterator[UnitResult]:
    """Encode scenes on the cluster; each is given back when it is done, `unit.scene` its place.

    Of a scene that was split the result is that of its last part, with the finished Item's id.

    Parameters
    ----------
    client
        A client of the cluster.
    session
        On this machine, on any device: it plans, and puts split scenes together.
    sources
        The scenes.
    recipe
        How workers open theirs.

    Raises
    ------
    GeosamStacError
        What would fail every scene alike: the output, the model, the scheduler. Else the error
        stands in the result.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    chips = [estimated_chips(session, source) for source in sources]
    share = -(-sum(chips) // (PARTS_A_WORKER * max(1, len(workers))))
    units = split(chips, at_most=max(LEAST_PART_CHIPS, share))
    with_gpu = sum(RESOURCE in worker["resources"] for worker in workers.values())
    if not with_gpu:
        session.sink(
            Notice(
                message=f"no worker has the resource {RESOURCE}: each takes tasks as it has "
                f"threads, one at a time. Start workers with --resources {RESOURCE}=1"
            )
        )
    session.sink(
        SceneStarted(
            scene_id="",
            item_id=f"{len(sources):,} scenes in {len(units):,} tasks on {len(workers):,} workers",
            chips=sum(chips),
        )
    )
    documents = [_document(source, session.hosts) for source in sources]
    with (
        _forwarded(client, session.sink),
        _submitted(client, documents, recipe, units, with_gpu) as (futures),
    ):
        yield from _collect(client, session, sources, recipe.config, futures)
    session.sink(SceneFinished(scene_id="", href=recipe.config.out or ""))


@contextlib.contextmanager
def _submitted(
    client: Client,
    documents: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    units: list[Unit],
    with_gpu: int,
) -> Iterator[dict[Future[Any], Unit]]:
    """The tasks, largest first; those that have not begun are cancelled in the end."""
    run = uuid.uuid4().hex[:8]
    futures: dict[Future[Any], Unit] = {}
    try:
        for unit in sorted(units, key=lambda unit: (-unit.chips, unit)):
            future = client.submit(
                _encode,
                recipe,
                documents[unit.scene],
                unit,
                # The dashboard groups tasks by what stands before the first hyphen's number.
                key=f"encode-{run}-{unit.scene:06d}-{unit.part:04d}",
                retries=RETRIES,
                resources={RESOURCE: 1} if with_gpu else None,
                pure=False,
            )
            futures[future] = unit
        yield futures
    finally:
        client.cancel(list(futures))


def _collect(
    client: Client,
    session: Session,
    sources: Sequence[Source],
    config: EncodeConfig,
    futures: Mapping[Future[Any], Unit],
) -> Iterator[UnitResult]:
    from distributed import as_completed

    parts: dict[int, list[UnitResult]] = {}
    for future in as_completed(list(futures), loop=client.loop):
        unit = futures[future]
        source = sources[unit.scene]
        result = _result(future, unit, source)
        if isinstance(result.error, FATAL):
            raise result.error
        if unit.parts > 1:
            done = parts.setdefault(unit.scene, [])
            done.append(result)
            if len(done) < unit.parts:
                continue
            result = _joined(session, source, config, done)
        yield result


def _result(future: Future[Any], unit: Unit, source: Source) -> UnitResult:
    from distributed import KilledWorker

    try:
        result: UnitResult = future.result()
    except GeosamStacError as error:
        return UnitResult(unit=unit, name=source.id, error=error)
    except KilledWorker as error:
        lost = TemporaryError(
            "the scene's workers were lost, one after the other",
            item=source.id,
            got=str(error).partition("\n")[0],
            hint="They may have run out of memory: give --max-memory, or larger workers",
        )
        return UnitResult(unit=unit, name=source.id, error=lost)
    except Exception as error:  # a defect of ours on the worker, or a scheduler that has gone
        if type(error).__name__ in ("CancelledError", "FutureCancelledError", "CommClosedError"):
            raise TemporaryError(
                "Dask's scheduler was lost", got=str(error).partition("\n")[0]
            ) from error
        raise
    return result


def _joined(
    session: Session, source: Source, config: EncodeConfig, done: list[UnitResult]
) -> UnitResult:
    """The whole of a scene whose tasks have all ended."""
    for result in done:
        if result.error is not None:
            return result
    last = done[-1]
    parts = [result.part for result in done if result.part is not None]
    ids = sorted({part.item_id for part in parts})
    try:
        if len(ids) > 1:
            raise DataError(
                "workers of several kinds made parts of one scene, and these do not match",
                item=source.id,
                got=", ".join(ids),
                hint="Give --precision, so that all workers compute alike",
            )
        item, href = finalize_scene(session, source, config, item_id=ids[0], parts=last.unit.parts)
    except GeosamStacError as error:
        return UnitResult(unit=last.unit, name=source.id, error=error)
    whole = EncodeResult(
        item=item,
        href=href,
        chips_encoded=sum(part.chips_encoded for part in parts),
        chips_resumed=sum(part.chips_resumed for part in parts),
        chips_skipped=sum(part.chips_skipped for part in parts),
        chips_failed=0,
        bytes_read=sum(part.bytes_read for part in parts),
        bytes_written=sum(part.bytes_written for part in parts),
        # Of the slowest part, which the others waited for.
        seconds=max((part.seconds for part in parts), key=lambda stages: stages.get("total", 0.0)),
        busy={},
    )
    return UnitResult(unit=last.unit, name=source.id, whole=whole)


# On a worker


_lock = threading.Lock()
_opened: tuple[Recipe, Session] | None = None


def _encode(recipe: Recipe, document: Mapping[str, Any], unit: Unit) -> UnitResult:
    """The task. What another try may mend is raised, so that Dask tries; the rest is returned."""
    with _lock:  # a Session is one model on one device
        name = document["group"] or document["items"][0]["document"]["id"]
        try:
            session = _session(recipe)
            source = _source(document, session.hosts)
            return encode_unit(session, source, unit, recipe.config)
        except GeosamStacError as error:
            # Dask would send the causes, too; but GDAL's errors cannot be unpickled, and what came
            # would be a plain Exception, which ends the whole run.
            error.__cause__ = error.__context__ = None
            if error.retryable:
                raise
            return UnitResult(unit=unit, name=name, error=error)


def _session(recipe: Recipe) -> Session:
    """One Session a process: the model is loaded once. A worker's environment is read here."""
    global _opened  # noqa: PLW0603 - one model fits a device: the last one's is let go
    if _opened is None or _opened[0] != recipe:
        if _opened is not None:
            _opened[1].close()
        from distributed import get_worker

        profile = None if recipe.catalog is None else load_profile(recipe.catalog)
        hosts = Hosts(allow_private=recipe.config.allow_private_hosts)
        for host in recipe.hosts:
            hosts.trust_host(host)
        session = Session(
            recipe.config,
            cache_dir=default_cache_dir(os.environ),
            sink=functools.partial(_tell, get_worker()),
            profile=profile,
            access=accesses(
                profile=profile,
                signer=recipe.signer,
                environ=os.environ,
                anonymous=recipe.anonymous,
            ),
            token=hugging_face_token(os.environ),
            hosts=hosts,
        )
        session.config_sources = recipe.sources
        session.inputs = recipe.inputs
        _opened = (recipe, session)
    return _opened[1]


def _tell(worker: Worker, event: events.Event) -> None:
    """From any thread of the worker to the client, by way of the scheduler."""
    if isinstance(event, ChipDone | Notice):
        # Dask adds members of its own: the event stands in one of ours.
        said = {"kind": type(event).__name__, **dataclasses.asdict(event)}
        worker.log_event(TOPIC, {"event": said})


@contextlib.contextmanager
def _forwarded(client: Client, sink: Sink) -> Iterator[None]:
    """What the workers tell reaches `sink`: each chip, and warnings."""

    def hear(event: tuple[float, Mapping[str, Any]]) -> None:
        fields = dict(event[1]["event"])
        kind = fields.pop("kind")
        if kind == ChipDone.__name__:
            sink(ChipDone(**fields))
        elif fields.get("level") == "warning":
            sink(Notice(**fields))

    client.subscribe_topic(TOPIC, hear)
    try:
        yield
    finally:
        client.unsubscribe_topic(TOPIC)


def _document(source: Source, hosts: Hosts) -> dict[str, Any]:
    """A scene as plain data: it goes to workers that may have another pystac."""
    items = source.items if isinstance(source, Group) else (source,)
    return {
        "group": source.id if isinstance(source, Group) else None,
        "items": [
            {
                "href": item.get_self_href(),
                "document": item.to_dict(transform_hrefs=False),
                # What the user's own file holds may name what a stranger's may not.
                "is_guarded": hosts.guards(item),
            }
            for item in items
        ],
    }


def _source(document: Mapping[str, Any], hosts: Hosts) -> Source:
    items: list[pystac.Item] = []
    for entry in document["items"]:
        item = parse_item(entry["document"], href=entry["href"])
        if not entry["is_guarded"]:
            hosts.own(item)
        items.append(item)
    if document["group"] is None:
        return items[0]
    return Group(id=document["group"], items=tuple(items))
