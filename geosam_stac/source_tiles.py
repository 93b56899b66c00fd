"""A file's pixels in tiles of its own blocks: each is loaded once, and kept while it is needed.

Windows that overlap, as those of a warp do, share tiles; threads that need the same one wait for
whichever came first. Knows nothing of files: it is told how a tile is loaded.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geosam_stac.types import Window
from geosam_stac.windows import Tiling, overlap


class SourceTiles:
    """Tiles of one grid, for any number of threads.

    Parameters
    ----------
    load
        Reads one tile: (n, h, w).
    tiling
        How the grid is cut; asked once, when the first window is read: it may open a file.
    """

    def __init__(
        self, load: Callable[[Window], NDArray[Any]], tiling: Callable[[], Tiling]
    ) -> None:
        self._load = load
        self._make_tiling = tiling
        self._tiling: Tiling | None = None
        self._planned: list[Window] = []
        self._released: list[Window] = []
        self._uses: Counter[Window] = Counter()
        self._kept: dict[Window, Future[NDArray[Any]]] = {}
        self._lock = threading.RLock()

    def plan(self, windows: Iterable[Window]) -> None:
        """These windows will be read, and each released: what several need is kept for them."""
        with self._lock:
            self._planned, self._released = list(windows), []
            self._tiling = None
            self._kept.clear()

    @property
    def bytes(self) -> int:
        """Of the tiles that are kept now."""
        with self._lock:
            done = [entry for entry in self._kept.values() if entry.done()]
        return sum(entry.result().nbytes for entry in done if entry.exception() is None)

    def read(self, window: Window) -> NDArray[Any]:
        """(n, h, w) of a window; it may be a tile that others see too: it is not written to."""
        tiles = self._tiles(window)
        if tiles == [window]:
            return self._tile(window)
        out: NDArray[Any] | None = None
        for tile in tiles:
            data = self._tile(tile)
            if out is None:
                out = np.empty((len(data), window.height, window.width), dtype=data.dtype)
            into, part = overlap(window, tile)
            out[:, *into] = data[:, *part]
        assert out is not None  # a window is never empty
        return out

    def release(self, window: Window) -> None:
        """A window that was planned is done with, whether it was read or not."""
        with self._lock:
            if self._tiling is None:
                self._released.append(window)
                return
            for tile in self._tiling.under(window):
                self._uses[tile] -= 1
                if self._uses[tile] <= 0:
                    del self._uses[tile]
                    self._kept.pop(tile, None)

    def _tiles(self, window: Window) -> list[Window]:
        with self._lock:
            if self._tiling is None:
                tiling = self._make_tiling()
                self._uses = Counter(tile for each in self._planned for tile in tiling.under(each))
                self._tiling = tiling
                for each in self._released:
                    self.release(each)
            return self._tiling.under(window)

    def _tile(self, tile: Window) -> NDArray[Any]:
        with self._lock:
            kept = self._kept.get(tile)
            mine = kept is None
            if kept is None:
                kept = self._kept[tile] = Future()
        if mine:
            try:
                kept.set_result(self._load(tile))
            except BaseException as error:
                with self._lock:  # the next one to need it tries again
                    if self._kept.get(tile) is kept:
                        del self._kept[tile]
                kept.set_exception(error)
                raise
        return kept.result()
