"""`segment` on cached features against Meta's own predictors on the original pixels.

References: `segment_anything.SamPredictor` (1.0), `sam2.sam2_image_predictor.SAM2ImagePredictor`
(1.1) and transformers' `Sam3TrackerModel` (5.23), fp32 on the CPU, with the same random weights.
IoU of masks: at least 0.999 with float32 features, 0.99 with float16; cut models here (see
`encoders/families.py`), whole ones by --run-long.

Where a chip is smaller than the model's input SAM 2's and SAM 3's own code squeezes it, while
Geo-SAM and we keep its aspect: there the reference gets the chip padded as we pad it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
import torch
from affine import Affine
from pyproj import Transformer
from torch.nn.functional import interpolate

import geosam_stac as gs
from geosam_stac.config import EncodeConfig
from geosam_stac.encoders.base import TorchEncoder
from geosam_stac.pipeline import encode_scene
from geosam_stac.session import Session
from geosam_stac.store.decoder import Decoder
from tests import rasters
from tests.compat.make_weights import fill_constants
from tests.encoders.families import LISTED, Family, sam3_pixels, scene

LIMITS = {"float32": 0.999, "float16": 0.99}


@dataclass(frozen=True)
class Case:
    """A scene of one chip: the source's shape, and what encode is asked beside the model.

    None: as large as the model's input.
    """

    name: str
    shape: tuple[int, int] | None
    options: dict[str, Any]


CASES = (
    Case("native", None, {}),
    Case("small", (300, 420), {}),
    # 10 m at 47 N are 14.7 m of Web Mercator: 450 x 600 px become about 440 x 587.
    Case("reprojected", (450, 600), {"crs": "EPSG:3857", "resolution": 15.0}),
)


class Remembering:
    """An encoder that encodes the same pixels once, for features of any dtype."""

    def __init__(self, encoder: TorchEncoder, known: dict[bytes, Any]) -> None:
        self._encoder, self._known = encoder, known
        self.feature_dtype = "float32"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, pixels: np.ndarray, content_px: tuple[int, int]) -> dict[str, torch.Tensor]:
        key = pixels.tobytes()
        if key not in self._known:
            self._known[key] = self._encoder.encode(pixels, content_px)
        cast = getattr(torch, self.feature_dtype)
        return {name: tensor.to(cast) for name, tensor in self._known[key].items()}

    def submit(
        self, pixels: np.ndarray, content_px: tuple[int, int]
    ) -> Callable[[], dict[str, torch.Tensor]]:
        tensors = self.encode(pixels, content_px)
        return lambda: tensors


@dataclass(frozen=True)
class Encoded:
    """One chip: its feature Item, the pixels that the model saw, and where it lies."""

    href: str
    pixels: np.ndarray
    content_px: tuple[int, int]
    original: np.ndarray
    transform: Affine
    shape: tuple[int, int]
    crs: str

    def lonlat(self, col: float, row: float) -> tuple[float, float]:
        to_lonlat = Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)
        x, y = to_lonlat.transform(*(self.transform @ (col, row)))
        return float(x), float(y)


@dataclass(frozen=True)
class Model:
    """A family's model with random weights whose masks are neither empty nor full."""

    family: Family
    model: Any
    known: dict[bytes, Any] = dataclasses.field(default_factory=dict)
    predictors: dict[bytes, Any] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.family.entry.input_px

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.family.entry, self.model)

    def encode(self, case: Case, dtype: str, folder: Path) -> Encoded:
        height, width = case.shape or (self.size, self.size)
        image = scene(4, height, width)
        tif = rasters.write_tif(folder / "scene.tif", image.transpose(2, 0, 1), blocksize=128)
        bands = rasters.named_bands("red", "green", "blue")
        item = rasters.write_item(folder / "scene.json", {"image": rasters.asset(tif, **bands)})
        config = EncodeConfig.of(
            {
                "model": self.family.model,
                "checkpoint": "untrained:1",
                "device": "cpu",
                "feature_dtype": dtype,
                "value_range": "0,255",
                "out": str(folder / dtype),
            }
            | case.options
        )
        seen = []
        with pytest.MonkeyPatch.context() as patch, Session(config, cache_dir=folder) as session:
            encoder = Remembering(self.family.encoder(self.model), self.known)
            encoder.feature_dtype = dtype
            patch.setattr(Session, "encoder", encoder)
            encode_batches = session.encode_batches

            def watched(batches):
                for batch in batches:
                    seen.extend(batch)
                    yield batch

            patch.setattr(
                session, "encode_batches", lambda batches: encode_batches(watched(batches))
            )
            result = encode_scene(session, session.scene(str(item)), config)
        (chip,) = seen
        grid = chip.ref.geobox
        return Encoded(
            href=result.href,
            pixels=chip.pixels,
            content_px=chip.content_px,
            original=image,
            transform=grid.affine,
            shape=tuple(grid.shape),
            crs=str(grid.crs),
        )


def prepared(family: Family, *, whole: bool) -> Model:
    model = family.make(whole=whole)
    model.load_state_dict(fill_constants(model.state_dict(), 3))
    return Model(family, model)


@pytest.fixture(scope="module", params=LISTED)
def model(request: pytest.FixtureRequest) -> Model:
    return prepared(request.param, whole=False)


@pytest.fixture(scope="module")
def encoded(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Encoded]:
    made: dict[tuple[str, str], Encoded] = {}

    def call(case: Case, dtype: str) -> Encoded:
        key = (case.name, dtype)
        if key not in made:
            made[key] = model.encode(case, dtype, tmp_path_factory.mktemp(case.name))
        return made[key]

    return call


# --- The references ----------------------------------------------------------------------------


def reference(model: Model, chip: Encoded, **prompt: Any) -> tuple[np.ndarray, np.ndarray]:
    """Masks (M, H, W) and scores of the chip's pixels by upstream's predictor."""
    family = model.family.entry.family
    key = chip.pixels.tobytes()
    if key not in model.predictors:  # upstream encodes each image once
        model.predictors[key] = PREDICTORS[family](model.model, chip)
    predictor = model.predictors[key]
    if family == "sam" or chip.shape == (model.size, model.size):
        masks, scores, _ = predictor.predict(**prompt)
        return masks > 0, scores
    rows, cols = chip.content_px
    height, width = chip.shape
    scale = np.array([cols / width, rows / height])
    if prompt.get("point_coords") is not None:
        prompt["point_coords"] = prompt["point_coords"] * scale
    if prompt.get("box") is not None:
        prompt["box"] = prompt["box"] * np.tile(scale, 2)
    logits, scores, _ = predictor.predict(**prompt, return_logits=True)
    content = torch.from_numpy(logits)[None, :, :rows, :cols]
    return interpolate(content, chip.shape, mode="bilinear")[0].numpy() > 0, scores


def sam_predictor(model: Any, chip: Encoded) -> Any:
    from segment_anything import SamPredictor

    predictor = SamPredictor(model)
    if chip.shape == chip.original.shape[:2]:
        predictor.set_image(chip.original)
    else:  # reprojected: the pixels of the target grid, as they were cut and resized
        rows, cols = chip.content_px
        image = torch.from_numpy(chip.pixels[None, :, :rows, :cols].copy())
        predictor.set_torch_image(image, chip.shape)
    return predictor


def sam2_predictor(model: Any, chip: Encoded) -> Any:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model)
    size = predictor.model.image_size
    if chip.shape == (size, size):
        predictor.set_image(chip.original)
        return predictor
    # As floats of 0 to 1, which ToTensor leaves alone: 8 bits could not hold the mean colour.
    rows, cols = chip.content_px
    image = np.empty((size, size, 3), np.float32)
    image[:] = predictor._transforms.mean
    image[:rows, :cols] = chip.pixels[:, :rows, :cols].transpose(1, 2, 0) / np.float32(255)
    predictor.set_image(image)
    return predictor


class Sam3Predictor:
    """Sam3TrackerModel and its image processor, asked as the other two predictors are."""

    def __init__(self, model: Any, chip: Encoded) -> None:
        self._model = model
        self._size = chip.pixels.shape[-1]
        if chip.shape == (self._size, self._size):
            pixels = sam3_pixels(chip.original)
        else:
            rows, cols = chip.content_px
            pixels = torch.zeros(1, 3, self._size, self._size)
            # As its image processor does it, with a mean and a std of 0.5.
            content = torch.from_numpy(chip.pixels[:, :rows, :cols].copy())
            pixels[0, :, :rows, :cols] = content / 127.5 - 1
        self._embeddings = model.get_image_embeddings(pixels)

    @torch.inference_mode()
    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks (M, size, size), scores (M,), and logits as the decoder gives them."""

        def tensor(value: np.ndarray | None, dtype: torch.dtype) -> torch.Tensor | None:
            return None if value is None else torch.as_tensor(value, dtype=dtype)[None, None]

        out = self._model(
            image_embeddings=self._embeddings,
            input_points=tensor(point_coords, torch.float32),
            input_labels=tensor(point_labels, torch.int32),
            input_boxes=tensor(box, torch.float32),
            input_masks=None if mask_input is None else torch.from_numpy(mask_input)[None],
            multimask_output=multimask_output,
        )
        low = out.pred_masks[0]
        from transformers import Sam3ImageProcessor

        (found,) = Sam3ImageProcessor().post_process_masks(
            [low], [(self._size, self._size)], binarize=not return_logits
        )
        return found[0].numpy(), out.iou_scores[0, 0].numpy(), low[0].numpy()


PREDICTORS: dict[str, Callable[[Any, Encoded], Any]] = {
    "sam": sam_predictor,
    "sam2": sam2_predictor,
    "sam3": Sam3Predictor,
}


def iou(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float((one & other).sum() / max(1, (one | other).sum()))


def check(ours: gs.Segmentation, masks: np.ndarray, scores: np.ndarray, limit: float) -> None:
    assert ours.masks.shape == masks.shape
    shares = masks.reshape(len(masks), -1).mean(axis=1)
    assert ((shares > 0.005) & (shares < 0.995)).all(), f"empty or full: {shares}"
    found = [iou(a, b) for a, b in zip(ours.masks, masks, strict=True)]
    assert min(found) >= limit
    np.testing.assert_allclose(ours.scores, scores, atol=2e-3 if limit < 0.999 else 1e-4)


# --- The comparison ----------------------------------------------------------------------------


def points_of(chip: Encoded) -> tuple[np.ndarray, list[int]]:
    """Three clicks, in px of the chip."""
    height, width = chip.shape
    return np.array([(0.3, 0.4), (0.45, 0.5), (0.8, 0.2)]) * (width, height), [1, 1, 0]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_points(model, encoded, case, dtype):
    chip = encoded(case, dtype)
    pixels, labels = points_of(chip)
    ours = gs.open_features(chip.href).segment(
        [chip.lonlat(*pixel) for pixel in pixels], labels, decoder=model.decoder, follow=False
    )
    expected = reference(
        model, chip, point_coords=pixels, point_labels=np.array(labels), multimask_output=False
    )
    check(ours, *expected, LIMITS[dtype])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_box_and_a_point(model, encoded, case):
    """In the scene's own CRS: a box in degrees is another one after it is projected."""
    chip = encoded(case, "float32")
    height, width = chip.shape
    box = np.array([0.2 * width, 0.25 * height, 0.7 * width, 0.8 * height])
    click = np.array([[0.5 * width, 0.55 * height]])
    west, north = chip.transform @ tuple(box[:2])
    east, south = chip.transform @ tuple(box[2:])
    ours = gs.open_features(chip.href).segment(
        [chip.transform @ tuple(click[0])],
        boxes=[(west, south, east, north)],
        crs="native",
        decoder=model.decoder,
        multimask=True,
    )
    expected = reference(
        model, chip, point_coords=click, point_labels=np.array([1]), box=box, multimask_output=True
    )
    check(ours, *expected, LIMITS["float32"])


def test_a_mask(model, encoded):
    """A polygon as a mask prompt: the logits that SAM 2 makes of a mask itself, 10 and -10."""
    chip = encoded(CASES[0], "float32")
    corners = [
        chip.transform @ corner for corner in ((252, 252), (644, 252), (644, 504), (252, 504))
    ]
    ours = gs.open_features(chip.href).segment(
        mask=shapely.Polygon(corners), crs="native", decoder=model.decoder, follow=False
    )
    px = 4 if model.size == 1024 else 3.5  # of the input to one of the mask: 256, SAM 3's 288
    side = round(model.size / px)
    logits = np.full((1, side, side), -10, np.float32)
    top, bottom, left, right = (round(edge / px) for edge in (252, 504, 252, 644))
    logits[:, top:bottom, left:right] = 10
    masks, scores = reference(model, chip, mask_input=logits, multimask_output=False)
    check(ours, masks, scores, LIMITS["float32"])
    without, _ = reference(
        model, chip, point_coords=np.array([[448.0, 384.0]]), point_labels=np.array([1]),
        multimask_output=False,
    )  # fmt: skip
    assert iou(without[0], masks[0]) < 0.999  # it is not without effect


def test_another_prompt_gives_another_mask(model, encoded):
    chip = encoded(CASES[0], "float32")
    opened = gs.open_features(chip.href)
    masks = [
        opened.segment([chip.lonlat(*pixel)], decoder=model.decoder, follow=False).masks[0]
        for pixel in ((200, 200), (800, 700))
    ]
    assert iou(*masks) < 0.999


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_polygons_lie_where_rasterio_puts_the_mask(model, encoded, case, tmp_path):
    chip = encoded(case, "float32")
    pixels, labels = points_of(chip)
    ours = gs.open_features(chip.href).segment(
        [chip.lonlat(*pixel) for pixel in pixels], labels, decoder=model.decoder, follow=False
    )
    mask = reference(
        model, chip, point_coords=pixels, point_labels=np.array(labels), multimask_output=False
    )[0][0]
    (row,) = ours.polygons.itertuples()
    theirs = shapely.MultiPolygon(
        [
            shapely.geometry.shape(geometry)
            for geometry, _ in rasterio.features.shapes(
                mask.astype("uint8"), mask=mask, transform=chip.transform
            )
        ]
    )
    area = shapely.area(theirs)
    assert shapely.area(row.geometry) == pytest.approx(area, rel=1e-3)
    # Both follow the pixels' edges, so they differ by whole pixels, where the masks do, or by less
    # than half of one everywhere; from degrees, and back again, as well.
    back = ours.to_geodataframe("EPSG:4326").to_crs(chip.crs).geometry[0]
    for shape in (row.geometry, back):
        painted = rasterio.features.rasterize([shape], chip.shape, transform=chip.transform)
        assert iou(painted == 1, mask) >= LIMITS["float32"]
        corners = shapely.get_coordinates(shape) - (chip.transform.c, chip.transform.f)
        px = corners / (chip.transform.a, chip.transform.e)
        off = np.abs(px - np.rint(px))
        assert off.min(axis=1).max() < 0.01  # on an edge, along which cut sides have corners
    with rasterio.open(ours.write(str(tmp_path / "mask.tif"))) as raster:
        assert raster.transform == chip.transform
        assert raster.crs == rasterio.CRS.from_string(chip.crs)
        assert raster.shape == chip.shape
        assert iou(raster.read(1) == 1, mask) >= LIMITS["float32"]


# --- Whole models ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("family", LISTED)
def test_whole_models(family, tmp_path):
    model = prepared(family, whole=True)
    for case in CASES:
        for dtype, limit in LIMITS.items():
            folder = tmp_path / case.name / dtype
            folder.mkdir(parents=True)
            chip = model.encode(case, dtype, folder)
            pixels, labels = points_of(chip)
            ours = gs.open_features(chip.href).segment(
                [chip.lonlat(*pixel) for pixel in pixels],
                labels,
                decoder=model.decoder,
                follow=False,
            )
            expected = reference(
                model,
                chip,
                point_coords=pixels,
                point_labels=np.array(labels),
                multimask_output=False,
            )
            check(ours, *expected, limit)
