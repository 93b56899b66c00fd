"""Open geosam-stac's folders with geosam 0.1.3, as the Geo-SAM plugin does, and compare features.

Runs in .venv-compat, never in the project's environment; `run.sh` prepares what it reads. The
plugin describes a feature folder, infers the model from the first manifest row's checkpoint name,
builds a `FeatureQueryEngine` and queries it with boxes and points; so does this, for SAM and
SAM2. Then geosam's own `FeatureCacheBuilder` encodes the same pixels with the same weights, and
its manifest, its tensors and its masks are compared with ours. The one step of the plugin that
is not covered is QGIS's CRS backend: geosam's native one (pyproj) stands in.

The value range needs no patch: the sample is uint8, which geosam passes through untouched.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scene
from table import Report

NETWORK_EVENTS = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"})
network_attempts: list[str] = []


def forbid_network(event: str, args: tuple) -> None:
    """Audit hook: refuse name look-ups and connections, and remember them for the table."""
    if event in NETWORK_EVENTS:
        network_attempts.append(f"{event}{args[:2]}")
        raise OSError(f"make compat: no network, but {event} was called with {args[:2]}")


# Before ultralytics is imported: it looks up host names at import unless YOLO_OFFLINE is set.
sys.addaudithook(forbid_network)

import geopandas as gpd  # noqa: E402
import torch  # noqa: E402
from geosam import (  # noqa: E402
    BoundingBox,
    FeatureCacheBuilder,
    FeatureQueryEngine,
    Points,
    PromptSet,
    RasterDataset,
    create_model_spec,
    describe_feature_source,
    infer_model_id_from_checkpoint_path,
)
from geosam.engines import MANIFEST_REQUIRED_COLUMNS  # noqa: E402
from geosam.models import EncodedImageFeatures, ModelSpec  # noqa: E402
from rasterio import Affine  # noqa: E402
from rasterio.transform import array_bounds  # noqa: E402
from tensors import cast, iou, relative_error, tensors_of  # noqa: E402
from ultralytics import settings  # noqa: E402

settings.update({"sync": False})

#: Georeferencing: the rounding of float64 coordinates, in pixels.
PLACE_LIMIT = 1e-6
TENSOR_LIMIT = 1e-4
#: True colour against geosam: the comparison must notice swapped channels.
CONTROL_LIMIT = 1e-2
MASK_IOU_LIMIT = 0.999
#: Largest relative error of the features, smallest IoU of the masks, against float32.
SHORT_FLOATS = {torch.float16: (1e-3, 0.98), torch.bfloat16: (5e-3, 0.95)}
#: Two prompts in one chip must not give one mask.
OTHER_MASK_LIMIT = 0.999


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model under test: geosam-stac's name for it, and the plugin's."""

    name: str
    plugin_id: str
    checkpoint: str
    family: str


MODELS = (
    Model(name="sam-vit-base", plugin_id="sam_b", checkpoint="sam_b.pt", family="sam"),
    Model(name="sam2.1-hiera-tiny", plugin_id="sam2.1_t", checkpoint="sam2.1_t.pt", family="sam2"),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """World coordinates of pixels of one encoded extent."""

    transform: Affine
    crs: str

    def box(self, left_px: int, top_px: int, right_px: int, bottom_px: int) -> BoundingBox:
        """Box prompt between two pixel corners."""
        west, north = self.transform @ (left_px, top_px)
        east, south = self.transform @ (right_px, bottom_px)
        return BoundingBox(west, south, east, north, crs=self.crs)

    def points(self, pixels: list[tuple[float, float]], labels: list[int]) -> Points:
        """Point prompts; in float64, as geosam's float32 default is coarse at UTM northings."""
        coordinates = [self.transform @ pixel for pixel in pixels]
        return Points(coordinates, labels=labels, crs=self.crs, dtype=np.float64)


def only_manifest_folder(out: Path) -> Path:
    """Folder that a labeller chooses in the plugin: <out>/<item id>, with its manifest inside."""
    manifests = sorted(out.rglob("manifest.parquet"))
    if len(manifests) != 1 or manifests[0].parent.parent != out:
        raise ValueError(f"expected one {out}/<item id>/manifest.parquet, found {manifests}")
    return manifests[0].parent


def worst_errors(ours: gpd.GeoDataFrame, theirs: gpd.GeoDataFrame) -> dict[str, float]:
    """Largest relative error of each tensor over all chips, by chip id."""
    worst: dict[str, float] = {}
    their_paths = dict(zip(theirs["chip_id"], theirs["feature_path"], strict=True))
    for chip_id, path in zip(ours["chip_id"], ours["feature_path"], strict=True):
        left = tensors_of(EncodedImageFeatures.load(path).features)
        right = tensors_of(EncodedImageFeatures.load(their_paths[chip_id]).features)
        if {n: t.shape for n, t in left.items()} != {n: t.shape for n, t in right.items()}:
            raise ValueError(f"{chip_id}: tensors differ in name or shape")
        for name, tensor in left.items():
            worst[name] = max(worst.get(name, 0.0), relative_error(tensor, right[name]))
    return worst


def check_manifest(
    report: Report, model: Model, ours: gpd.GeoDataFrame, theirs: gpd.GeoDataFrame
) -> None:
    """Every column that geosam writes, ours against its own for the same pixels."""
    name = model.name
    missing = MANIFEST_REQUIRED_COLUMNS.difference(ours.columns)
    report.same(name, "manifest: required columns missing", sorted(missing), [])
    report.same(name, "manifest: chips", len(ours), len(theirs))
    for column in ("chip_id", "shape", "dst_shape", "model_type", "crs"):
        same = list(ours[column]) == list(theirs[column])
        report.add(name, f"manifest: {column} as geosam's", ours.iloc[0][column], "equal", same)
    names = {Path(path).name for path in ours["checkpoint_path"]}
    report.same(name, "manifest: checkpoint base name", names, {model.checkpoint})
    pixel = abs(json.loads(theirs.iloc[0]["transform"])[0])
    differences = {
        "transform": max(
            float(np.abs(np.subtract(json.loads(left), json.loads(right))).max())
            for left, right in zip(ours["transform"], theirs["transform"], strict=True)
        ),
        "geometry": float(
            np.abs(ours.geometry.bounds.to_numpy() - theirs.geometry.bounds.to_numpy()).max()
        ),
        "chip centres": max(
            float(np.abs(ours[column].to_numpy() - theirs[column].to_numpy()).max())
            for column in ("chip_center_x", "chip_center_y")
        ),
    }
    for what, difference in differences.items():
        report.at_most(name, f"manifest: {what}, difference in px", difference / pixel, PLACE_LIMIT)
    report.same(name, "manifest: crs of the geometry", ours.crs == theirs.crs, True)
    absolute = all(Path(path).is_absolute() for path in ours["feature_path"])
    report.same(name, "manifest: feature_path is absolute", absolute, True)
    chip = EncodedImageFeatures.load(ours.iloc[0]["feature_path"])
    report.same(name, "chip: model_type", chip.model_type, model.family)
    report.same(
        name, "chip: checkpoint base name", Path(chip.checkpoint_path).name, model.checkpoint
    )
    report.same(
        name, "chip: src_shape, dst_shape", (chip.src_shape, chip.dst_shape), ((1024, 1024),) * 2
    )
    kinds = {str(tensor.dtype) for tensor in tensors_of(chip.features).values()}
    report.same(name, "chip: dtype", kinds, {"torch.float16"})


def check_prompt(
    report: Report, model: Model, engine: FeatureQueryEngine, what: str, query: object
) -> np.ndarray:
    """Prompt the engine; the mask must be georeferenced as the chip, and neither empty nor full."""
    result = engine.query(query)
    row = engine.manifest.set_index("chip_id").loc[result.chip_id]
    shape = (1, *json.loads(row["shape"]))
    transform = Affine(*json.loads(row["transform"]))
    bounds = array_bounds(shape[1], shape[2], transform)
    share = float(result.mask_array.mean())
    problems = []
    if result.mask_array.shape != shape or result.mask_array.dtype != bool:
        problems.append(f"shape {result.mask_array.shape} {result.mask_array.dtype}")
    if result.mask_transform != transform:
        problems.append(f"transform {result.mask_transform}")
    if result.mask_crs != engine.manifest.crs:
        problems.append(f"crs {result.mask_crs}")
    if not np.allclose(bounds, row["geometry"].bounds, rtol=0, atol=1e-6):
        problems.append(f"bounds {bounds}")
    if result.scores.shape != (1,) or not np.isfinite(result.scores).all():
        problems.append(f"scores {result.scores}")
    if not 0.005 < share < 0.995:
        problems.append("empty or full")
    value = f"{result.chip_id}, {share:.1%} of {shape[1]} x {shape[2]}"
    report.add(
        model.name,
        f"prompt: {what}",
        "; ".join([value, *problems]),
        "georeferenced, 0.5 to 99.5 %",
        not problems,
    )
    return result.mask_array


def check_prompts(report: Report, model: Model, engine: FeatureQueryEngine, place: Place) -> None:
    """Box, points and both, where four chips overlap and where only one is, in two CRSs."""
    field_box = place.box(600, 640, 900, 840)
    clicks = place.points([(700, 700), (740, 820), (900, 640)], [1, 1, 0])
    box_mask = check_prompt(report, model, engine, "box", field_box)
    check_prompt(report, model, engine, "points", clicks)
    check_prompt(report, model, engine, "box and points", PromptSet(points=clicks, bbox=field_box))
    check_prompt(
        report, model, engine, "box in the last chip only", place.box(1300, 1310, 1480, 1500)
    )
    check_prompt(report, model, engine, "points in EPSG:4326", clicks.to_crs("EPSG:4326"))
    moved = engine.query(place.box(700, 560, 800, 620)).mask_array
    overlap = iou(box_mask, moved)
    report.at_most(model.name, "prompt: another box, IoU of masks", overlap, OTHER_MASK_LIMIT)
    try:
        engine.query(place.box(-400, 10, -300, 90))
    except ValueError as error:
        report.same(
            model.name,
            "prompt: outside all chips is refused",
            str(error),
            "No cached chip fully covers the requested query.",
        )
    else:
        report.add(model.name, "prompt: outside all chips is refused", "answered", "refused", False)


def check_refusals(report: Report, model: Model, folder: Path, weights: Path, place: Place) -> None:
    """geosam refuses features whose checkpoint has another base name than the loaded model."""
    renamed = weights / "renamed" / f"my_{model.checkpoint}"
    renamed.parent.mkdir(exist_ok=True)
    renamed.unlink(missing_ok=True)
    os.link(weights / model.checkpoint, renamed)
    other_family = "sam2" if model.family == "sam" else "sam"
    cases = (
        ("another base name", ModelSpec(model.family, renamed, "cpu"), "Checkpoint mismatch"),
        (
            "another family",
            ModelSpec(other_family, weights / model.checkpoint, "cpu"),
            "Model type mismatch",
        ),
    )
    for what, spec, expected in cases:
        engine = FeatureQueryEngine(folder, spec)
        try:
            engine.query(place.box(600, 640, 900, 840))
            value = "answered"
        except ValueError as error:
            value = str(error).split(":")[0]
        finally:
            engine.close()
        report.same(model.name, f"refused: {what}", value, expected)


def check_short_floats(report: Report, model: Model, engine: FeatureQueryEngine) -> None:
    """float16 and bfloat16 features prompt as well, with nearly the masks of float32 ones."""
    encoded = EncodedImageFeatures.load(engine.manifest.iloc[0]["feature_path"])
    prompt = {"bboxes": [[300.0, 320.0, 620.0, 560.0]]}
    original = encoded.features
    reference = tensors_of(original)
    full = engine.adapter.predict_features(encoded, **prompt).masks.numpy()
    for dtype, (error_limit, iou_limit) in SHORT_FLOATS.items():
        encoded.features = cast(original, dtype)
        rounded = tensors_of(encoded.features)
        error = max(relative_error(rounded[name], reference[name]) for name in reference)
        overlap = iou(full, engine.adapter.predict_features(encoded, **prompt).masks.numpy())
        short = str(dtype).removeprefix("torch.")
        report.at_most(model.name, f"{short}: relative L2 error of features", error, error_limit)
        report.at_least(model.name, f"{short}: IoU of masks with float32's", overlap, iou_limit)


def check_numbers(
    report: Report,
    model: Model,
    folders: dict[str, Path],
    theirs: Path,
    engine_of: Callable[[Path], FeatureQueryEngine],
    place: Place,
) -> None:
    """Our tensors and masks against geosam's own, of the same chips and weights."""
    name = model.name
    their_manifest = gpd.read_parquet(theirs / "manifest.parquet")
    swapped = gpd.read_parquet(folders["swapped"] / "manifest.parquet")
    for tensor, error in worst_errors(swapped, their_manifest).items():
        report.at_most(name, f"features: {tensor}, relative L2 error", error, TENSOR_LIMIT)
    plain = gpd.read_parquet(folders["plain"] / "manifest.parquet")
    error = worst_errors(plain, their_manifest)["image_embed"]
    report.at_least(name, "control: bands not swapped, relative L2 error", error, CONTROL_LIMIT)

    ours, reference = engine_of(folders["swapped"]), engine_of(theirs)
    for what, query in (
        ("box", place.box(600, 640, 900, 840)),
        ("points", place.points([(700, 700), (900, 640)], [1, 0])),
    ):
        overlap = iou(ours.query(query).mask_array, reference.query(query).mask_array)
        report.at_least(name, f"masks: {what}, IoU with geosam's", overlap, MASK_IOU_LIMIT)
    check_short_floats(report, model, ours)
    ours.close()
    reference.close()


def check_small(
    report: Report, model: Model, folder: Path, engine_of: Callable[[Path], FeatureQueryEngine]
) -> None:
    """A scene smaller than a chip: one chip with its own shape, prompted all over it."""
    engine = engine_of(folder)
    row = engine.manifest.iloc[0]
    report.same(model.name, "small: chips", len(engine.manifest), 1)
    report.same(model.name, "small: shape", json.loads(row["shape"]), [480, 640])
    report.same(model.name, "small: dst_shape", json.loads(row["dst_shape"]), [1024, 1024])
    chip = EncodedImageFeatures.load(row["feature_path"])
    report.same(
        model.name,
        "small: shapes in the chip",
        (chip.src_shape, chip.dst_shape),
        ((480, 640), (1024, 1024)),
    )
    place = Place(transform=Affine(*json.loads(row["transform"])), crs=row["crs"])
    check_prompt(report, model, engine, "small: box", place.box(400, 300, 630, 470))
    check_prompt(
        report, model, engine, "small: points", place.points([(20, 20), (600, 440)], [1, 0])
    )
    engine.close()


def check_pulled(
    report: Report,
    model: Model,
    folder: Path,
    encoded: Path,
    engine_of: Callable[[Path], FeatureQueryEngine],
) -> None:
    """What `geosam-stac pull` made of safetensors: opened and prompted as what encode wrote."""
    name = model.name
    manifest = gpd.read_parquet(folder / "manifest.parquet")
    row = manifest.iloc[0]
    report.same(name, "pulled: chips", len(manifest), 1)
    report.same(
        name, "pulled: feature_path is absolute", Path(row["feature_path"]).is_absolute(), True
    )
    report.same(
        name, "pulled: it lies in the folder", folder in Path(row["feature_path"]).parents, True
    )
    report.same(name, "pulled: checkpoint base name", row["checkpoint_path"], model.checkpoint)
    report.same(
        name, "pulled: chips that geosam counts", describe_feature_source(folder).chip_count, 1
    )
    ours, reference = engine_of(folder), engine_of(encoded)
    place = Place(transform=Affine(*json.loads(row["transform"])), crs=row["crs"])
    for what, query in (
        ("box", place.box(400, 300, 630, 470)),
        ("points", place.points([(20, 20), (600, 440)], [1, 0])),
    ):
        mask = check_prompt(report, model, ours, f"pulled: {what}", query)
        overlap = iou(mask, reference.query(query).mask_array)
        report.at_least(
            name, f"pulled: {what}, IoU with the folder that encode wrote", overlap, 1.0
        )
    ours.close()
    reference.close()


def check_model(report: Report, model: Model, item: Path, work: Path) -> None:
    """All checks of one model."""
    weights = work / "weights"
    folders: dict[str, Path] = {}
    with report.section(model.name, "folder"):
        for run in ("plain", "swapped", "small", "pulled"):
            folders[run] = only_manifest_folder(work / "encoded" / model.name / run)
    if len(folders) < 4:
        return

    def engine_of(folder: Path) -> FeatureQueryEngine:
        """Build the engine as the plugin does: the folder says which model it is of."""
        manifest = gpd.read_parquet(folder / "manifest.parquet")
        plugin_id = infer_model_id_from_checkpoint_path(manifest.iloc[0]["checkpoint_path"])
        spec = create_model_spec(plugin_id, weights / f"{plugin_id}.pt", device="cpu")
        return FeatureQueryEngine(folder, spec)

    crop = work / "geosam" / "crop.tif"
    crop.parent.mkdir(exist_ok=True)
    scene.crop_rgb(item, scene.FOUR_CHIPS, crop)
    dataset = RasterDataset(crop)
    place = Place(transform=dataset.transform, crs=dataset.crs.to_string())
    theirs = work / "geosam" / model.name
    spec = create_model_spec(model.plugin_id, weights / model.checkpoint, device="cpu")
    FeatureCacheBuilder(dataset, spec, theirs, stride=scene.STRIDE_PX).build()
    their_manifest = gpd.read_parquet(theirs / "manifest.parquet")

    with report.section(model.name, "open"):
        summary = describe_feature_source(folders["plain"])
        report.same(model.name, "open: chips", summary.chip_count, 4)
        report.same(model.name, "open: crs", summary.crs_text, place.crs)
        report.same(
            model.name,
            "open: extent is the asked one",
            bool(np.allclose(summary.extent, dataset.bounds.to_tuple(), rtol=0, atol=1e-6)),
            True,
        )
        engine = engine_of(folders["plain"])
        report.same(
            model.name,
            "open: model the plugin infers",
            Path(engine.model_spec.checkpoint_path).name,
            model.checkpoint,
        )
        with report.section(model.name, "manifest"):
            check_manifest(report, model, engine.manifest, their_manifest)
        with report.section(model.name, "prompt"):
            check_prompts(report, model, engine, place)
        engine.close()
    with report.section(model.name, "refused"):
        check_refusals(report, model, folders["plain"], weights, place)
    with report.section(model.name, "small"):
        check_small(report, model, folders["small"], engine_of)
    with report.section(model.name, "pulled"):
        check_pulled(report, model, folders["pulled"], folders["small"], engine_of)
    with report.section(model.name, "features"):
        check_numbers(report, model, folders, theirs, engine_of, place)


def main() -> int:
    """Run all checks, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--item", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # geosam also logs the refusals that are asked for here
    report = Report()
    for model in MODELS:
        with report.section(model.name, "run"):
            check_model(report, model, arguments.item.resolve(), arguments.work.resolve())
    report.same("both", "network attempts by geosam and ultralytics", len(network_attempts), 0)
    for attempt in network_attempts:
        print(attempt, file=sys.stderr)
    return 0 if report.print_table() else 1


if __name__ == "__main__":
    sys.exit(main())
