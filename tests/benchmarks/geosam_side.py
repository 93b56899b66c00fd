"""geosam's half of `geosam.py`: its FeatureCacheBuilder on a raster, once a line of stdin.

Runs in the environment of `make compat`, with `python -P`: a module beside it has geosam's name.
Each line of stdin names a folder; the answer is one line: the seconds that `build` took (reading,
encoding, writing and the manifest; the model was loaded before).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from geosam import FeatureCacheBuilder, RasterDataset, create_model_spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--raster", type=Path, required=True)
    parser.add_argument("--stride", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    answers = sys.stdout
    sys.stdout = sys.stderr  # what ultralytics prints is no answer
    torch.set_num_threads(options.threads)
    spec = create_model_spec(options.model, options.weights, device="cpu")
    dataset = RasterDataset(options.raster)
    for line in sys.stdin:
        builder = FeatureCacheBuilder(dataset, spec, line.strip(), stride=options.stride)
        _ = builder.adapter.model  # loaded on first use
        started = time.perf_counter()
        builder.build()
        print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    main()
