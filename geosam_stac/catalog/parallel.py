"""Many small requests at once, in `crew`'s threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from geosam_stac.crew import Crew

WORKERS = 16

A = TypeVar("A")
B = TypeVar("B")


def in_parallel(function: Callable[[A], B], entries: Iterable[A]) -> list[B]:
    """`function` of each entry, in the entries' order; the first error stops all."""
    todo = list(enumerate(entries))
    if len(todo) < 2:
        return [function(entry) for _, entry in todo]
    results: dict[int, B] = {}
    queue: Iterator[tuple[int, A]] = iter(todo)
    crew = Crew()

    def request() -> None:
        # One bytecode of one C iterator: next() is safe between threads.
        for index, entry in queue:
            if crew.stop.is_set():
                return
            results[index] = function(entry)

    for _ in itertools.repeat(None, min(WORKERS, len(todo))):
        crew.start(request)
    try:
        crew.join()
    except BaseException as error:
        crew.fail(error)
        raise
    crew.raise_first()
    return [results[index] for index in range(len(todo))]
