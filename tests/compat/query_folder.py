"""Prompt a pulled folder with geosam, as the plugin does: `query_folder.py FOLDER WEIGHTS X,Y CRS`.

Runs in .venv-compat. Prints JSON: the chip that answered, the mask's bounds in the scene's CRS and
the mask itself, rows as texts of 0 and 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
from geosam import (
    FeatureQueryEngine,
    Points,
    create_model_spec,
    infer_model_id_from_checkpoint_path,
)


def main() -> None:
    """One point, one mask."""
    folder, weights, place, crs = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    manifest = gpd.read_parquet(folder / "manifest.parquet")
    plugin_id = infer_model_id_from_checkpoint_path(manifest.iloc[0]["checkpoint_path"])
    engine = FeatureQueryEngine(folder, create_model_spec(plugin_id, weights, device="cpu"))
    x, y = map(float, place.split(","))
    result = engine.query(Points([(x, y)], labels=[1], crs=crs, dtype=np.float64))
    mask = result.mask_array[0].astype(int)
    print(
        json.dumps(
            {
                "chip_id": result.chip_id,
                "transform": list(result.mask_transform)[:6],
                "mask": ["".join(map(str, row)) for row in mask],
            }
        )
    )
    engine.close()


if __name__ == "__main__":
    main()
