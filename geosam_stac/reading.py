"""A scene's blocks, read ahead by several threads within a budget of memory.

The scene is read in tiles of the file's own blocks, each once. Any reader thread takes whatever is
most urgent: to hand on a block whose tiles are there, else to load the next tile. A tile is
made uint8 as soon as it is loaded, and freed with the last block that needs it. The threads
themselves are the pipeline's.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geosam_stac.budget import LOADING_COPIES, Budget
from geosam_stac.crew import POLL_S, Stopped
from geosam_stac.cube import CubeReader
from geosam_stac.radiometry import RangeEstimator, to_rgb8, widen
from geosam_stac.stages import Stage
from geosam_stac.thumbnail import Thumbnail
from geosam_stac.types import Block, BlockRef, Tile, Window

# Blocks beyond the next one for which tiles are loaded ahead, at least.
AHEAD = 2

# (B, h, w) source values, and their validity packed to bits or None where all is valid.
_Source = tuple[NDArray[Any], NDArray[np.uint8] | None]


class Reading:
    """What is to be read of a scene, and in which order.

    Parameters
    ----------
    cube
        Reads the scene.
    blocks
        All blocks, in the order in which they are wanted.
    budget
        What may be kept and read ahead.
    stage
        Counts the time at work.
    earlier
        Blocks of the same scene that another machine reads: tiles that those need as well are
        in its thumbnail.
    """

    def __init__(
        self,
        cube: CubeReader,
        blocks: Sequence[BlockRef],
        budget: Budget,
        stage: Stage,
        *,
        earlier: Sequence[BlockRef] = (),
    ) -> None:
        self._cube = cube
        self._blocks = list(blocks)
        self._earlier = list(earlier)
        self._budget = budget
        self._stage = stage
        self._limits: tuple[float, float] | None = None
        self._thumbnail: Thumbnail | None = None
        self._sources: dict[Window, _Source] = {}
        self._tiles: dict[Window, Tile] = {}
        self._loading_bytes = 0
        self._changed = threading.Condition()

    # The scan

    @property
    def fits(self) -> bool:
        """Whether a scan can keep the scene, so that it need not be read again."""
        height, width = self._cube.scene.geobox.shape
        bits = self._cube.band_count * (8 * self._cube.dtype.itemsize + 1)
        return bool(height * width * bits / 8 <= self._budget.scan_bytes)

    def begin_scan(self) -> int:
        """Make ready for `scan`; returns how many tiles there are."""
        windows = self._cube.tiling().all()
        self._cube.plan(windows)
        self._to_scan = iter(windows)
        return len(windows)

    def scan(
        self, estimator: RangeEstimator, stop: threading.Event, done: Callable[[], None]
    ) -> None:
        """Measure all pixels of the scene, each once; each reader thread runs this.

        `done` is called after each tile; once `stop` is set, it ends with `Stopped`. Tiles are kept
        if the scene fits.
        """
        while True:
            with self._changed:
                window = next(self._to_scan, None)
            if window is None:
                return
            with self._room(window, stop), self._stage.busy():
                data, valid = self._cube.read(window)
                estimator.update(data, valid, row_off=window.row_off, col_off=window.col_off)
                if self.fits:
                    packed = None if valid.all() else np.packbits(valid)
                    self._sources[window] = (data, packed)
            done()

    @contextlib.contextmanager
    def _room(self, window: Window, stop: threading.Event) -> Iterator[None]:
        """A tile is loaded inside: one always may be, more at once while the budget allows it.

        A file's blocks may be much larger than what the number of threads is made for.
        """
        pixels = window.height * window.width
        size = LOADING_COPIES * pixels * self._cube.band_count * self._cube.dtype.itemsize
        with self._changed:
            while self._loading_bytes and self._loading_bytes + size > self._budget.loading_bytes:
                if stop.is_set():
                    raise Stopped
                self._changed.wait(POLL_S)
            if stop.is_set():
                raise Stopped
            self._loading_bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._loading_bytes -= size
                self._changed.notify_all()

    # The blocks

    def begin(self, limits: tuple[float, float] | None, thumbnail: Thumbnail) -> None:
        """Make ready for `work`.

        Parameters
        ----------
        limits
            (lo, hi) in source values, as `to_rgb8` takes them.
        thumbnail
            Gets every tile that is read, once: not those that `earlier` blocks need too.
        """
        self._limits, self._thumbnail = limits, thumbnail
        tiling = self._cube.tiling()
        self._needs = [tiling.under(block.window) for block in self._blocks]
        self._shown = {tile for block in self._earlier for tile in tiling.under(block.window)}
        self._uses = Counter(tile for needs in self._needs for tile in needs)
        self._first = first = dict[Window, int]()  # the block that needs a tile first
        for place, needs in enumerate(self._needs):
            for tile in needs:
                first.setdefault(tile, place)
        self._todo = list(first.items())  # in order of need
        self._todo.reverse()
        for window in [window for window in self._sources if window not in first]:
            del self._sources[window]  # no chip needs it
        self._cube.plan([window for window in first if window not in self._sources])
        self._next_block, self._block_is_out = 0, False
        self._loading: set[Window] = set()

    def work(self, take: Callable[[Block], None], stop: threading.Event) -> None:
        """What each reader thread runs until all is read; `take` gets each block, in their order.

        Once `stop` is set, it ends with `Stopped`.
        """
        while (job := self._next(stop)) is not None:
            if isinstance(job, int):
                take(self._block(job))
                self._free(job)
            else:
                with self._room(job, stop), self._stage.busy():
                    self._load(job)

    def _next(self, stop: threading.Event) -> Window | int | None:
        """The place of a block whose tiles are there, or a tile to load; None when all is done."""
        with self._changed:
            while True:
                if stop.is_set():
                    raise Stopped
                place = self._next_block
                if place == len(self._blocks):
                    return None
                # One at a time: chips come in the same order in every run.
                if not self._block_is_out and all(
                    tile in self._tiles for tile in self._needs[place]
                ):
                    self._next_block += 1
                    self._block_is_out = True
                    self._changed.notify_all()
                    return place
                if self._todo and self._may_load(*self._todo[-1]):
                    window, _ = self._todo.pop()
                    self._loading.add(window)
                    return window
                self._changed.wait(POLL_S)

    def _may_load(self, window: Window, block: int) -> bool:
        """What the next block needs, always: else two could wait for each other for ever."""
        if block <= self._next_block:
            return True
        if block > self._next_block + max(AHEAD, self._stage.threads // 2):
            return False
        # Not what blocks share, which a wide scene has more of: then it would be read by fewer
        # threads. Nor what a tile takes while it is loaded: `_room` bounds that.
        ahead = [
            each
            for each in (*self._tiles, *self._loading, window)
            if self._first[each] > self._next_block
        ]
        held = sum(map(self._size, ahead))
        held += self._cube.bytes_kept + sum(data.nbytes for data, _ in self._sources.values())
        return held <= self._budget.tiles_bytes

    def _size(self, window: Window) -> int:
        """What a tile takes once it is loaded: uint8, and a mask."""
        return window.height * window.width * (self._cube.band_count + 1)

    def _load(self, window: Window) -> None:
        with self._changed:  # other threads add up what these take
            source = self._sources.pop(window, None)
        if source is None:
            data, valid = self._cube.read(window)
        else:
            data, packed = source
            valid = (
                np.ones(data.shape, dtype=bool)
                if packed is None
                else np.unpackbits(packed, count=data.size).view(bool).reshape(data.shape)
            )
        rgb8 = to_rgb8(data, valid, self._limits)
        anywhere = None if valid.all() else np.any(valid, axis=0)
        known = None if anywhere is None or anywhere.all() else anywhere
        del data, valid, anywhere  # the thumbnail's sums need room too
        assert self._thumbnail is not None
        if window not in self._shown:
            self._thumbnail.add(widen(rgb8), window, known)
        with self._changed:
            self._tiles[window] = Tile(window=window, pixels=rgb8, valid=known)
            self._loading.remove(window)
            self._changed.notify_all()

    def _block(self, place: int) -> Block:
        tiles = tuple(self._tiles[window] for window in self._needs[place])
        return Block(ref=self._blocks[place], tiles=tiles)

    def _free(self, place: int) -> None:
        """A block is done with: so are the tiles that no later one needs."""
        with self._changed:
            for window in self._needs[place]:
                self._uses[window] -= 1
                if not self._uses[window]:
                    del self._tiles[window]
            self._block_is_out = False
            self._changed.notify_all()
