"""Outputs of two runs, compared: the same bytes, but for the time at which they were written."""

from __future__ import annotations

import json
import os
from pathlib import Path

# What says when, where and how fast; no two runs have the same.
MOMENTS = ("created", "updated", "processing:datetime")
UNEQUAL = ("run.json",)


def contents(out: Path) -> dict[str, object]:
    """Every file of the scenes under `out`: path -> bytes; of an Item its JSON without moments."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or name.startswith(("runs/", "index/")) or path.name in UNEQUAL:
            continue
        if path.name.startswith("."):  # what SIGKILL left half-written: hidden, and no key
            continue
        if path.suffix == ".json" and path.stem == path.parent.name:
            document = json.loads(path.read_text())
            for moment in MOMENTS:
                document["properties"].pop(moment, None)
            found[name] = document
        else:
            found[name] = path.read_bytes()
    return found


def assert_same(first: dict[str, object], second: dict[str, object]) -> None:
    """Says which file differs, not all of its bytes."""
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


def environment(**more: str) -> dict[str, str]:
    """Of a process that encodes; one thread for the numbers, so that many run side by side."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}
