"""Benchmark 6: how long `geosam-stac --help` and `import geosam_stac` take, and what they import.

python -m tests.benchmarks.startup [--repeat 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from tests.benchmarks.scenes import machine, table

LOADED = "import sys; print(*[m for m in ('torch', 'rasterio') if m in sys.modules])"
CASES = {
    "python -c pass": ["-c", "pass"],
    "import geosam_stac": ["-c", "import geosam_stac; " + LOADED],
    "geosam-stac --help": [
        "-c",
        "import sys, atexit; sys.argv = ['geosam-stac', '--help'];"
        "atexit.register(lambda: print(*[m for m in ('torch', 'rasterio') if m in sys.modules],"
        " file=sys.stderr)); from geosam_stac.cli import main; main()",
    ],
}


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeat", type=int, default=7)
    repeat = arguments.parse_args().repeat
    rows = []
    for label, command in CASES.items():
        seconds, loaded = [], ""
        for _ in range(repeat + 1):  # the first one fills the disk's cache
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *command], capture_output=True, text=True, check=True
            )
            seconds.append(time.perf_counter() - started)
            loaded = (done.stderr if "help" in label else done.stdout).strip()
        taken = seconds[1:]
        rows.append(
            [label, f"{statistics.median(taken):.3f}", f"{max(taken):.3f}", loaded or "neither"]
        )
    print(machine())
    table(["command", "median, s", "worst, s", "of torch and rasterio it imports"], rows)


if __name__ == "__main__":
    main()
