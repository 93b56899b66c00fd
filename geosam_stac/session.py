"""Session: one model on one device, and the scenes that are made for it. No threads here.

Batches are halved when the device runs out of memory, and cached memory is freed as the memory
strategy asks; on CPUs, what the C library keeps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pystac

from geosam_stac.config import EncodeConfig
from geosam_stac.encoders import load_encoder
from geosam_stac.encoders.base import ImageEncoder, Pending
from geosam_stac.encoders.checkpoints import Weights, resolve
from geosam_stac.encoders.registry import ModelEntry, find_model
from geosam_stac.errors import (
    ConfigurationError,
    DeviceOutOfMemoryError,
    GeosamStacError,
    TemporaryError,
)
from geosam_stac.events import BatchHalved, Notice, Sink, ignore
from geosam_stac.heap import give_back_freed
from geosam_stac.planning import Plan, make_plan
from geosam_stac.retry import Retries, RetryPolicy
from geosam_stac.sources import open_scene, parse_item, read_item
from geosam_stac.sources.access import with_alternate
from geosam_stac.sources.groups import Group
from geosam_stac.sources.guard import guard
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.profiles import Profile, find_preset, profile_of
from geosam_stac.storage import read_text
from geosam_stac.types import Access, Chip, Features, PlainAccess, Scene

FREE_EVERY_CHIPS = 16
# On CUDA the free memory says; this is until the model is loaded.
AUTO_BATCH = {"cuda": 8, "mps": 2, "cpu": 1}
# Inductor and Triton keep what they compiled in a folder that this variable names.
COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"

DEFAULTS = EncodeConfig()

Source = str | os.PathLike[str] | Mapping[str, Any] | pystac.Item | Group | Scene


class Session:
    """One model, many scenes.

    Parameters
    ----------
    config
        Options for every scene; `model`, `checkpoint`, `device` and `precision` are fixed by it.
    cache_dir
        Where checkpoints are kept.
    sink
        Who hears of the progress.
    profile
        The catalog that the Items are of, for `--preset`; default: told by each Item.
    access
        How each Item's assets are opened; default: as they are.
    hosts
        Which hosts remote Items may name; default: public ones, and those of the URLs given.
    token
        A Hugging Face token, for models whose licence must be accepted there.
    encodes
        False where this machine only plans, and puts together what others encode: the precision
        is that of their devices, and need not be one of this machine's.

    Raises
    ------
    ConfigurationError
        Unknown model, a device that is not there, a checkpoint that does not fit.
    """

    def __init__(
        self,
        config: EncodeConfig,
        *,
        cache_dir: Path,
        sink: Sink = ignore,
        profile: Profile | None = None,
        access: Callable[[pystac.Item], Access] | None = None,
        hosts: Hosts | None = None,
        token: str | None = None,
        encodes: bool = True,
    ) -> None:
        from geosam_stac.encoders.devices import resolve_device, resolve_precision

        self.config = config
        self.profile = profile
        self.hosts = hosts or Hosts(allow_private=config.allow_private_hosts)
        self._access = access or _plain
        self.sink = sink
        self.retries = Retries(RetryPolicy.of(config), sink=sink)
        self.cache_dir = cache_dir
        self._token = token
        self.config_sources: Mapping[str, str] = {}
        # Where the scenes come from, unsigned: for run.json, never for the digest.
        self.inputs: Mapping[str, Any] = {}
        self.entry: ModelEntry = find_model(config.model)
        self.device = resolve_device(config.device)
        self.precision = config.precision
        if encodes or config.precision == "auto":
            self.precision = resolve_precision(config.precision, self.device)
        if config.memory_strategy == "low":
            self.batch_size = 1
        elif config.batch_size == "auto":
            self.batch_size = AUTO_BATCH[self.device.partition(":")[0]]
        else:
            self.batch_size = config.batch_size
        self._weights: Weights | None = None
        self._encoder: ImageEncoder | None = None
        self._since_freed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model and the device's memory."""
        if self._encoder is not None:
            encoder, self._encoder = self._encoder, None
            # A device that was lost fails here as well, and would hide why the session ends.
            with contextlib.suppress(GeosamStacError):
                encoder.free_cached_memory()

    @property
    def weights(self) -> Weights:
        """The weights, fetched on first use."""
        if self._weights is None:
            self._weights = resolve(
                self.entry,
                self.config.checkpoint,
                cache_dir=self.cache_dir,
                sink=self.sink,
                token=self._token,
                retries=self.retries,
            )
            if self._weights.seed is not None:
                self.sink(
                    Notice(
                        message=f"{self.entry.name} has RANDOM weights "
                        f"({self._weights.label}): its features are good for trying the pipeline, "
                        "and for nothing else",
                        level="warning",
                    )
                )
        return self._weights

    @property
    def encoder(self) -> ImageEncoder:
        """The model on its device, loaded on first use."""
        if self._encoder is None:
            self._encoder = load_encoder(
                self.entry,
                self.weights,
                device=self.device,
                precision=self.precision,
                feature_dtype=self.config.feature_dtype,
                levels=self.config.levels,
                compile="on" if self._compiles() else "off",
            )
            automatic = self.config.batch_size == "auto" and self.config.memory_strategy != "low"
            if automatic and self.device.startswith("cuda"):
                self.batch_size = self._encoder.fitting_batch()
        return self._encoder

    def _compiles(self) -> bool:
        wanted = self.config.compile
        if wanted == "auto":
            wanted = self.device.startswith("cuda")
        if wanted:
            # Beside the checkpoints, so that the next run, or the next container on this volume,
            # need not compile; unless the user has said where. Baked in an image or mounted from a
            # volume they may be read-only: then it is kept where torch keeps it, in TMPDIR.
            compiled = self.cache_dir / "compiled"
            with contextlib.suppress(OSError):
                compiled.mkdir(parents=True, exist_ok=True)
            if os.access(compiled, os.W_OK | os.X_OK):
                os.environ.setdefault(COMPILER_CACHE, str(compiled))
        return wanted

    def scene(self, source: Source, *, read_headers: bool = True) -> Scene:
        """Make a scene of an Item's href (or `-`), JSON document, pystac Item, Group or Scene."""
        if isinstance(source, Scene):
            return source
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        if isinstance(source, str):
            self.hosts.trust(source)
            source = self.read_item(source)
        elif not isinstance(source, pystac.Item | Group):
            source = parse_item(source, href=None)
        if isinstance(source, Group):
            items = tuple(self._alternate(item) for item in source.items)
            source = Group(id=source.id, items=items)
            first = items[0]
        else:
            first = source = self._alternate(source)
        return open_scene(
            source,
            self.in_force(first),
            read_headers=read_headers,
            access=self.access,
            retries=self.retries,
            hosts=self.hosts,
            # Else it is the preset's.
            of_stored=self.config.expression is None and self.config.index is None,
        )

    def access(self, item: pystac.Item) -> Access:
        """How an Item's assets are opened; a remote Item's hrefs are checked first."""
        return guard(self.hosts, item, self._access(item))

    def read_item(self, href: str) -> pystac.Item:
        """The source Item of an href (or `-`), whose host is not trusted for that."""
        return read_item(href, read_text=self._read_text, retries=self.retries, hosts=self.hosts)

    def _read_text(self, href: str) -> str:
        return read_text(href, retries=self.retries)

    def _alternate(self, item: pystac.Item) -> pystac.Item:
        """The Item with the hrefs that the profile the user named reads by."""
        if self.profile is None:
            return item
        collection = self.profile.collections.get(item.collection_id or "")
        if collection is None or collection.alternate is None:
            return item
        return with_alternate(item, collection.alternate)

    def in_force(self, item: pystac.Item, config: EncodeConfig | None = None) -> EncodeConfig:
        """The config for an Item: `--preset` filled in where the user has said nothing else.

        Raises ConfigurationError when there is no such preset, or no profile to look it up in.
        """
        config = config or self.config
        if config.preset is None:
            return config
        profile, collection = self.profile, item.collection_id
        if profile is None and (found := profile_of(item)) is not None:
            profile = found[0]
        if profile is None or collection is None:
            raise ConfigurationError(
                "--preset: no catalog profile knows this Item",
                item=item.id,
                hint="Give --catalog NAME (see `geosam-stac catalogs list`), or --bands",
            )
        preset = find_preset(config.preset, profile=profile, collection=collection)
        said = preset.for_item(item).options()
        if config.bands or config.expression or config.index:
            said = {key: said[key] for key in ("value_range", "mask") if key in said}
        unsaid = {
            name: value
            for name, value in said.items()
            if getattr(config, name) == getattr(DEFAULTS, name)
        }
        return config.replace({**unsaid, "preset": None})

    def plan(self, source: Source, *, device_tflops: float | None = None) -> Plan:
        """What encoding would take; reads no pixels, and no network but for the Item itself."""
        scene = self.scene(source, read_headers=False)
        return make_plan(
            scene,
            self.in_force(scene.items[0]) if scene.items else self.config,
            self.entry,
            device=self.device,
            precision=self.precision,
            device_tflops=device_tflops,
        )

    def encode_batch(self, chips: list[Chip]) -> Iterator[Features]:
        """Encode chips of one shape, in as many batches as the device's memory asks for."""
        return self.encode_batches([chips])

    def encode_batches(self, batches: Iterable[list[Chip]]) -> Iterator[Features]:
        """Encode batches, each of chips of one shape, and give their features in order.

        On CUDA a batch is started before the features of the one before it are waited for: the
        device computes while those are copied, and while what becomes of them is done.
        """
        ahead = self.device.startswith("cuda")
        running: tuple[list[Chip], Pending] | None = None
        for chips in batches:
            todo = list(chips)
            while todo:
                batch = todo[: self.batch_size]
                try:
                    started = self._submit(batch)
                except DeviceOutOfMemoryError as error:
                    if running is None:
                        self._halve(batch, error)
                    else:  # what the batch before it holds may be what is missing
                        yield from self._finish(*running)
                        running = None
                    continue
                if running is not None:
                    yield from self._finish(*running)
                running = (batch, started)
                todo = todo[len(batch) :]
                if not ahead:
                    yield from self._finish(*running)
                    running = None
        if running is not None:
            yield from self._finish(*running)

    def _submit(self, batch: list[Chip]) -> Pending:
        with _naming(batch):
            return self.encoder.submit(
                np.stack([chip.pixels for chip in batch]), batch[0].content_px
            )

    def _finish(self, batch: list[Chip], pending: Pending) -> Iterator[Features]:
        """Wait for a batch; where the device ran out of memory meanwhile, do it again in halves."""
        try:
            with _naming(batch):
                tensors = pending()
        except DeviceOutOfMemoryError as error:
            self._halve(batch, error)
            yield from self.encode_batches([batch])
            return
        self._free(len(batch))
        for index, chip in enumerate(batch):
            yield Features(
                ref=chip.ref, tensors={name: values[index] for name, values in tensors.items()}
            )

    def _halve(self, batch: list[Chip], error: DeviceOutOfMemoryError) -> None:
        """Halve the batch size; TemporaryError where it is one already.

        Not what this batch has: a compiled encoder pads the last one of a scene to the others'.
        """
        self.encoder.free_cached_memory()
        if len(batch) > self.batch_size:
            return  # since this one was started, the next one has not fitted either
        if self.batch_size == 1:
            raise TemporaryError(
                f"{self.device} is out of memory even for a batch of one chip",
                chip=batch[0].ref.chip_id,
                got=error.got,
                hint="Choose a smaller model, or free the device",
            ) from error
        self.batch_size //= 2
        self.sink(BatchHalved(batch_size=self.batch_size))

    def _free(self, chips: int) -> None:
        self._since_freed += chips
        every = 1 if self.config.memory_strategy == "low" else FREE_EVERY_CHIPS
        if self._since_freed >= every:
            self.encoder.free_cached_memory(if_short=self.config.memory_strategy != "low")
            if not self.device.startswith("cuda"):  # a GPU should not wait for page faults
                give_back_freed()
            self._since_freed = 0


@contextlib.contextmanager
def _naming(batch: list[Chip]) -> Iterator[None]:
    """An error names the chips; but for a full device, which is not their fault."""
    try:
        yield
    except DeviceOutOfMemoryError:
        raise
    except GeosamStacError as error:
        error.at(chip=", ".join(chip.ref.chip_id for chip in batch))
        raise


def _plain(item: pystac.Item) -> Access:
    return PlainAccess()
