"""EncodeConfig: every option of `encode`, declared once, checked once, digested once.

The CLI, the environment, the TOML file and the Python API all fill this one class; the help
text of an option stands here too. Imports nothing heavy and reads no environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from geosam_stac.errors import UsageError
from geosam_stac.value_range import ValueRange

DEFAULT_MODEL = "sam2.1-hiera-base-plus"
RESAMPLINGS = ("nearest", "bilinear", "cubic", "average")
MEMORY_STRATEGIES = ("balanced", "low")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FEATURE_DTYPES = ("float16", "bfloat16", "float32", "int8")
FORMATS = ("pt", "safetensors")
LEVELS = ("all", "embedding")
# A batch of one, a block and a tile on their way.
LEAST_MEMORY_GB = 0.2
MAX_SECONDS = 86_400.0

# An option that enters the digest only when it is given: so one that is added later leaves the
# digests, and with them the ids, of all that was encoded before as they were.
IF_GIVEN = "if given"


def option(default: Any, help: str, *, panel: str, digest: bool | str = False) -> Any:
    """A field of EncodeConfig: default, help text, help panel, whether it changes the features."""
    return dataclasses.field(
        default=default, metadata={"help": help, "panel": panel, "digest": digest}
    )


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Every option of `encode`. Values are checked on creation: UsageError names option and fix.

    Numbers may be given as text, `bands`, `bbox` and `value_range` as text or as a sequence.
    """

    # What is encoded
    bands: tuple[str, ...] | None = option(
        None,
        "1 to 3 bands in RGB order: asset keys, band names or common names. "
        "Default: red,green,blue, else the first 1 to 3 data bands.",
        panel="What",
        digest=True,
    )
    expression: str | None = option(
        None,
        "One derived band, as (nir - red) / (nir + red); names that are no plain words stand in "
        "backquotes.",
        panel="What",
        digest=IF_GIVEN,
    )
    index: str | None = option(
        None, "A spectral index by name, as NDVI (spyndex).", panel="What", digest=IF_GIVEN
    )
    preset: str | None = option(
        None, "Bands, value range and mask of a catalog profile; see `catalogs show`.", panel="What"
    )
    scaled: bool = option(
        False,
        "Apply the Item's scale and offset first, as --index needs for reflectance.",
        panel="What",
        digest=IF_GIVEN,
    )
    mask: str | None = option(
        None,
        "Pixels that count as nodata: BAND:VALUES as scl:3,8,9,10, or BAND:bits=BITS.",
        panel="What",
        digest=IF_GIVEN,
    )
    groupby: str = option(
        "id",
        "Items that become one mosaic: id (each alone), solar_day, or a property.",
        panel="What",
        digest=IF_GIVEN,
    )
    bbox: tuple[float, float, float, float] | None = option(
        None, "Processing extent W,S,E,N. Default: the whole Item.", panel="What", digest=True
    )
    bbox_crs: str = option("EPSG:4326", "CRS of --bbox.", panel="What", digest=True)
    geometry: str | None = option(
        None,
        "Processing area: a GeoJSON (or other vector) file. Its bounds are the extent; chips that "
        "do not touch it are skipped.",
        panel="What",
        digest=True,
    )
    # The grid
    crs: str = option(
        "native",
        "CRS of the output grid: native, utm (zone of the extent's centre) or EPSG:n.",
        panel="Grid",
        digest=True,
    )
    resolution: float | None = option(
        None,
        "Pixel size in units of the target CRS. Metres for a geographic source: UTM is used.",
        panel="Grid",
        digest=True,
    )
    resampling: str = option(
        "bilinear", f"One of {', '.join(RESAMPLINGS)}.", panel="Grid", digest=True
    )
    chip_size: int | None = option(
        None, "Chip size in px. Default: the model's input.", panel="Grid", digest=True
    )
    stride: int | None = option(
        None,
        "Step between chips in px; overlap = chip size - stride. Default: 512, for sam3 504.",
        panel="Grid",
        digest=True,
    )
    # Values
    value_range: str = option(
        "auto",
        "auto (scene-wide min and max; uint8 untouched), MIN,MAX or pLO,pHI.",
        panel="Values",
        digest=True,
    )
    # The model
    model: str = option(
        DEFAULT_MODEL, "Model name or alias; see `models list`.", panel="Model", digest=True
    )
    checkpoint: str | None = option(
        None,
        "Weights: a file, a URL, or untrained[:SEED]. Default: the model's own, fetched once.",
        panel="Model",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.", panel="Model")
    precision: str = option(
        "auto",
        f"One of {', '.join(PRECISIONS)}. auto: bf16 where the device has it, else fp32.",
        panel="Model",
    )
    batch_size: int | Literal["auto"] = option(
        "auto", "Chips a batch; halved when the device runs out of memory.", panel="Model"
    )
    compile: bool | Literal["auto"] = option(
        "auto",
        "Compile the encoder before its first batch: a minute or two, kept for later runs. "
        "Default: on CUDA devices.",
        panel="Model",
    )
    memory_strategy: str = option(
        "balanced",
        "balanced: free cached device memory every 16 chips, where it is short. low: batches of "
        "one, freed each time.",
        panel="Model",
    )
    # The output
    out: str | None = option(None, "Local folder, s3:// or gs:// URL.", panel="Output")
    format: str = option(
        "pt",
        "Feature files: pt (opens in Geo-SAM) or safetensors (needs no pickle).",
        panel="Output",
        digest=True,
    )
    feature_dtype: str = option(
        "float16",
        f"One of {', '.join(FEATURE_DTYPES)} (with a scale per channel; safetensors only).",
        panel="Output",
        digest=True,
    )
    levels: str = option(
        "all",
        "all, or embedding: leave out the high-resolution levels that masks need (safetensors "
        "only).",
        panel="Output",
        digest=True,
    )
    publish: str | None = option(
        None,
        "Publish each new Item: catalog.json of a static catalog, a .parquet index, or the URL of "
        "a STAC API with Transactions.",
        panel="Output",
    )
    overwrite: bool = option(False, "Encode again what is there already.", panel="Output")
    verify_source: bool = option(
        False,
        "Check source files against file:checksum first; reads each of them whole.",
        panel="Run",
    )
    max_chips: int = option(100_000, "Refuse a plan of more chips than this.", panel="Run")
    max_memory: float = option(
        1.0,
        "GB for pixels and features on their way; the program and the model come on top.",
        panel="Run",
    )
    timeout: float = option(
        60.0, "Seconds without an answer after which a request is given up.", panel="Run"
    )
    retry_deadline: float = option(
        120.0,
        "Seconds that a read, a write or a request is tried again for when it fails; 0: once only.",
        panel="Run",
    )
    allow_private_hosts: bool = option(
        False,
        "Follow hrefs of remote Items to this machine, to private networks, to any driver of GDAL.",
        panel="Run",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            # Frozen: the one place where a field is set, before anyone has seen it.
            value = _clean(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        self._check_bands()
        self._check_numbers()
        for name, choices in (
            ("resampling", RESAMPLINGS),
            ("memory_strategy", MEMORY_STRATEGIES),
            ("precision", PRECISIONS),
            ("feature_dtype", FEATURE_DTYPES),
            ("format", FORMATS),
            ("levels", LEVELS),
        ):
            _check_choice(name, getattr(self, name), choices)
        ValueRange.parse(self.value_range)
        given = [name for name in ("bands", "expression", "index") if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(
                f"--{given[0]} and --{given[1]} contradict each other", hint="Give one of them"
            )
        self._check_files()
        if self.bbox is not None and self.geometry is not None:
            raise UsageError("--bbox and --geometry contradict each other", hint="Give one of them")
        if self.memory_strategy == "low" and self.batch_size not in ("auto", 1):
            raise UsageError(
                "--memory-strategy low encodes one chip at a time",
                got=f"--batch-size {self.batch_size}",
                hint="Leave --batch-size out, or choose balanced",
            )

    def _check_files(self) -> None:
        if self.format != "pt":
            return
        # What a .pt file says must open in Geo-SAM.
        if self.feature_dtype == "int8":
            raise UsageError(
                "--feature-dtype int8 needs --format safetensors: Geo-SAM, which reads .pt, knows "
                "no scales"
            )
        if self.levels == "embedding":
            raise UsageError(
                "--levels embedding needs --format safetensors: Geo-SAM, which reads .pt, cannot "
                "prompt SAM 2 or SAM 3 without the other levels",
                hint="For a sam-vit model leave --levels out: the embedding is all that it has",
            )

    def _check_bands(self) -> None:
        if self.bands is None:
            return
        # That they are not more than three is checked where the bands there are can be listed.
        if not self.bands or not all(self.bands):
            raise UsageError(
                "--bands takes 1 to 3 band names in RGB order", got=",".join(self.bands) or "none"
            )

    def _check_seconds(self) -> None:
        for flag, seconds, least in (
            ("--timeout", self.timeout, 0.1),
            ("--retry-deadline", self.retry_deadline, 0.0),
        ):
            if not least <= seconds <= MAX_SECONDS:
                raise UsageError(
                    f"{flag} is out of range",
                    expected=f"{least:g} to {MAX_SECONDS:g} seconds",
                    got=f"{seconds:g}",
                )

    def _check_numbers(self) -> None:
        if self.stride is not None and self.stride < 1:
            raise UsageError("--stride must be at least 1 px", got=str(self.stride))
        if self.chip_size is not None and self.chip_size < 1:
            raise UsageError("--chip-size must be at least 1 px", got=str(self.chip_size))
        if self.chip_size is not None and (self.stride or 0) > self.chip_size:
            raise UsageError(
                "--stride must not exceed the chip size, else pixels between chips are lost",
                expected=f"1 to {self.chip_size}",
                got=str(self.stride),
            )
        if self.resolution is not None and not (
            math.isfinite(self.resolution) and self.resolution > 0
        ):
            raise UsageError("--resolution must be a positive number", got=str(self.resolution))
        if self.batch_size != "auto" and self.batch_size < 1:
            raise UsageError("--batch-size must be auto or at least 1", got=str(self.batch_size))
        if not (math.isfinite(self.max_memory) and self.max_memory >= LEAST_MEMORY_GB):
            raise UsageError(
                "--max-memory is too small",
                expected=f"at least {LEAST_MEMORY_GB:g} GB",
                got=f"{self.max_memory:g}",
            )
        self._check_seconds()
        if self.max_chips < 1:
            raise UsageError("--max-chips must be at least 1", got=str(self.max_chips))
        if self.bbox is not None:
            if len(self.bbox) != 4:
                raise UsageError(
                    "--bbox takes four numbers", expected="W,S,E,N", got=_join(self.bbox)
                )
            west, south, east, north = self.bbox
            crosses = self.bbox_crs.upper() in ("EPSG:4326", "OGC:CRS84") and west > east
            if not all(map(math.isfinite, self.bbox)) or south >= north or west == east:
                raise UsageError("--bbox is empty", expected="W,S,E,N", got=_join(self.bbox))
            if west > east and not crosses:
                raise UsageError("--bbox is empty", expected="W < E", got=_join(self.bbox))

    @property
    def values(self) -> ValueRange:
        """`value_range`, parsed."""
        return ValueRange.parse(self.value_range)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EncodeConfig:
        """Build a config from named options; an unknown name is an error with the nearest one."""
        return cls().replace(options)

    def replace(self, options: Mapping[str, Any]) -> EncodeConfig:
        """A copy with these options changed; an unknown name is an error with the nearest one."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                raise UsageError(
                    f"unknown option {name!r}",
                    hint=f"Did you mean {near[0]!r}?"
                    if near
                    else f"Options are: {', '.join(names)}",
                )
        return dataclasses.replace(self, **options)

    def digest(
        self, *, model: str, weights_sha256: str, precision: str, chip_px: int, stride_px: int
    ) -> str:
        """sha256 (hex) of all that decides the features' bytes, and of nothing else.

        `model`, `precision`, `chip_px` and `stride_px` are the resolved ones (alias, `auto` and
        default are gone), so two ways to say the same thing have one digest.
        """
        content = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata["digest"] is True
            or (field.metadata["digest"] == IF_GIVEN and getattr(self, field.name) != field.default)
        }
        values = self.values
        content |= {
            # As what they mean, not as they are spelled.
            "value_range": [values.kind, repr(values.lo), repr(values.hi)],
            "crs": self.crs.upper(),
            "bbox_crs": self.bbox_crs.upper() if self.bbox is not None else None,
            "model": model,
            "weights_sha256": weights_sha256,
            "precision": precision,
            "chip_size": chip_px,
            "stride": stride_px,
        }
        if self.levels == "all":  # younger than the digest: what was written before stays found
            del content["levels"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """All options as plain data, for `run.json`."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def _clean(name: str, kind: str, value: Any) -> Any:
    """A value as the command line, a TOML file or a notebook gives it, as the field's type.

    `kind` is the field's annotation as text: the annotations of this module are not evaluated.
    """
    if (value is None and kind.endswith("None")) or (value == "auto" and "auto" in kind):
        return value
    if name in ("bands", "bbox"):
        return _sequence(name, value)
    if kind.startswith(("int", "float")):
        return _number(name, kind, value)
    if kind.startswith("bool"):
        good = isinstance(value, bool)
    else:
        if name == "value_range" and isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        elif name in ("crs", "bbox_crs") and type(value) is int:
            value = f"EPSG:{value}"
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        good = isinstance(value, str)
    if not good:
        wanted = "true or false" if kind.startswith("bool") else "a text"
        raise UsageError(f"{_flag(name)} is of another kind", expected=wanted, got=repr(value))
    return value


def _number(name: str, kind: str, value: Any) -> int | float:
    convert = int if kind.startswith("int") else float
    try:
        number = convert(value)
        if isinstance(value, bool) or (convert is int and number != float(value)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if convert is int else "a number"
        raise UsageError(
            f"{_flag(name)} is no number",
            expected=wanted + (" or auto" if "auto" in kind else ""),
            got=repr(value),
        ) from None
    return number


def _sequence(name: str, value: Any) -> tuple[Any, ...]:
    try:
        parts = split_list(value) if isinstance(value, str) else tuple(value)
        return tuple(map(str if name == "bands" else float, parts))
    except (TypeError, ValueError):
        what = "band names" if name == "bands" else "four numbers"
        raise UsageError(f"{_flag(name)} takes {what}", got=repr(value)) from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def split_list(text: str) -> tuple[str, ...]:
    """`"red, green"` -> `("red", "green")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _join(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        raise UsageError(
            f"{_flag(name)} is not one of its choices",
            expected=", ".join(choices),
            got=repr(value),
            hint=f"Did you mean {near[0]}" if near else None,
        )
