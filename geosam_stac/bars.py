"""Progress in a notebook: events drawn with tqdm. The terminal's own is the CLI's."""

from __future__ import annotations

import threading
from typing import Any

from geosam_stac import cards, events
from geosam_stac.events import Sink, ignore


class Bars:
    """A sink that draws a bar for each thing that takes long, and hands every event on.

    A widget in a notebook that has ipywidgets, text on stderr elsewhere. Thread-safe.

    Parameters
    ----------
    sink
        Gets every event first.
    """

    def __init__(self, sink: Sink = ignore) -> None:
        # Here and not above: it looks for IPython, and who draws nothing must not pay for that.
        from tqdm.auto import tqdm

        self._tqdm, self._sink = tqdm, sink
        self._lock = threading.Lock()
        self._bars: dict[str, Any] = {}
        self._chips: Any = None

    def __call__(self, event: events.Event) -> None:
        """Take in one event; called from several threads."""
        self._sink(event)
        with self._lock:
            self._take(event)

    def close(self) -> None:
        """Leave the bars as they are. May be called twice."""
        with self._lock:
            self._close()

    def _take(self, event: events.Event) -> None:
        match event:
            case events.Notice(message=message, level="warning"):
                self._say(f"warning: {message}")
            case events.BatchHalved(batch_size=size):
                self._say(f"warning: the device ran out of memory: batches of {size} from now on")
            case events.Download(name=name, done_bytes=done, total_bytes=total):
                self._show(name, done, total, unit="B", unit_scale=True)
            case events.SceneStarted(item_id=item_id, chips=chips):
                self._close()
                self._chips = self._bar(item_id, chips, unit="chip")
            case events.ScanProgress(done=done, total=total):
                self._show("measuring the value range", done, total, unit="block")
            case events.ChipDone():
                if self._chips is not None:
                    self._chips.update(1)
            case events.SceneFinished():
                self._close()

    def _show(self, name: str, done: int, total: int | None, **style: Any) -> None:
        bar = self._bars.get(name)
        if bar is None:  # a bar of unknown length has no truth value
            bar = self._bar(name, total, **style)
        # Of several threads, the one that counted further may be heard first.
        bar.update(max(0, done - bar.n))
        if total is not None and done >= total:
            self._bars.pop(name).close()

    def _bar(self, name: str, total: int | None, **style: Any) -> Any:
        # An id may hold anything; what a terminal would obey is spelled out.
        bar = self._tqdm(total=total, desc=cards.plain(name, {}), **style)
        self._bars[name] = bar
        return bar

    def _say(self, text: str) -> None:
        self._tqdm.write(cards.plain(" ".join(text.split()), {}))

    def _close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()
        self._chips = None
