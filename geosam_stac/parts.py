"""A large scene that several machines encode: what each leaves behind, and the whole again.

A part's features lie where the whole scene's lie; beside them it leaves `parts/`: its rows and
skipped chips (JSON) and the sums of its thumbnail. Whoever finds all parts can write the manifest
and the Item. Starts no thread, imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from geosam_stac.commit import Machine, Outcome
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.grid import chip_refs
from geosam_stac.journal import Done, Journal
from geosam_stac.layout import Layout
from geosam_stac.storage import Store
from geosam_stac.thumbnail import Thumbnail
from geosam_stac.types import (
    ChipGrid,
    EncoderSpec,
    ManifestRow,
    Part,
    Scene,
    SkippedRow,
    TensorSpec,
)
from geosam_stac.versioned import VersionedStore, put_agreed


def save(outcome: Outcome, part: Part, store: VersionedStore, journal: Journal) -> int:
    """Write what a part came to; returns the bytes written. The JSON last: it is the mark.

    Where another run of the same part was first, what it wrote stays.

    Raises
    ------
    TemporaryError
        A run with --overwrite has begun meanwhile, and is deleting what this one has made.
    """
    journal.check_overwritten()
    picture = put_agreed(
        store,
        outcome.layout.part(part, ".npz"),
        outcome.thumbnail.to_bytes(),
        is_as_good=lambda there, _: outcome.thumbnail.is_same(there),
    )
    document = {
        "part": part.index,
        "parts": part.count,
        "digest": outcome.digest,
        "spec": dataclasses.asdict(outcome.spec),
        "machine": dataclasses.asdict(outcome.machine),
        "limits": outcome.limits,
        "rows": [
            {
                "chip_id": row.ref.chip_id,
                "bytes": row.bytes,
                "sha256": row.sha256,
                "valid_fraction": row.valid_fraction,
            }
            for row in outcome.rows
        ],
        "skipped": [
            {
                "chip_id": row.ref.chip_id,
                "reason": row.reason,
                "valid_fraction": row.valid_fraction,
            }
            for row in outcome.skipped
        ],
        "thumbnail_sha256": hashlib.sha256(picture).hexdigest(),
        "bytes_read": outcome.bytes_read,
        "seconds": dict(outcome.seconds),
        "busy": dict(outcome.busy),
        "retries": dict(outcome.retries),
    }
    data = json.dumps(document, sort_keys=True).encode()
    key = outcome.layout.part(part, ".json")
    data = put_agreed(store, key, data, is_as_good=lambda there, _: _agrees(there, document))
    try:
        journal.check_overwritten()
    except TemporaryError:
        store.delete(key)  # what it names is going
        raise
    return len(picture) + len(data)


def _agrees(data: bytes, document: Mapping[str, Any]) -> bool:
    """Whether another run's document of a part tells of the same features and pixels."""
    try:
        there = json.loads(data)
        return all(
            there[name] == json.loads(json.dumps(document[name]))
            for name in ("digest", "spec", "limits", "thumbnail_sha256")
        ) and all(
            sorted(there[name], key=_chip_id) == sorted(document[name], key=_chip_id)
            for name in ("rows", "skipped")
        )
    except (ValueError, KeyError, TypeError):
        return False


def _chip_id(row: Mapping[str, Any]) -> str:
    return str(row["chip_id"])


def saved_chips(store: Store, layout: Layout, part: Part) -> dict[str, Done] | None:
    """Chip id -> what a part recorded; None where there is no such part, or it cannot be read."""
    try:
        rows = json.loads(store.get(layout.part(part, ".json")))["rows"]
        return {row["chip_id"]: Done(**row) for row in rows}
    except (DataError, ValueError, KeyError, TypeError):
        return None


def drop(store: Store, layout: Layout) -> None:
    """Delete what parts have left: the Item stands for it."""
    if store.keys(layout.parts):
        store.delete_tree(layout.parts)


def missing(store: Store, layout: Layout, count: int) -> list[int]:
    """Indices of the parts that are not there yet."""
    there = set(store.keys(layout.parts))
    return [
        index
        for index in range(count)
        if layout.part(Part(index=index, count=count), ".json") not in there
    ]


def gather(
    store: Store,
    layout: Layout,
    *,
    count: int,
    scene: Scene,
    grid: ChipGrid,
    config: EncodeConfig,
) -> Outcome:
    """The outcome of the whole scene, from its parts.

    Raises
    ------
    DataError
        A part is not there, is damaged, or was made by another run than its siblings.
    """
    thumbnail = Thumbnail((scene.geobox.height, scene.geobox.width))
    documents = []
    for index in range(count):
        part = Part(index=index, count=count)
        document, picture = _read(store, layout, part)
        try:
            thumbnail.add_bytes(picture)
        except (ValueError, KeyError, OSError) as error:
            raise _damaged(store, layout, part) from error
        documents.append(document)
    first = documents[0]
    for name in ("digest", "spec", "limits"):
        if any(document[name] != first[name] for document in documents):
            raise DataError(
                f"the parts of a scene disagree on their {name}",
                item=scene.id,
                href=store.href(layout.parts),
                hint="They are of several runs: delete the folder, and encode again",
            )
    _check_features(store, layout, documents)
    refs = {ref.chip_id: ref for ref in chip_refs(grid)}
    rows, skipped = [], []
    for document in documents:
        for row in document["rows"]:
            href = layout.feature_href(row["chip_id"])
            rows.append(ManifestRow(ref=refs[row.pop("chip_id")], feature_href=href, **row))
        for row in document["skipped"]:
            skipped.append(SkippedRow(ref=refs[row.pop("chip_id")], **row))
    return Outcome(
        scene=scene,
        grid=grid,
        layout=layout,
        spec=_spec(first["spec"]),
        config=config,
        digest=first["digest"],
        machine=Machine(**first["machine"]),
        limits=None if first["limits"] is None else (first["limits"][0], first["limits"][1]),
        rows=tuple(rows),
        skipped=tuple(skipped),
        thumbnail=thumbnail,
        bytes_read=sum(document["bytes_read"] for document in documents),
        seconds=_sums([document["seconds"] for document in documents]),
        # Each fraction counts for as long as its part ran.
        retries=_sums([document["retries"] for document in documents]),
        busy=_mean([(document["busy"], document["seconds"]["total"]) for document in documents]),
    )


def _check_features(store: Store, layout: Layout, documents: Sequence[Mapping[str, Any]]) -> None:
    """The Item must name nothing that is not there; one listing, no object is read."""
    there = set(store.keys(layout.features))
    for document in documents:
        gone = [r["chip_id"] for r in document["rows"] if layout.feature(r["chip_id"]) not in there]
        if gone:
            raise DataError(
                f"{len(gone):,} features of part {document['part']} of a scene are gone, the "
                f"first of them {gone[0]}",
                href=store.href(layout.features),
                hint="Run its shard again, then finalize",
            )


def _read(store: Store, layout: Layout, part: Part) -> tuple[dict[str, Any], bytes]:
    try:
        document: dict[str, Any] = json.loads(store.get(layout.part(part, ".json")))
        picture = store.get(layout.part(part, ".npz"))
        whole = hashlib.sha256(picture).hexdigest() == document["thumbnail_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(store, layout, part) from error
    if not whole:
        raise _damaged(store, layout, part)
    return document, picture


def _damaged(store: Store, layout: Layout, part: Part) -> DataError:
    return DataError(
        f"part {part.index} of {part.count} of a scene is damaged",
        href=store.href(layout.part(part, ".json")),
        hint="Delete it, and run its shard again",
    )


def _spec(document: Mapping[str, Any]) -> EncoderSpec:
    outputs = tuple(
        TensorSpec(**(spec | {"shape": tuple(spec["shape"])})) for spec in document["outputs"]
    )
    tuples = {"mean": tuple(document["mean"]), "std": tuple(document["std"]), "outputs": outputs}
    return EncoderSpec(**(dict(document) | tuples))


def _sums(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for mapping in mappings for name in mapping)
    return {name: sum(mapping.get(name, 0) for mapping in mappings) for name in names}


def _mean(parts: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    total = sum(weight for _, weight in parts) or 1.0
    names = dict.fromkeys(name for fractions, _ in parts for name in fractions)
    return {
        name: round(
            sum(fractions.get(name, 0.0) * weight for fractions, weight in parts) / total, 3
        )
        for name in names
    }
