"""Who may use a remote file: many threads that read it, or one that opens it.

rasterio 1.4 opens a file, and looks for its overviews and masks, without letting go of the
interpreter's lock (GIL), whatever the network takes; it reads pixels without the lock. GDAL's
`/vsicurl/` lets one thread fetch a part of a file and the others wait for it; and what GDAL tells
meanwhile goes through Python's logging, which needs the lock. So a thread that opens a file, and
waits with the lock for a part that another is fetching, stops both for ever. Here it does not begin
before nobody fetches from that file, and nobody begins before it is done.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from geosam_stac.hrefs import unsigned


@dataclass(kw_only=True)
class _Turn:
    readers: int = 0
    is_opening: bool = False
    waiting: int = 0  # to open
    asked: int = 0  # by anybody; a name that nobody asks for is forgotten


class Turns:
    """Turns by file name; what signs a name does not make it another file.

    Who wants to open goes first: it is soon done, and the readers would never all pause. A thread
    must not ask for a second turn of a file while it has one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turns: dict[str, _Turn] = {}

    @contextlib.contextmanager
    def opening(self, uri: str) -> Iterator[None]:
        """The file for this thread alone."""
        with self._turn(uri) as turn:
            with self._changed:
                turn.waiting += 1
                try:
                    self._changed.wait_for(lambda: not turn.is_opening and not turn.readers)
                    turn.is_opening = True
                finally:  # a signal may end the wait: the readers must not wait for this one
                    turn.waiting -= 1
                    if not turn.is_opening:
                        self._changed.notify_all()
            try:
                yield
            finally:
                with self._changed:
                    turn.is_opening = False
                    self._changed.notify_all()

    @contextlib.contextmanager
    def reading(self, uri: str) -> Iterator[None]:
        """The file together with other readers."""
        with self._turn(uri) as turn:
            with self._changed:
                self._changed.wait_for(lambda: not turn.is_opening and not turn.waiting)
                turn.readers += 1
            try:
                yield
            finally:
                with self._changed:
                    turn.readers -= 1
                    self._changed.notify_all()

    @contextlib.contextmanager
    def _turn(self, uri: str) -> Iterator[_Turn]:
        name = unsigned(uri)
        with self._changed:
            turn = self._turns.setdefault(name, _Turn())
            turn.asked += 1
        try:
            yield turn
        finally:
            with self._changed:
                turn.asked -= 1
                if not turn.asked:
                    del self._turns[name]


#: GDAL keeps one set of what it fetches for the whole process.
TURNS = Turns()
