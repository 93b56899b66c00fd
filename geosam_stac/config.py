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
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from geosam_stac.errors import UsageError

DEFAULT_MODEL = "sam2.1-hiera-base-plus"
RESAMPLINGS = ("nearest", "bilinear", "cubic", "average")
MEMORY_STRATEGIES = ("balanced", "low")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FEATURE_DTYPES = ("float16", "float32", "bfloat16")
FORMATS = ("pt",)


@dataclass(frozen=True, kw_only=True)
class ValueRange:
    """How source values become 0..255.

    `kind` "auto": min and max of the scene's valid pixels (uint8 passes through untouched);
    "fixed": `lo` and `hi` are source values; "percentile": `lo` and `hi` are percentiles, 0..100.
    """

    kind: Literal["auto", "fixed", "percentile"]
    lo: float = math.nan
    hi: float = math.nan

    @classmethod
    def parse(cls, text: str) -> ValueRange:
        """Read `auto`, `MIN,MAX` or `pLO,pHI` (as in `p2,p98`); UsageError otherwise."""
        if text.strip().lower() == "auto":
            return cls(kind="auto")
        number = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
        percentile = re.fullmatch(rf"\s*p{number}\s*,\s*p{number}\s*", text)
        fixed = re.fullmatch(rf"\s*{number}\s*,\s*{number}\s*", text)
        match = percentile or fixed
        if match is None:
            raise UsageError(
                "--value-range is not understood",
                expected="auto, MIN,MAX (as 0,3000) or pLO,pHI (as p2,p98)",
                got=repr(text),
            )
        lo, hi = float(match[1]), float(match[2])
        if lo >= hi:
            raise UsageError(
                "--value-range needs a minimum below its maximum", expected="MIN < MAX", got=text
            )
        if percentile and (lo < 0 or hi > 100):
            raise UsageError("--value-range percentiles must lie between 0 and 100", got=repr(text))
        return cls(kind="percentile" if percentile else "fixed", lo=lo, hi=hi)


def option(default: Any, help: str, *, panel: str, digest: bool = False) -> Any:
    """A field of EncodeConfig: default, help text, help panel, whether it changes the features."""
    return dataclasses.field(
        default=default, metadata={"help": help, "panel": panel, "digest": digest}
    )


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Every option of `encode`. Values are checked on creation: UsageError names option and fix."""

    # What is encoded
    bands: tuple[str, ...] | None = option(
        None,
        "1 to 3 bands in RGB order: asset keys, band names or common names. "
        "Default: red,green,blue, else the first 1 to 3 data bands.",
        panel="What",
        digest=True,
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
    stride: int = option(
        512, "Step between chips in px; overlap = chip size - stride.", panel="Grid", digest=True
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
        f"One of {', '.join(PRECISIONS)}. auto: bf16 where the GPU has it, else fp32.",
        panel="Model",
    )
    batch_size: int | Literal["auto"] = option(
        "auto", "Chips a batch; halved when the device runs out of memory.", panel="Model"
    )
    memory_strategy: str = option(
        "balanced",
        "balanced: free cached device memory every 16 chips. low: batches of one, freed each time.",
        panel="Model",
    )
    # The output
    out: str | None = option(None, "Local folder, s3:// or gs:// URL.", panel="Output")
    format: str = option("pt", "Feature file format: pt (Geo-SAM).", panel="Output", digest=True)
    feature_dtype: str = option(
        "float16", f"One of {', '.join(FEATURE_DTYPES)}.", panel="Output", digest=True
    )
    overwrite: bool = option(False, "Encode again what is there already.", panel="Output")
    max_chips: int = option(100_000, "Refuse a plan of more chips than this.", panel="Run")

    def __post_init__(self) -> None:
        self._check_bands()
        self._check_numbers()
        for name, choices in (
            ("resampling", RESAMPLINGS),
            ("memory_strategy", MEMORY_STRATEGIES),
            ("precision", PRECISIONS),
            ("feature_dtype", FEATURE_DTYPES),
            ("format", FORMATS),
        ):
            _check_choice(name, getattr(self, name), choices)
        ValueRange.parse(self.value_range)
        if self.bbox is not None and self.geometry is not None:
            raise UsageError("--bbox and --geometry contradict each other", hint="Give one of them")
        if self.memory_strategy == "low" and self.batch_size not in ("auto", 1):
            raise UsageError(
                "--memory-strategy low encodes one chip at a time",
                got=f"--batch-size {self.batch_size}",
                hint="Leave --batch-size out, or choose balanced",
            )

    def _check_bands(self) -> None:
        if self.bands is None:
            return
        if not 1 <= len(self.bands) <= 3 or not all(self.bands):
            raise UsageError(
                "--bands takes 1 to 3 band names in RGB order",
                got=",".join(self.bands) or "none",
                hint="`geosam-stac encode --item ... --dry-run` names the bands there are",
            )

    def _check_numbers(self) -> None:
        if self.stride < 1:
            raise UsageError("--stride must be at least 1 px", got=str(self.stride))
        if self.chip_size is not None and self.chip_size < 1:
            raise UsageError("--chip-size must be at least 1 px", got=str(self.chip_size))
        if self.chip_size is not None and self.stride > self.chip_size:
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
        if self.max_chips < 1:
            raise UsageError("--max-chips must be at least 1", got=str(self.max_chips))
        if self.bbox is not None:
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
        """A copy with these options changed; an unknown name is an error with the nearest one.

        `bands` and `bbox` may be comma-separated strings, `batch_size` a string, as on the
        command line.
        """
        names = [field.name for field in dataclasses.fields(self)]
        clean: dict[str, Any] = {}
        for name, value in options.items():
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                raise UsageError(
                    f"unknown option {name!r}",
                    hint=f"Did you mean {near[0]!r}?"
                    if near
                    else f"Options are: {', '.join(names)}",
                )
            clean[name] = _clean(name, value)
        return dataclasses.replace(self, **clean)

    def digest(self, *, model: str, weights_sha256: str, precision: str, chip_px: int) -> str:
        """sha256 (hex) of all that decides the features' bytes, and of nothing else.

        `model`, `precision` and `chip_px` are the resolved ones (alias, `auto` and default are
        gone), so two ways to say the same thing have one digest.
        """
        content = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata["digest"]
        }
        content |= {
            "model": model,
            "weights_sha256": weights_sha256,
            "precision": precision,
            "chip_size": chip_px,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """All options as plain data, for `run.json`."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def _clean(name: str, value: Any) -> Any:
    """A value as the command line, a TOML file or a notebook gives it, as the field's type."""
    if name == "bands" and isinstance(value, str):
        return split_list(value)
    if name == "bbox" and isinstance(value, str):
        parts = split_list(value)
        try:
            numbers = tuple(float(part) for part in parts)
        except ValueError:
            numbers = ()
        if len(numbers) != 4:
            raise UsageError("--bbox takes four numbers", expected="W,S,E,N", got=repr(value))
        return numbers
    if name == "batch_size" and isinstance(value, str) and value != "auto":
        if not value.isdigit():
            raise UsageError("--batch-size must be auto or a number", got=repr(value))
        return int(value)
    return tuple(value) if isinstance(value, list) else value


def split_list(text: str) -> tuple[str, ...]:
    """`"red, green"` -> `("red", "green")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _join(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        flag = "--" + name.replace("_", "-")
        near = difflib.get_close_matches(value, choices, n=1)
        raise UsageError(
            f"{flag} is not one of its choices",
            expected=", ".join(choices),
            got=repr(value),
            hint=f"Did you mean {near[0]}" if near else None,
        )
